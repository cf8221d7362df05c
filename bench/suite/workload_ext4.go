package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The ext4 images hold this machine's own files: programs and texts of /usr, Go sources; beside them random bytes, exact duplicates, a
// file like a database's and logs. Which files, and what is done to them, depends on the seed; their layout is the kernel's: compare
// figures of one run.

const mib = 1 << 20

// ext4Writer fills a mounted file system.
type ext4Writer struct {
	root string
	size int64 // bytes of the image
	seed uint64
	dice dice
	all  []placedFile // what was copied from this machine
	text []placedFile // of these, sources
}

type placedFile struct {
	path string // in the file system
	size int64
}

const ext4UUID = "11111111-2222-3333-4444-555555555555"

func makeExt4Images(ctx context.Context, w *workload, seed uint64) error {
	if err := makeSparse(w.v1, w.size); err != nil {
		return err
	}
	mkfs := []string{"mkfs.ext4", "-q", "-F", "-U", ext4UUID, "-E", "hash_seed=" + ext4UUID + ",lazy_itable_init=0,nodiscard", "-J", "size=8", w.v1}
	if _, err := output(ctx, command{argv: mkfs}); err != nil {
		return err
	}
	e := &ext4Writer{root: filepath.Join(w.dir, "mnt"), size: w.size, seed: seed, dice: newDice(seed, 5)}
	if err := os.Mkdir(e.root, 0o755); err != nil {
		return err
	}
	if err := mounted(ctx, w.v1, e.root, func() error { return e.fill(ctx) }); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	if err := copySparse(ctx, w.v1, w.v2); err != nil {
		return err
	}
	if err := mounted(ctx, w.v2, e.root, e.change); err != nil {
		return fmt.Errorf("change: %w", err)
	}
	for _, img := range []string{w.v1, w.v2} { // blocks of zeros become holes
		if _, err := output(ctx, command{argv: []string{"fallocate", "-d", img}}); err != nil {
			return err
		}
	}
	return nil
}

func makeSparse(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return closing(f.Truncate(size), f)
}

// mounted runs fn while the image is mounted, through a loop device, at dir.
func mounted(ctx context.Context, image, dir string, fn func() error, options ...string) error {
	args := append([]string{"mount", "-o", strings.Join(append([]string{"loop"}, options...), ",")}, image, dir)
	if _, err := output(ctx, command{argv: args}); err != nil {
		return err
	}
	err := fn()
	_, unmountErr := output(context.WithoutCancel(ctx), command{argv: []string{"umount", dir}})
	return errors.Join(err, unmountErr)
}

// fill makes the first state: 20 % of the image programs and texts, 13 % sources, 15 % random, 10 % duplicates, 3 % database.
func (e *ext4Writer) fill(ctx context.Context) error {
	if err := e.copyFrom("/usr", "usr", e.size*20/100, nil, &e.all); err != nil {
		return err
	}
	budget := e.size * 13 / 100
	for _, from := range goSources(ctx) {
		before := sum(e.text)
		if err := e.copyFrom(from, "src", budget, []string{".go", ".md", ".json", ".s", ".c", ".h", ".txt"}, &e.text); err != nil {
			return err
		}
		budget -= sum(e.text) - before
	}
	e.all = append(e.all, e.text...)
	for i := range int(e.size * 15 / 100 / (3 * mib)) {
		if err := e.write(fmt.Sprintf("media/%d.jpg", i), piece{kind: contentRandom, seed: e.dice.src.Uint64(), len: 3 * mib}); err != nil {
			return err
		}
	}
	if err := e.write("main.db", piece{kind: contentTable, seed: e.dice.src.Uint64(), len: e.dbSize()}); err != nil {
		return err
	}
	for i := range 40 {
		if err := e.write(fmt.Sprintf("log/%d.log", i), piece{kind: contentText, seed: e.dice.src.Uint64(), len: e.size / 10000}); err != nil {
			return err
		}
	}
	return e.duplicate(e.size * 10 / 100)
}

func (e *ext4Writer) dbSize() int64 { return e.size * 3 / 100 / 8192 * 8192 }

// goSources are the folders of Go's own sources and of the modules that were fetched.
func goSources(ctx context.Context) []string {
	out, err := output(ctx, command{argv: []string{"go", "env", "GOMODCACHE", "GOROOT"}})
	if err != nil {
		return nil // then there are none, and edit says so
	}
	modules, root, _ := strings.Cut(out, "\n")
	return []string{modules, filepath.Join(root, "src")}
}

func sum(files []placedFile) (n int64) {
	for _, f := range files {
		n += f.size
	}
	return n
}

// copyFrom copies files from below a folder of this machine, chosen by the seed, up to a number of bytes.
func (e *ext4Writer) copyFrom(from, to string, budget int64, endings []string, placed *[]placedFile) error {
	type candidate struct {
		rank uint64
		path string
		size int64
	}
	var found []candidate
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // what cannot be read, or is not there, is not chosen
		}
		if d.IsDir() && (d.Name() == "cache" || d.Name() == ".git") {
			return fs.SkipDir
		}
		ends := func(s string) bool { return strings.HasSuffix(path, s) }
		if !d.Type().IsRegular() || endings != nil && !slices.ContainsFunc(endings, ends) {
			return nil
		}
		if info, err := d.Info(); err == nil && info.Size() > 0 && info.Size() < min(40*mib, e.size/64) {
			h := sha256.Sum256(fmt.Appendf(nil, "%d %s", e.seed, path))
			found = append(found, candidate{binary.BigEndian.Uint64(h[:]), path, info.Size()})
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(found, func(a, b candidate) int {
		if a.rank < b.rank {
			return -1
		}
		return 1
	})
	for _, c := range found {
		if c.size > budget {
			continue
		}
		content, err := os.ReadFile(c.path)
		if err != nil {
			continue // went meanwhile, or is not for us to read
		}
		budget -= int64(len(content))
		f := placedFile{filepath.Join(to, c.path), int64(len(content))}
		if err := e.put(f.path, content); err != nil {
			return err
		}
		*placed = append(*placed, f)
	}
	return nil
}

func (e *ext4Writer) put(name string, content []byte) error {
	path := filepath.Join(e.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o644)
}

func (e *ext4Writer) write(name string, p piece) error {
	b := make([]byte, p.len)
	p.fill(b)
	return e.put(name, b)
}

// duplicate copies files that are there already.
func (e *ext4Writer) duplicate(budget int64) error {
	for budget > 0 && len(e.all) > 0 {
		f := e.all[e.dice.n(len(e.all))]
		content, err := os.ReadFile(filepath.Join(e.root, f.path))
		if err != nil {
			return err
		}
		if err := e.put(filepath.Join("dup", f.path), content); err != nil {
			return err
		}
		budget -= f.size
	}
	return nil
}
