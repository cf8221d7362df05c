package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
)

// index is a file of the tool's own that names the chunks of a backup.
func index(b *bed, a action) string {
	if a == actFirst {
		return b.path("v1.caibx")
	}
	return b.path("disk.caibx")
}

// desyncTool is desync with two goroutines; its store has one file a chunk.
type desyncTool struct{ bin string }

func (t *desyncTool) name() string { return "desync" }

func (t *desyncTool) version(ctx context.Context) (string, error) { return builtFrom(ctx, t.bin) }

// builtFrom reads the module version that a Go program carries.
func builtFrom(ctx context.Context, bin string) (string, error) {
	out, err := output(ctx, command{argv: []string{"go", "version", "-m", bin}})
	if err != nil {
		return "unknown version", nil // the Go tool is not needed to measure
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) >= 3 && f[0] == "mod" {
			return f[1] + " " + f[2], nil
		}
	}
	return "unknown version", nil
}

func (t *desyncTool) prepare(_ context.Context, b *bed) error { return os.Mkdir(t.store(b), 0o755) }

func (t *desyncTool) commands(a action, b *bed) []command {
	run := func(args ...string) []command {
		return []command{{argv: append([]string{t.bin}, args...), env: []string{"HOME=" + b.dir}}}
	}
	switch a {
	case actFirst, actAgain:
		return run("make", "-n", "2", "-m", "16:64:256", "-s", t.store(b), index(b, a), b.source)
	case actRestore:
		return run("extract", "-n", "2", "-s", t.store(b), index(b, actAgain), t.restored(b))
	case actOnto:
		return run("extract", "-n", "2", "-k", "-s", t.store(b), index(b, actAgain), b.onto)
	case actVerify:
		return run("verify", "-n", "2", "-s", t.store(b))
	case actDrop:
		return []command{{argv: []string{"rm", index(b, actFirst)}}}
	case actPrune:
		return run("prune", "--yes", "-s", t.store(b), index(b, actAgain))
	}
	return nil
}

func (t *desyncTool) observe(context.Context, action, *bed, []byte) error { return nil }

func (t *desyncTool) restored(b *bed) string { return filepath.Join(b.out, "disk.img") }

func (t *desyncTool) mount(b *bed) (command, string) {
	return command{argv: []string{t.bin, "mount-index", "-n", "2", "-s", t.store(b), index(b, actAgain), b.mnt}, env: []string{"HOME=" + b.dir}}, "disk"
}

func (t *desyncTool) store(b *bed) string { return b.path("store") }

// casyncTool is casync, zstd; it can neither verify a store nor show an image without a network block device. On tmpfs it cannot bring
// an older file up to date either ("Stale file handle").
type casyncTool struct{ bin string }

func (t *casyncTool) name() string { return "casync" }

func (t *casyncTool) version(ctx context.Context) (string, error) {
	out, err := output(ctx, command{argv: []string{t.bin, "--version"}})
	line, _, _ := strings.Cut(out, "\n")
	return line, err
}

func (t *casyncTool) prepare(_ context.Context, b *bed) error { return os.Mkdir(t.store(b), 0o755) }

func (t *casyncTool) commands(a action, b *bed) []command {
	run := func(args ...string) []command { return []command{{argv: append([]string{t.bin}, args...)}} }
	store := "--store=" + t.store(b)
	switch a {
	case actFirst, actAgain:
		return run("make", store, "--compression=zstd", index(b, a), b.source)
	case actRestore:
		return run("extract", store, index(b, actAgain), t.restored(b))
	case actDrop:
		return []command{{argv: []string{"rm", index(b, actFirst)}}}
	case actPrune:
		return run("gc", store, index(b, actAgain))
	}
	return nil
}

func (t *casyncTool) observe(context.Context, action, *bed, []byte) error { return nil }

func (t *casyncTool) restored(b *bed) string { return filepath.Join(b.out, "disk.img") }

func (t *casyncTool) mount(*bed) (command, string) { return command{}, "" }

func (t *casyncTool) store(b *bed) string { return b.path("store") }
