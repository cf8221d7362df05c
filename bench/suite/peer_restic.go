package main

import (
	"context"
	"strings"
)

// resticTool is restic with its defaults (encryption, zstd "auto"), and what newer versions have to spare work: --no-scan, --sparse.
type resticTool struct {
	bin, label                string
	noScan, sparse, overwrite bool
}

func (t *resticTool) name() string { return t.label }

func (t *resticTool) version(ctx context.Context) (string, error) {
	out, err := output(ctx, command{argv: []string{t.bin, "version"}})
	line, _, _ := strings.Cut(out, "\n")
	return line, err
}

func (t *resticTool) run(b *bed, args ...string) command {
	return command{argv: append([]string{t.bin}, args...), env: []string{"RESTIC_REPOSITORY=" + t.store(b), "RESTIC_PASSWORD=bench", "RESTIC_CACHE_DIR=" + b.path("cache")}}
}

func (t *resticTool) prepare(ctx context.Context, b *bed) error {
	t.noScan = supports(ctx, command{argv: []string{t.bin, "backup", "--help"}}, "--no-scan")
	t.sparse = supports(ctx, command{argv: []string{t.bin, "restore", "--help"}}, "--sparse")
	t.overwrite = supports(ctx, command{argv: []string{t.bin, "restore", "--help"}}, "--overwrite")
	_, err := output(ctx, t.run(b, "init"))
	return err
}

func (t *resticTool) commands(a action, b *bed) []command {
	switch a {
	case actFirst, actAgain:
		c := t.run(b, "backup", "--quiet", b.source)
		if t.noScan {
			c.argv = append(c.argv, "--no-scan")
		}
		return []command{c}
	case actRestore:
		c := t.run(b, "restore", "latest", "--quiet", "--target", b.out)
		if t.sparse {
			c.argv = append(c.argv, "--sparse")
		}
		return []command{c}
	case actOnto:
		if !t.overwrite {
			return nil
		}
		return []command{t.run(b, "restore", "latest", "--quiet", "--target", strings.TrimSuffix(b.onto, b.source))}
	case actVerify:
		return []command{t.run(b, "check", "--quiet", "--read-data")}
	case actDrop:
		return []command{t.run(b, "forget", "--quiet", "--keep-last", "1")}
	case actPrune:
		return []command{t.run(b, "prune", "--quiet", "--max-unused", "0")}
	}
	return nil
}

func (t *resticTool) observe(context.Context, action, *bed, []byte) error { return nil }

func (t *resticTool) restored(b *bed) string { return b.out + b.source }

func (t *resticTool) mount(b *bed) (command, string) {
	return t.run(b, "mount", "--quiet", b.mnt), "snapshots/latest" + b.source
}

func (t *resticTool) store(b *bed) string { return b.path("repo") }
