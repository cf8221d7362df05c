package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend/file"
	"github.com/shalebackup/shale/engine"
)

// Steps of the peers' part that are processes of their own, so that their memory is theirs alone. Their arguments follow the name.
const (
	stepFiles  = "files"
	stepBackup = "peer-backup"
	stepForget = "peer-forget"
	stepPrune  = "peer-prune"
	stepCount  = "peer-count"
)

var peerSteps = map[string]func(ctx context.Context, o options, args []string) error{
	stepFiles:  writeFiles,
	stepBackup: inRepository(peerBackup),
	stepForget: inRepository(peerForget),
	stepPrune:  inRepository(peerPrune),
	stepCount:  inRepository(peerCount),
}

// own is this program with the options of a volume; a step and its arguments follow.
func own(self string, o options) []string {
	return []string{self, "-chunks", strconv.Itoa(o.chunks), "-backups", strconv.Itoa(o.backups), "-changes", strconv.Itoa(o.changes),
		"-stride", strconv.FormatInt(o.stride, 10), "-dir", o.dir}
}

// shalePruner is shale as the command calls it, with packs of the usual size in files as they are, unlike the other parts'.
func shalePruner(o options, self string) *pruner {
	p := &pruner{name: "shale", dir: o.path("shale"), did: "all backups but the newest deleted; what `shale repo prune --grace 0 --max-unused 0` does"}
	o.dir = p.dir
	step := func(name string) []string { return append(own(self, o), name) }
	p.backup, p.forget, p.prune = step(stepBackup), [][]string{step(stepForget)}, [][]string{step(stepPrune)}
	p.chunks = func(ctx context.Context, p *pruner) (int64, error) {
		var out bytes.Buffer
		if _, err := run(ctx, p.dir, p.env, &out, step(stepCount)...); err != nil {
			return 0, err
		}
		return strconv.ParseInt(strings.TrimSpace(out.String()), 10, 64)
	}
	return p
}

// inRepository is a step that opens the repository, which the first one makes.
func inRepository(fn func(context.Context, *chunkstore.Repository, options) error) func(context.Context, options, []string) error {
	return func(ctx context.Context, o options, args []string) (err error) {
		if len(args) > 0 {
			return errors.New("expects no arguments")
		}
		_, err = os.Stat(o.path("repo"))
		first := errors.Is(err, os.ErrNotExist)
		be, err := file.Create(o.path("repo"))
		if err != nil {
			return err
		}
		if first {
			if _, err := chunkstore.Init(ctx, be, chunkstore.InitOptions{Compression: "none"}); err != nil {
				return err
			}
		}
		r, err := chunkstore.Open(ctx, be, chunkstore.Options{CacheDir: o.path("cache")})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		return fn(ctx, r, o)
	}
}

// peerBackup makes the next version's backup.
func peerBackup(ctx context.Context, r *chunkstore.Repository, o options) error {
	ids, err := r.Backups(ctx, volumeName)
	switch {
	case err != nil:
		return err
	case len(ids) == 0:
		return firstBackup(ctx, r, o)
	}
	_, err = engine.Backup(ctx, r, at(o, len(ids)), engine.BackupOptions{Volume: volumeName})
	return err
}

// peerForget deletes all backups but the newest.
func peerForget(ctx context.Context, r *chunkstore.Repository, _ options) error {
	ids, err := r.Backups(ctx, volumeName)
	if err != nil {
		return err
	}
	for _, id := range ids[:len(ids)-1] {
		if err := r.DeleteBackup(ctx, volumeName, id); err != nil {
			return err
		}
	}
	return nil
}

// peerPrune is `shale repo prune --grace 0 --max-unused 0`.
func peerPrune(ctx context.Context, r *chunkstore.Repository, _ options) error {
	_, err := r.Prune(ctx, chunkstore.PruneOptions{})
	return err
}

func peerCount(ctx context.Context, r *chunkstore.Repository, _ options) error {
	s, err := r.Stats(ctx)
	if err == nil {
		_, err = fmt.Println(s.Chunks)
	}
	return err
}

// writeFiles writes a version of the volume, each chunk as a file, over the version before it. Its arguments are the version and the folder.
func writeFiles(ctx context.Context, o options, args []string) error {
	if len(args) != 2 {
		return errors.New("expects a version and a folder")
	}
	version, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	p := make([]byte, blockLen)
	write := func(i int) error {
		if i%filesAFolder == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		chunk(p, i, version)
		return os.WriteFile(chunkFile(args[1], i), p, 0o600)
	}
	if version > 0 {
		for _, i := range at(o, version).changed {
			if err := write(i); err != nil {
				return err
			}
		}
		return nil
	}
	for i := range o.chunks {
		if i%filesAFolder == 0 {
			if err := os.MkdirAll(filepath.Dir(chunkFile(args[1], i)), 0o700); err != nil {
				return err
			}
		}
		if err := write(i); err != nil {
			return err
		}
	}
	return nil
}

func chunkFile(dir string, i int) string {
	return filepath.Join(dir, fmt.Sprintf("%05d", i/filesAFolder), strconv.Itoa(i))
}
