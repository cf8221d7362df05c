package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
)

// kopiaTool is kopia with two uploads at once; format chooses hash and splitter, whose defaults are BLAKE2B and DYNAMIC-4M-BUZHASH.
type kopiaTool struct {
	bin, label, compression string
	format                  []string
}

func (t *kopiaTool) name() string { return t.label }

func (t *kopiaTool) version(ctx context.Context) (string, error) {
	out, err := output(ctx, command{argv: []string{t.bin, "--version"}})
	return strings.TrimSuffix(strings.TrimSpace(out), " from:"), err
}

func (t *kopiaTool) run(b *bed, args ...string) command {
	return command{argv: append([]string{t.bin}, args...), env: []string{"KOPIA_CONFIG_PATH=" + b.path("config"), "KOPIA_PASSWORD=bench",
		"KOPIA_CACHE_DIRECTORY=" + b.path("cache"), "KOPIA_LOG_DIR=" + b.path("log"), "KOPIA_CHECK_FOR_UPDATES=false", "KOPIA_USE_KEYRING=false"}}
}

func (t *kopiaTool) prepare(ctx context.Context, b *bed) error {
	create := append([]string{"repository", "create", "filesystem", "--path", t.store(b), "--no-progress"}, t.format...)
	policy := []string{"policy", "set", "--global", "--compression=" + t.compression, "--max-parallel-file-reads=2", "--parallel-upload-above-size-mib=128"}
	for _, args := range [][]string{create, policy} {
		if _, err := output(ctx, t.run(b, args...)); err != nil {
			return err
		}
	}
	return nil
}

// kopiaSnapshot names a backup and the tree that it shows.
type kopiaSnapshot struct {
	ID   string `json:"id"`
	Root struct {
		Obj string `json:"obj"`
	} `json:"rootEntry"`
}

func (t *kopiaTool) commands(a action, b *bed) []command {
	switch a {
	case actFirst, actAgain:
		return []command{t.run(b, "snapshot", "create", "--json", "--no-progress", "--parallel=2", filepath.Dir(b.source))}
	case actRestore:
		return []command{t.run(b, "snapshot", "restore", "--no-progress", "--write-sparse-files", t.root(b), b.out)}
	case actVerify:
		return []command{t.run(b, "snapshot", "verify", "--no-progress", "--verify-files-percent=100")}
	case actDrop:
		return []command{t.run(b, "snapshot", "delete", b.ids[0], "--delete")}
	case actPrune:
		return []command{t.run(b, "maintenance", "run", "--full", "--safety=none")}
	}
	return nil
}

func (t *kopiaTool) root(b *bed) string { return b.ids[len(b.ids)-1] }

// observe keeps the ID of the first snapshot and the root of each.
func (t *kopiaTool) observe(_ context.Context, a action, b *bed, stdout []byte) error {
	if a != actFirst && a != actAgain {
		return nil
	}
	var s kopiaSnapshot
	if err := json.Unmarshal(stdout, &s); err != nil || s.ID == "" || s.Root.Obj == "" {
		return fmt.Errorf("answer of kopia: %q: %w", stdout, err)
	}
	if a == actFirst {
		b.ids = append(b.ids, s.ID)
	}
	b.ids = append(b.ids, s.Root.Obj)
	return nil
}

func (t *kopiaTool) restored(b *bed) string { return filepath.Join(b.out, filepath.Base(b.source)) }

func (t *kopiaTool) mount(b *bed) (command, string) {
	return t.run(b, "mount", "--no-progress", t.root(b), b.mnt), filepath.Base(b.source)
}

func (t *kopiaTool) store(b *bed) string { return b.path("repo") }
