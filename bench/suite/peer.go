package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// action is what a tool is asked to do in one measured run.
type action string

const (
	actFirst   action = "first"   // back up bed.source
	actAgain   action = "again"   // back up bed.source, which has changed; nothing is known of the change
	actRestore action = "restore" // the newest backup into bed.out, which is an empty folder
	actOnto    action = "onto"    // the newest backup onto bed.onto, which holds the first
	actVerify  action = "verify"  // read and check all that is stored
	actDrop    action = "drop"    // remove the first backup
	actPrune   action = "prune"   // give back the space that only it used
)

// tool is a program that backs up, with the settings that it is measured with.
type tool interface {
	name() string
	// version says which build it is.
	version(ctx context.Context) (string, error)
	// prepare makes a fresh repository in b.dir. It is not measured.
	prepare(ctx context.Context, b *bed) error
	// commands are what does the action; none where the tool cannot.
	commands(a action, b *bed) []command
	// observe is told the answer of each action that succeeded, for the names that later ones need.
	observe(ctx context.Context, a action, b *bed, stdout []byte) error
	// restored is where the restore action put the source's content.
	restored(b *bed) string
	// mount is the server that shows the newest backup in b.mnt until that is unmounted, and the path of the content below it;
	// an empty path where the tool cannot.
	mount(b *bed) (server command, path string)
	// store is the folder of the repository, whose bytes are counted.
	store(b *bed) string
}

// bed is where one tool works.
type bed struct {
	dir    string   // the tool's own: repository, caches, indexes
	source string   // absolute path of what is backed up
	out    string   // an empty folder for a restore
	onto   string   // the file to bring up to date
	mnt    string   // an empty folder for a mount
	ids    []string // what later actions name
	failed bool     // the tool could not do what it was asked to
	stored int64    // bytes of the repository when it was last looked at
}

// path joins names to the tool's own folder.
func (b *bed) path(names ...string) string {
	return filepath.Join(append([]string{b.dir}, names...)...)
}

// newest is the last name that observe has kept.
func (b *bed) newest() string { return b.ids[len(b.ids)-1] }

// peerTools returns shale's settings and every peer that is installed or in the folder of binaries.
func peerTools(shale, commit, folder string) (tools []tool, notes []string) {
	tools = []tool{&shaleTool{bin: shale, label: "shale", commit: commit}, &shaleTool{bin: shale, label: "shale-s2", commit: commit, compression: "s2"}}
	add := func(bin string, make func(path string) []tool) {
		path, err := exec.LookPath(bin)
		if err != nil {
			notes = append(notes, fmt.Sprintf("%s is not measured: %v", bin, err))
			return
		}
		tools = append(tools, make(path)...)
	}
	add("restic", func(p string) []tool { return []tool{&resticTool{bin: p, label: "restic"}} })
	add("borg", func(p string) []tool {
		return []tool{&borgTool{bin: p, compression: "zstd,3"}, &borgTool{bin: p, compression: "lz4"}}
	})
	add("casync", func(p string) []tool { return []tool{&casyncTool{bin: p}} })
	if folder == "" {
		notes = append(notes, "BENCH_PEERS is not set: newer restic, kopia and desync are not measured")
		return tools, notes
	}
	add(filepath.Join(folder, "restic"), func(p string) []tool { return []tool{&resticTool{bin: p, label: "restic-new"}} })
	add(filepath.Join(folder, "kopia"), func(p string) []tool {
		return []tool{&kopiaTool{bin: p, label: "kopia", compression: "zstd-fastest"}, &kopiaTool{bin: p, label: "kopia-fast", compression: "s2-default",
			format: []string{"--block-hash=BLAKE3-256", "--object-splitter=FIXED-1M"}}}
	})
	add(filepath.Join(folder, "desync"), func(p string) []tool { return []tool{&desyncTool{bin: p}} })
	return tools, notes
}

// chosen keeps the tools whose names begin as one of the prefixes says; all without prefixes.
func chosen(tools []tool, prefixes []string) []tool {
	if len(prefixes) == 0 {
		return tools
	}
	return slices.DeleteFunc(tools, func(t tool) bool {
		return !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(t.name(), p) })
	})
}

// isShale reports whether a tool's name is one of ours.
func isShale(name string) bool { return strings.HasPrefix(name, "shale") }

// output runs a command that is not measured and returns what it says.
func output(ctx context.Context, c command) (string, error) {
	cmd := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...)
	cmd.Env, cmd.Dir = append(os.Environ(), c.env...), c.dir
	var talk strings.Builder
	cmd.Stderr = &talk
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", c, err, lastLines(talk.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// supports reports whether a command's help speaks of an option.
func supports(ctx context.Context, c command, option string) bool {
	out, err := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...).CombinedOutput()
	return err == nil && strings.Contains(string(out), option)
}

// stored counts the bytes and files below a folder.
func stored(dir string) (bytes int64, files int, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		bytes += info.Size()
		files++
		return nil
	})
	return bytes, files, err
}
