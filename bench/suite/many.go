package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

// many measures how long it takes from starting a mount to the first byte of the newest of many backups: with this host's copy of
// the index, and without.
func (s *suite) many(ctx context.Context) error {
	dir := filepath.Join(s.dir, "many")
	defer os.RemoveAll(dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := makeMany(ctx, dir, s.o.seed, s.o.backups); err != nil {
		return err
	}
	t := &shaleTool{bin: s.o.shale, label: "shale"}
	b := &bed{dir: dir, mnt: filepath.Join(s.dir, "mounted")}
	if err := os.MkdirAll(b.mnt, 0o755); err != nil {
		return err
	}
	to := s.res.row("many")
	to.title, to.metrics = fmt.Sprintf("Open a repository with %d backups: mount to first byte", s.o.backups), []metric{mFirst, mCold, mPeak}
	for range 5 * s.o.rounds { // each is short, and a wall time
		got := sample{}
		for _, m := range []metric{mFirst, mCold} {
			if m == mCold {
				if err := os.RemoveAll(b.path("cache")); err != nil {
					return err
				}
			}
			server, path := t.mount(b)
			to.commands[t.name()] = s.readable(server)
			used, err := served(ctx, server, b.mnt, path, func(_ *os.File, first time.Duration) error {
				got[m] = millis(first)
				return nil
			})
			if err != nil {
				return err
			}
			got[mPeak] = max(got[mPeak], float64(used.PeakKiB)/1024)
		}
		to.add(t.name(), got)
		s.log.Printf("%d backups: first byte %.1f ms, without local index %.1f ms", s.o.backups, got[mFirst], got[mCold])
	}
	return nil
}

// makeMany makes a repository of n backups of a small volume that changes a little each time.
func makeMany(ctx context.Context, dir string, seed uint64, n int) (err error) {
	l, err := engine.ParseLocation(filepath.Join(dir, "repo"))
	if err != nil {
		return err
	}
	if _, err := engine.InitRepository(ctx, l, engine.BackendOptions{}, chunkstore.InitOptions{}); err != nil {
		return err
	}
	r, err := engine.OpenRepository(ctx, l, engine.BackendOptions{}, chunkstore.Options{CacheDir: filepath.Join(dir, "cache")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	img := make([]byte, 4<<20)
	if err := writePieces(imageBytes(img), planImage(seed, int64(len(img)))); err != nil {
		return err
	}
	d := newDice(seed, 9)
	for range n {
		piece{kind: contentText, seed: d.src.Uint64()}.fill(img[d.n(len(img)/pieceBlock)*pieceBlock:][:pieceBlock])
		if _, err := engine.Backup(ctx, r, &memorySource{img: img}, engine.BackupOptions{Volume: shaleVolume, Workers: 1}); err != nil {
			return err
		}
	}
	return nil
}
