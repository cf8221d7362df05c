package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLineCount(t *testing.T) {
	const text = "data 1\ntree 2\nda\n\ndatadata 3\ndata 4\ndata 5 without an end"
	for _, c := range []struct {
		prefix string
		want   int64
	}{{"", 6}, {"data ", 2}, {"da", 4}, {"none", 0}} {
		for size := 1; size <= len(text); size++ {
			l := lineCount{prefix: c.prefix}
			for p := []byte(text); len(p) > 0; {
				n, err := l.Write(p[:min(size, len(p))])
				if err != nil || n != min(size, len(p)) {
					t.Fatalf("write: %d, %v", n, err)
				}
				p = p[n:]
			}
			if l.n != c.want {
				t.Errorf("prefix %q, %d bytes at once: %d lines, want %d", c.prefix, size, l.n, c.want)
			}
			if len(l.line) > len(c.prefix) {
				t.Errorf("prefix %q: %d bytes are kept", c.prefix, len(l.line))
			}
		}
	}
}

func TestFreed(t *testing.T) {
	for _, c := range []struct {
		before, after int64
		want          float64
	}{{0, 0, 0}, {100, 25, 0.75}, {100, 100, 0}, {100, 110, -0.1}} {
		if got := freed(c.before, c.after); got != c.want {
			t.Errorf("from %d to %d: %v, want %v", c.before, c.after, got, c.want)
		}
	}
}

// The versions have together as many different blocks as were asked for, and the newest half of them.
func TestPeerVolume(t *testing.T) {
	o := peerVolume(options{peerChunks: 200, stride: 128 << 10})
	dir, all, newest := t.TempDir(), map[string]bool{}, map[string]bool{}
	for version := range o.backups {
		if err := writeFiles(t.Context(), o, []string{fmt.Sprint(version), dir}); err != nil {
			t.Fatal(err)
		}
		clear(newest)
		for i := range o.chunks {
			b, err := os.ReadFile(chunkFile(dir, i))
			if err != nil {
				t.Fatal(err)
			}
			if len(b) != blockLen {
				t.Fatalf("file %d has %d bytes", i, len(b))
			}
			newest[string(b)], all[string(b)] = true, true
		}
	}
	if len(all) != 200 || len(newest) != 100 {
		t.Errorf("%d different blocks, %d in the newest version, want 200 and 100", len(all), len(newest))
	}
	n, err := folderBytes(dir)
	if err != nil || n != 100*blockLen {
		t.Errorf("the folder has %d bytes, %v", n, err)
	}
}

func TestPruners(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "kopia"), nil, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", t.TempDir())
	names := func(o options) string {
		tools, notes := pruners(o, "self")
		var all []string
		for _, p := range tools {
			all = append(all, p.name)
		}
		return fmt.Sprintf("%s, %d notes", strings.Join(all, " "), len(notes))
	}
	if got, want := names(options{peers: dir}), "shale kopia, 2 notes"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := names(options{}), "shale, 2 notes"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// shale's own steps, without processes: what is freed is the dead half.
func TestPeerSteps(t *testing.T) {
	o := peerVolume(options{peerChunks: 800, stride: 128 << 10, dir: t.TempDir()})
	step := func(name string) {
		t.Helper()
		if err := phase(t.Context(), o, name, nil); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for range o.backups {
		step(stepBackup)
	}
	before, err := folderBytes(o.path("repo"))
	if err != nil {
		t.Fatal(err)
	}
	step(stepForget)
	step(stepPrune)
	after, err := folderBytes(o.path("repo"))
	if err != nil {
		t.Fatal(err)
	}
	if f := freed(before, after); f < 0.45 || f > 0.55 {
		t.Errorf("%d bytes before the prune, %d after it: %.2f freed", before, after, f)
	}
	if err := phase(t.Context(), o, stepPrune, []string{"more"}); err == nil {
		t.Error("an argument too many is taken")
	}
}

func TestPrintPruned(t *testing.T) {
	var out bytes.Buffer
	a := &pruned{name: "shale", prune: cost{wall: time.Second, cpu: 2 * time.Second, peakKiB: 64 << 10},
		chunksBefore: 8, chunksAfter: 4, storedBefore: 64 << 20, storedAfter: 16 << 20}
	b := &pruned{name: "restic", forget: cost{wall: time.Second / 2}, prune: cost{wall: 3 * time.Second, cpu: 5 * time.Second}, did: "`f`; `p`"}
	printPruned(&out, peerVolume(options{peerChunks: 8}), []*pruned{a, b}, []string{"kopia is not measured"})
	for _, want := range []string{
		"8 chunks of 4 KiB in 3 backups",
		"| shale | 0.00 | 1.00 | 2.00 | 1.0 | 64 | 8 to 4 | 64 to 16 | 75 % |\n",
		"| restic | 0.50 | 3.00 | 5.00 | 2.5 | 0 | 0 to 0 | 0 to 0 | 0 % |\n",
		"- restic: `f`; `p`\n",
		"- kopia is not measured\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, &out)
		}
	}
}
