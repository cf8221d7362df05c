package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// The peers' part: the same blocks, as chunks of shale and as files of one block for restic and kopia, are backed up in three versions, of which
// the last two change half of the blocks each. When only the newest stays, half of all chunks are dead, and packs of the older versions hold
// dead and living ones side by side.
const (
	peerVersions = 3
	filesAFolder = 1000
)

// peerVolume returns the options of the volume whose versions have so many chunks together.
func peerVolume(o options) options {
	o.chunks, o.changes, o.backups = o.peerChunks/2, o.peerChunks/4, peerVersions
	return o
}

// pruner is a tool that can give the space of old backups back.
type pruner struct {
	name   string
	dir    string // its files: the repository is the folder repo in it
	env    []string
	setup  [][]string // not measured, as all but what follows backup
	backup []string
	keep   [][]string // what forgetting needs, but is not part of
	forget [][]string // all backups but the newest
	prune  [][]string
	chunks func(ctx context.Context, p *pruner) (int64, error) // that its index knows
	did    string                                              // words for forget and prune, if not the commands
}

func (p *pruner) repo() string { return filepath.Join(p.dir, "repo") }

// pruned is what a prune cost, and what it did.
type pruned struct {
	name, did                 string
	forget, prune             cost
	chunksBefore, chunksAfter int64
	storedBefore, storedAfter int64 // bytes of all files of the repository
}

// comparePrunes runs shale and the peers that are there, and prints the table.
func comparePrunes(ctx context.Context, o options) (err error) {
	if o, err = tempFolder(o); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.remove()) }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	v := peerVolume(o)
	tools, notes := pruners(v, self)
	files := v.path("files")
	for _, p := range tools {
		if err := os.MkdirAll(p.dir, 0o700); err != nil {
			return err
		}
		if _, err := p.all(ctx, p.setup); err != nil {
			return err
		}
	}
	for version := range peerVersions {
		if _, err := run(ctx, "", nil, nil, append(own(self, v), stepFiles, strconv.Itoa(version), files)...); err != nil {
			return err
		}
		for _, p := range tools {
			if _, err := p.all(ctx, [][]string{p.backup}); err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "%s: backup %d of %d\n", p.name, version+1, peerVersions)
		}
	}
	var results []*pruned
	for _, p := range tools {
		r, err := p.measure(ctx)
		if err != nil {
			return err
		}
		if r.chunksAfter < int64(v.chunks) {
			return fmt.Errorf("%s knows %d chunks after the prune, the newest backup has %d", p.name, r.chunksAfter, v.chunks)
		}
		fmt.Fprintf(os.Stderr, "%s: pruned\n", p.name)
		results = append(results, r)
	}
	printPruned(os.Stdout, v, results, notes)
	return nil
}

// pruners returns shale and the peers that are there, and words about those that are not.
func pruners(o options, self string) (tools []*pruner, notes []string) {
	tools = append(tools, shalePruner(o, self))
	add := func(name, bin string, make func(dir, name, bin string) *pruner) {
		path, err := exec.LookPath(bin)
		if err != nil {
			notes = append(notes, fmt.Sprintf("%s is not measured: %v", name, err))
			return
		}
		tools = append(tools, make(o.dir, name, path))
	}
	add("restic", "restic", resticPruner)
	if o.peers == "" {
		return tools, append(notes, "neither -peers nor BENCH_PEERS is set: a newer restic and kopia are not measured")
	}
	add("restic-new", filepath.Join(o.peers, "restic"), resticPruner)
	add("kopia", filepath.Join(o.peers, "kopia"), kopiaPruner)
	return tools, notes
}

// resticPruner is restic; encryption is always on in it.
func resticPruner(dir, name, bin string) *pruner {
	p := &pruner{name: name, dir: filepath.Join(dir, name)}
	p.env = []string{"RESTIC_REPOSITORY=" + p.repo(), "RESTIC_PASSWORD=bench", "RESTIC_CACHE_DIR=" + filepath.Join(p.dir, "cache")}
	p.setup = [][]string{{bin, "init"}}
	p.backup = []string{bin, "backup", "--quiet", "--compression", "off", filepath.Join(dir, "files")}
	p.forget = [][]string{{bin, "forget", "--quiet", "--keep-last", "1"}}
	p.prune = [][]string{{bin, "prune", "--quiet", "--compression", "off", "--max-unused", "0"}}
	p.chunks = countLines("data ", bin, "list", "blobs")
	return p
}

// kopiaPruner is kopia; encryption is always on in it. It prunes on its own after a backup, unless told not to, and applies the policy of what
// to keep then: so that comes after the backups.
func kopiaPruner(dir, name, bin string) *pruner {
	p := &pruner{name: name, dir: filepath.Join(dir, name)}
	p.env = []string{"KOPIA_CONFIG_PATH=" + filepath.Join(p.dir, "config"), "KOPIA_PASSWORD=bench", "KOPIA_CACHE_DIRECTORY=" + filepath.Join(p.dir, "cache"),
		"KOPIA_LOG_DIR=" + filepath.Join(p.dir, "log"), "KOPIA_CHECK_FOR_UPDATES=false", "KOPIA_USE_KEYRING=false"}
	kopia := func(args ...string) []string { return append([]string{bin, "--no-auto-maintenance"}, args...) }
	p.setup = [][]string{
		kopia("repository", "create", "filesystem", "--path", p.repo(), "--no-progress"),
		kopia("policy", "set", "--global", "--compression=none"),
	}
	p.backup = kopia("snapshot", "create", "--no-progress", filepath.Join(dir, "files"))
	p.keep = [][]string{kopia("policy", "set", "--global", "--keep-latest=1", "--keep-hourly=0", "--keep-daily=0", "--keep-weekly=0",
		"--keep-monthly=0", "--keep-annual=0")}
	p.forget = [][]string{kopia("snapshot", "expire", "--all", "--delete")}
	full := kopia("maintenance", "run", "--full", "--safety=none", "--no-progress")
	p.prune = [][]string{full, full} // the first marks what is dead; only the second finds the packs that became short by that
	p.chunks = countLines("", kopia("content", "list", "--non-prefixed")...)
	return p
}

// countLines returns a function that counts the lines a command prints that begin with prefix.
func countLines(prefix string, argv ...string) func(context.Context, *pruner) (int64, error) {
	return func(ctx context.Context, p *pruner) (int64, error) {
		n := lineCount{prefix: prefix}
		_, err := run(ctx, p.dir, p.env, &n, argv...)
		return n.n, err
	}
}

func (p *pruner) all(ctx context.Context, commands [][]string) (sum cost, err error) {
	for _, argv := range commands {
		c, err := run(ctx, p.dir, p.env, nil, argv...)
		if err != nil {
			return sum, fmt.Errorf("%s: %w", p.name, err)
		}
		sum.add(c)
	}
	return sum, nil
}

// look says what the repository has.
func (p *pruner) look(ctx context.Context) (chunks, stored int64, err error) {
	if chunks, err = p.chunks(ctx, p); err != nil {
		return 0, 0, fmt.Errorf("%s: count its chunks: %w", p.name, err)
	}
	stored, err = folderBytes(p.repo())
	return chunks, stored, err
}

func (p *pruner) measure(ctx context.Context) (_ *pruned, err error) {
	r := &pruned{name: p.name, did: p.did}
	if r.did == "" {
		r.did = p.words(p.forget) + "; " + p.words(p.prune)
	}
	if _, err := p.all(ctx, p.keep); err != nil {
		return nil, err
	}
	if r.chunksBefore, r.storedBefore, err = p.look(ctx); err != nil {
		return nil, err
	}
	if r.forget, err = p.all(ctx, p.forget); err != nil {
		return nil, err
	}
	if r.prune, err = p.all(ctx, p.prune); err != nil {
		return nil, err
	}
	r.chunksAfter, r.storedAfter, err = p.look(ctx)
	return r, err
}

// words are commands as a reader would type them.
func (p *pruner) words(commands [][]string) string {
	var all []string
	for _, argv := range commands {
		all = append(all, "`"+strings.Join(append([]string{p.name}, argv[1:]...), " ")+"`")
	}
	return strings.Join(all, ", ")
}

// folderBytes is the size of all files below a folder.
func folderBytes(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	return n, err
}
