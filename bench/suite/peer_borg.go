package main

import (
	"context"
	"strings"
)

// borgTool is borg without encryption.
type borgTool struct{ bin, compression string }

func (t *borgTool) name() string { return "borg-" + strings.ReplaceAll(t.compression, ",", "") }

func (t *borgTool) version(ctx context.Context) (string, error) {
	return output(ctx, command{argv: []string{t.bin, "--version"}})
}

func (t *borgTool) run(b *bed, args ...string) command {
	return command{argv: append([]string{t.bin}, args...), env: []string{"BORG_REPO=" + t.store(b), "BORG_BASE_DIR=" + b.dir,
		"BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes", "BORG_DELETE_I_KNOW_WHAT_I_AM_DOING=YES"}}
}

func (t *borgTool) prepare(ctx context.Context, b *bed) error {
	_, err := output(ctx, t.run(b, "init", "-e", "none"))
	return err
}

func (t *borgTool) commands(a action, b *bed) []command {
	switch a {
	case actFirst:
		return []command{t.run(b, "create", "-C", t.compression, "::v1", b.source)}
	case actAgain:
		return []command{t.run(b, "create", "-C", t.compression, "::v2", b.source)}
	case actRestore:
		c := t.run(b, "extract", "--sparse", "::v2")
		c.dir = b.out
		return []command{c}
	case actVerify:
		return []command{t.run(b, "check", "--verify-data")}
	case actDrop:
		return []command{t.run(b, "delete", "::v1")}
	case actPrune:
		return []command{t.run(b, "compact", "--threshold", "0")}
	}
	return nil
}

func (t *borgTool) observe(context.Context, action, *bed, []byte) error { return nil }

func (t *borgTool) restored(b *bed) string { return b.out + b.source }

func (t *borgTool) mount(b *bed) (command, string) {
	return t.run(b, "mount", "-f", "::v2", b.mnt), strings.TrimPrefix(b.source, "/")
}

func (t *borgTool) store(b *bed) string { return b.path("repo") }
