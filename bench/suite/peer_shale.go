package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
)

// shaleTool is this project's own command. A pool replaces the source by a thin pool's snapshots.
type shaleTool struct {
	bin, label  string
	commit      string
	compression string
	pool        *thinPool
}

func (t *shaleTool) name() string { return t.label }

func (t *shaleTool) version(context.Context) (string, error) { return t.commit, nil }

const shaleVolume = "disk"

func (t *shaleTool) run(b *bed, args ...string) command {
	return command{argv: append([]string{t.bin}, args...), env: []string{"SHALE_CACHE_DIR=" + b.path("cache")}}
}

func (t *shaleTool) prepare(ctx context.Context, b *bed) error {
	args := []string{"repo", "init", t.store(b)}
	if t.compression != "" {
		args = append(args, "--compression", t.compression)
	}
	_, err := output(ctx, t.run(b, args...))
	return err
}

func (t *shaleTool) commands(a action, b *bed) []command {
	switch a {
	case actFirst, actAgain:
		return []command{t.run(b, t.create(a, b)...)}
	case actRestore:
		return []command{t.run(b, "backup", "restore", "--quiet", b.newest(), t.restored(b))}
	case actOnto:
		return []command{t.run(b, "backup", "restore", "--quiet", b.newest(), b.onto, "--overwrite", "--holds", b.ids[0])}
	case actVerify:
		return []command{t.run(b, "repo", "check", "--quiet", "--data", t.store(b))}
	case actDrop:
		return []command{t.run(b, "backup", "delete", b.ids[0])}
	case actPrune:
		return []command{t.run(b, "repo", "prune", "--quiet", "--grace", "0", "--max-unused", "0", t.store(b))}
	}
	return nil
}

func (t *shaleTool) create(a action, b *bed) []string {
	args := []string{"backup", "create", "--json", "--quiet", "--dest", t.store(b), "--volume", shaleVolume}
	if t.pool == nil {
		return append(args, b.source)
	}
	args = append(args, "--thin-metadata", t.pool.meta, "--thin-data", t.pool.data, "--size", strconv.FormatInt(t.pool.size, 10))
	if a == actFirst {
		return append(args, "--thin-id", strconv.Itoa(int(t.pool.before)))
	}
	return append(args, "--thin-id", strconv.Itoa(int(t.pool.then)), "--thin-base", strconv.Itoa(int(t.pool.before)))
}

func (t *shaleTool) observe(_ context.Context, a action, b *bed, stdout []byte) error {
	if a != actFirst && a != actAgain {
		return nil
	}
	var answer struct {
		URL string `json:"url"`
	}
	if err := json.Unmarshal(stdout, &answer); err != nil || answer.URL == "" {
		return fmt.Errorf("answer of shale: %q: %w", stdout, err)
	}
	b.ids = append(b.ids, answer.URL)
	return nil
}

func (t *shaleTool) restored(b *bed) string { return filepath.Join(b.out, "disk.img") }

func (t *shaleTool) mount(b *bed) (command, string) {
	return t.run(b, "backup", "mount", "--foreground", "--quiet", t.store(b), b.mnt), shaleVolume + "/latest/image.raw"
}

func (t *shaleTool) store(b *bed) string { return b.path("repo") }
