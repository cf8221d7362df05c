package backend_test

import (
	"path"
	"strings"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
)

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"config": true, "packs/data/ab/cd.pack": true, "a-b_c.d": true, "-": true, "_": true, "0": true, "a..b": true, "a.": true, "a./b": true,
		strings.Repeat("a", 200): true, strings.Repeat("a", 201): false,
		strings.Repeat("a/", 255) + "aa": true, strings.Repeat("a/", 255) + "aaa": false,
		"": false, "/": false, "/a": false, "a/": false, "a//b": false,
		".": false, "..": false, ".a": false, "a/.b": false, "a/..": false, "../a": false,
		"A": false, "a b": false, "a\x00": false, "a\n": false, "a\\b": false, "é": false, "a:b": false, "a*": false,
	} {
		if got := backend.ValidName(name); got != want {
			t.Errorf("ValidName(%q): got %t, want %t", name, got, want)
		}
	}
}

// What the file backend relies on: joining a valid name to a folder stays in it and is in its shortest form.
func FuzzValidName(f *testing.F) {
	f.Add("a/../b")
	f.Add("packs/ab")
	f.Add("a/.b")
	f.Fuzz(func(t *testing.T, name string) {
		if !backend.ValidName(name) {
			return
		}
		if joined := "/root/" + name; path.Clean(joined) != joined || strings.Contains(joined, "/.") {
			t.Fatalf("%q is valid, but its path is %q", name, path.Clean(joined))
		}
	})
}
