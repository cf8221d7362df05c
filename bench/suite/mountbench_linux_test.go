package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestRandomReads(t *testing.T) {
	img := make([]byte, 1<<20)
	piece{kind: contentRandom, seed: 1}.fill(img)
	got, err := randomReads(t.Context(), bytes.NewReader(img), img, 4, 0.05)
	if err != nil || got.rate < 100 || got.p50 > got.p99 {
		t.Errorf("%+v, %v", got, err)
	}
	wrong := bytes.Clone(img)
	for i := 0; i < len(wrong); i += 4096 {
		wrong[i] ^= 1
	}
	if _, err := randomReads(t.Context(), bytes.NewReader(wrong), img, 1, 0.05); err == nil || !strings.Contains(err.Error(), "not what was backed up") {
		t.Errorf("wrong bytes: %v", err)
	}
	if rate, err := sequentialRead(t.Context(), bytes.NewReader(img)); err != nil || rate <= 0 {
		t.Errorf("%v, %v", rate, err)
	}
}

// TestServed: a server is waited for, read, unmounted, and its account is there.
func TestServed(t *testing.T) {
	if _, err := exec.LookPath("fusermount3"); err != nil {
		t.Skip(err)
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	img := make([]byte, 2<<20+100)
	piece{kind: contentText, seed: 1}.fill(img)
	file, mnt := filepath.Join(dir, "file"), filepath.Join(dir, "mnt")
	if err := os.WriteFile(file, img, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &suite{w: &workload{v2: file}, o: options{seconds: 0.1}}
	got, err := s.readMount(t.Context(), command{argv: []string{self, plainFuseArg, file, mnt}}, mnt, plainFuseFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mountMetrics {
		if v, ok := got[m]; !ok || v < 0 {
			t.Errorf("%s is %v", m, v)
		}
	}
	if isMountPoint(mnt) {
		t.Error("still mounted")
	}
	if _, err := s.readMount(t.Context(), command{argv: []string{self, plainFuseArg, filepath.Join(dir, "none"), mnt}}, mnt, plainFuseFile); err == nil {
		t.Error("a server that cannot start: no error")
	}
}
