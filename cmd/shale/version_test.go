package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

func TestVersion(t *testing.T) {
	s := newSession(t)
	text := s.run(0, "version").out
	says(t, text, "shale ", runtime.Version(), runtime.GOARCH)
	if flag := s.run(0, "--version").out; flag != text {
		t.Errorf("--version prints %q, version %q", flag, text)
	}
	var v version
	s.json(0, &v, "version")
	if v.Go != runtime.Version() || v.Platform != runtime.GOOS+"/"+runtime.GOARCH || v.Version == "" {
		t.Errorf("version is %+v", v)
	}
	if s.run(0, "--version", "--json").out != s.run(0, "version", "--json").out {
		t.Error("--version --json is not that of version")
	}
}

func TestVersionOfBuild(t *testing.T) {
	t.Parallel()
	info := &debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}, Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "0123456789abcdef0123"}, {Key: "vcs.time", Value: "2026-03-04T05:06:07Z"}, {Key: "vcs.modified", Value: "true"},
	}}
	v := versionOf(info)
	if v.Time == nil || !v.Time.Equal(time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)) {
		t.Errorf("time is %v", v.Time)
	}
	says(t, v.String(), "shale v1.2.3, commit 0123456789ab with changes, go")
	b, err := json.Marshal(versionOf(&debug.BuildInfo{}))
	if err != nil {
		t.Fatal(err)
	}
	says(t, string(b), `"version":"(devel)"`)
	if strings.Contains(string(b), "revision") {
		t.Errorf("a build without a commit is %s", b)
	}
}

func TestManualPages(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1767323045")
	s := &session{t, t.TempDir()}
	dir := s.path("man/man1")
	if out := s.run(0, "internal-man", dir).out; out != dir+"\n" {
		t.Errorf("internal-man prints %q", out)
	}
	for page, words := range map[string][]string{
		"shale.1":               {"SHALE", "Exit codes", "SHALE_CACHE_DIR", "Jan 2026"},
		"shale-backup-create.1": {"thin-metadata", "EXAMPLE", "shale-backup(1)"},
		"shale-repo-check.1":    {"DESCRIPTION", "stored", "Exit code 3"},
		"shale-thin-delta.1":    {"thin1"},
	} {
		says(t, string(s.read(filepath.Join(dir, page))), words...)
	}
	pages, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		if strings.Contains(p.Name(), "internal") {
			t.Errorf("there is a page %s of a hidden command", p.Name())
		}
	}
	says(t, s.run(1, "internal-man", filepath.Join(s.image("file", nil), "below")).talk, "not a directory")
}

func TestCompletion(t *testing.T) {
	s := newSession(t)
	says(t, s.run(0, "completion", "bash").out, "__start_shale", "complete -o default")
	says(t, s.run(0, "completion", "zsh").out, "#compdef shale")
	says(t, s.run(0, "completion", "fish").out, "complete -c shale")
	says(t, s.run(0, "__complete", "backup", "").out, "create\t", "restore\t")
	says(t, s.run(0, "__complete", "repo", "init", "--compression", "").out, "zstd:1", "none")
	says(t, s.run(0, "__complete", "backup", "create", "--thin-").out, "--thin-metadata")
}
