package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestUsageErrors(t *testing.T) {
	s := newSession(t)
	repo, img := s.init(), s.image("img", noise(20, 1<<20))
	create := []string{"backup", "create", img, "--dest", repo, "--volume", "db"}
	thinCreate := []string{"backup", "create", "--dest", repo, "--volume", "db"}
	with := func(args []string, more ...string) []string { return append(args[:len(args):len(args)], more...) }
	for _, c := range []struct {
		args []string
		says string
		see  string // whose help is pointed to
	}{
		{[]string{"nosuch"}, `unknown command "nosuch"`, "shale"},
		{[]string{"bakcup"}, "did you mean backup?", "shale"},
		{[]string{"--nosuch"}, "unknown flag: --nosuch", "shale"},
		{[]string{"--parallel", "many"}, "invalid argument", "shale"},
		{[]string{"--version", "more"}, `unknown command "more"`, "shale"},
		{[]string{"repo", "stats", repo, "--parallel", "-1"}, "--parallel is -1", "shale repo stats"},
		{[]string{"repo", "stats", repo, "--limit-upload", "fast"}, `invalid argument "fast" for "--limit-upload"`, "shale repo stats"},
		{[]string{"repo", "stats", repo, "--limit-download", "-1M"}, "bytes per second are a number with K, M, G or T", "shale repo stats"},
		{[]string{"repo", "stats", repo, "--limit-upload", "10X"}, "bytes per second", "shale repo stats"},
		{[]string{"repo", "stats", repo, "--limit-upload", "9999999T"}, "bytes per second", "shale repo stats"},
		{[]string{"repo", "stats", repo, "--limit-upload", "NaN"}, "bytes per second", "shale repo stats"},
		{[]string{"repo", "stats", repo, "--limit-read", "10M"}, "unknown flag: --limit-read", "shale repo stats"},
		{[]string{"repo", "stats", repo, "--nice", "20"}, "--nice is 20, want -20 to 19", "shale repo stats"},
		{[]string{"repo", "stats", repo, "--ionice", "slow"}, "the class is idle, best-effort or realtime", "shale repo stats"},
		{[]string{"repo", "stats", repo, "--ionice", "best-effort:8"}, "have levels from 0", "shale repo stats"},
		{[]string{"repo", "stats", repo, "--ionice", "idle:1"}, "have levels from 0", "shale repo stats"},
		{[]string{"help", "nosuch"}, `unknown command "nosuch"`, "shale"},
		{[]string{"help", "backup", "crate"}, "did you mean create?", "shale backup"},
		{[]string{"completion", "csh"}, `unknown command "csh"`, "shale completion"},
		{[]string{"version", "more"}, "expects no arguments, got 1", "shale version"},

		{[]string{"repo", "chekc"}, "did you mean check?", "shale repo"},
		{[]string{"repo", "nosuch", "--json"}, `unknown command "nosuch"`, "shale repo"},
		{[]string{"repo", "init"}, "expects URL, got 0", "shale repo init"},
		{[]string{"repo", "init", "a", "b"}, "expects URL, got 2", "shale repo init"},
		{[]string{"repo", "init", s.path("x"), "--nosuch"}, "unknown flag", "shale repo init"},
		{[]string{"repo", "init", s.path("x"), "--compression", "gzip"}, `--compression "gzip": it is one of none, s2`, "shale repo init"},
		{[]string{"repo", "init", s.path("x"), "--pack-size", "0"}, "--pack-size is 0 MiB, want 1 to 256", "shale repo init"},
		{[]string{"repo", "init", s.path("x"), "--pack-size", "257"}, "want 1 to 256", "shale repo init"},
		{[]string{"repo", "init", "/x?backup=a&volume=b"}, "names a backup", "shale repo init"},
		{[]string{"repo", "stats"}, "expects URL", "shale repo stats"},
		{[]string{"repo", "check", repo, repo}, "expects URL, got 2", "shale repo check"},
		{[]string{"repo", "reindex"}, "expects URL", "shale repo reindex"},
		{[]string{"repo", "reindex", "ftp://x/y"}, `scheme "ftp"`, "shale repo reindex"},

		{[]string{"backup", "lst"}, "did you mean list?", "shale backup"},
		{[]string{"backup", "--dest", repo}, "unknown flag: --dest", "shale backup"},
		{[]string{"backup", "create", img}, "--dest and --volume are required", "shale backup create"},
		{[]string{"backup", "create", img, "--dest", repo}, "--dest and --volume are required", "shale backup create"},
		{with(create, "more"), "expects one SOURCE, got 2", "shale backup create"},
		{with(create, "--compression", "zstd:5"), `--compression "zstd:5"`, "shale backup create"},
		{with(create, "--label", "nightly"), "KEY=VALUE is expected", "shale backup create"},
		{with(create, "--label", "=x"), "KEY=VALUE is expected", "shale backup create"},
		{with(create, "--base", "backup-1", "--full"), "--base and --full exclude each other", "shale backup create"},
		{with(create, "--thin-id", "3"), "exclude each other", "shale backup create"},
		{with(create, "--no-snapshot"), "--no-snapshot is for thin volumes", "shale backup create"},
		{thinCreate, "expects SOURCE", "shale backup create"},
		{with(thinCreate, "--thin-id", "3"), "takes --thin-metadata, --thin-data and --thin-id", "shale backup create"},
		{with(thinCreate, "--thin-metadata", "m", "--thin-data", "d"), "takes --thin-metadata, --thin-data and --thin-id", "shale backup create"},
		{with(thinCreate, "--thin-metadata", "m", "--thin-id", "3"), "takes --thin-metadata, --thin-data and --thin-id", "shale backup create"},
		{with(thinCreate, "--thin-metadata", "m", "--thin-data", "d", "--thin-id", "16777216"), "IDs have 24 bits", "shale backup create"},
		{with(thinCreate, "--thin-metadata", "m", "--thin-data", "d", "--thin-id", "3", "--thin-base", "16777216"), "IDs have 24 bits", "shale backup create"},
		{with(thinCreate, "--thin-metadata", "m", "--thin-data", "d", "--thin-id", "3", "--no-snapshot"), "--no-snapshot is for SOURCE", "shale backup create"},
		{[]string{"backup", "list"}, "expects URL", "shale backup list"},
		{[]string{"backup", "inspect", repo}, "names a repository, not a backup", "shale backup inspect"},
		{[]string{"backup", "delete", repo}, "names a repository, not a backup", "shale backup delete"},
		{[]string{"backup", "verify", repo}, "names a repository, not a backup", "shale backup verify"},
		{[]string{"backup", "restore", repo}, "expects BACKUP-URL TARGET, got 1", "shale backup restore"},
		{[]string{"backup", "diff", repo}, "expects BACKUP-URL BACKUP-URL, got 1", "shale backup diff"},
		{[]string{"backup", "mount", repo}, "expects URL DIR, got 1", "shale backup mount"},
		{[]string{"backup", "mount", repo, s.dir, "--cache-size", "3"}, "--cache-size is 3 MiB, want 4 to", "shale backup mount"},
		{[]string{"backup", "mount", repo, s.dir, "--cache-size", "9999999999999"}, "want 4 to", "shale backup mount"},
		{[]string{"internal-man"}, "expects DIR", "shale internal-man"},
	} {
		got := s.run(2, c.args...)
		says(t, got.talk, c.says, "See '"+c.see+" --help'.\n")
		if strings.Contains(strings.Join(c.args, " "), "--json") {
			continue // TestFailuresAsJSON
		}
		if got.out != "" {
			t.Errorf("%v prints %q to stdout", c.args, got.out)
		}
	}
	if _, err := os.Stat(s.path("x")); err == nil {
		t.Error("a refused repo init made a folder")
	}
}

func TestVolumeNames(t *testing.T) {
	s := newSession(t)
	repo, img := s.init(), s.image("img", noise(21, 1<<20))
	for _, name := range []string{"..", ".x", "-x", "a/b", "a b", "ä", "a\n", "a&b", strings.Repeat("n", 256)} {
		says(t, s.run(2, "backup", "create", img, "--dest", repo, "--volume="+name).talk, "a volume's name has letters, digits")
	}
	for _, name := range []string{"x", "0", "a.b_c-d", strings.Repeat("n", 255)} {
		if got := s.inspect(s.create(repo, img, name)).Volume; got != name {
			t.Errorf("volume %q is called %q", name, got)
		}
	}
}

func TestFailuresAsJSON(t *testing.T) {
	s := newSession(t)
	repo := s.init()
	for _, c := range []struct {
		code         int
		says, advice string
		args         []string
	}{
		{1, "no repository here", "'shale repo init vfs://" + s.path("none") + "'", []string{"repo", "stats", s.path("none")}},
		{1, "there is a repository already", "another folder", []string{"repo", "init", repo}},
		{1, "not found in the repository", "'shale backup list", []string{"backup", "inspect", repo + "?backup=backup-0123456789abcdef&volume=v"}},
		{2, "expects URL", "", []string{"repo", "check"}},
		{2, "unknown flag: --bad", "", []string{"repo", "check", "--bad"}}, // --json comes after it and is not parsed
		{2, `unknown command "nosuch"`, "", []string{"nosuch"}},
		{2, "invalid URL", "", []string{"backup", "list", "s3://b/c"}},
	} {
		got := s.run(c.code, append(c.args, "--json")...)
		var f failure
		if err := json.Unmarshal([]byte(got.out), &f); err != nil {
			t.Errorf("%v prints %q: %v", c.args, got.out, err)
			continue
		}
		says(t, f.Error, c.says)
		says(t, f.Advice, c.advice)
		says(t, got.talk, "shale: "+f.Error+"\n"+f.Advice)
	}
	if got := s.run(2, "repo", "check", "--bad", "--", "--json"); got.out != "" {
		t.Errorf("an argument --json is taken for the flag: %q", got.out)
	}
}

// Commands that fail on a repository say what to do about it.
func TestRepositoryFailures(t *testing.T) {
	s := newSession(t)
	repo, img := s.init(), s.image("img", noise(22, 1<<20))
	none := s.path("it's not")
	for _, args := range [][]string{
		{"repo", "stats", none}, {"repo", "check", none}, {"repo", "reindex", none}, {"backup", "list", none},
		{"backup", "create", img, "--dest", none, "--volume", "v"}, {"backup", "mount", none, s.dir}, {"backup", "mount", none, s.dir, "--foreground"},
		{"backup", "verify", none + "?backup=backup-0123456789abcdef&volume=v"},
	} {
		says(t, s.run(1, args...).talk, none+": no repository here", `shale repo init 'vfs://`+s.path(`it'\''s not`)+`' makes one.`)
	}
	if _, err := os.Stat(none); err == nil {
		t.Error("a command that only opens made a folder")
	}
	if err := os.Mkdir(s.path("empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	says(t, s.run(1, "repo", "stats", s.path("empty")).talk, "no repository here")
	says(t, s.run(1, "repo", "stats", img).talk, "not a directory")
	says(t, s.run(1, "repo", "init", img).talk, "not a directory")

	for _, cache := range []string{img, filepath.Join(img, "below"), "/proc/nosuch"} {
		got := s.run(1, "repo", "stats", repo, "--cache-dir", cache)
		says(t, got.talk, "cache folder: mkdir ", "--cache-dir or $SHALE_CACHE_DIR names another")
	}
	says(t, s.run(1, "backup", "create", s.path("nosuch"), "--dest", repo, "--volume", "v").talk, s.path("nosuch"), "no such file")
	says(t, s.run(1, "backup", "create", s.dir, "--dest", repo, "--volume", "v").talk, s.dir)
}

func TestCacheDir(t *testing.T) {
	dir := t.TempDir()
	s := &session{t, dir}
	repo := s.init()
	t.Setenv(cacheEnv, s.path("from env"))
	a := &app{}
	if o, err := a.repositoryOptions(); err != nil || o.CacheDir != s.path("from env") {
		t.Errorf("$%s: %q, %v", cacheEnv, o.CacheDir, err)
	}
	a.cacheDir = s.path("from flag")
	if o, err := a.repositoryOptions(); err != nil || o.CacheDir != s.path("from flag") {
		t.Errorf("--cache-dir: %q, %v", o.CacheDir, err)
	}
	url := s.create(repo, s.image("img", noise(23, 1<<20)), "db")
	for range 2 { // what is deleted is made again
		if err := os.RemoveAll(s.path("cache")); err != nil {
			t.Fatal(err)
		}
		says(t, s.run(0, "backup", "verify", url).out, "1.0 MiB of 1.0 MiB verified")
	}
}

// Each command's help has what a manual page has.
func TestHelp(t *testing.T) {
	t.Parallel()
	var walk func(cmd *cobra.Command)
	n := 0
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			if sub.Name() != "completion" && sub.Name() != "help" {
				walk(sub)
			}
		}
		if cmd.Hidden {
			return
		}
		n++
		long := strings.ReplaceAll(cmd.Long, "\n", " ")
		switch {
		case cmd.Long == "" && !cmd.HasParent():
			t.Errorf("%s has no description", cmd.CommandPath())
		case cmd.Example == "" && !cmd.HasSubCommands():
			t.Errorf("%s has no example", cmd.CommandPath())
		case strings.HasSuffix(cmd.Short, "."):
			t.Errorf("%s: %q ends with a stop", cmd.CommandPath(), cmd.Short)
		case long != "" && !strings.HasPrefix(long, strings.SplitN(cmd.Short, ":", 2)[0][:8]):
			t.Errorf("%s is described as %q and %q", cmd.CommandPath(), cmd.Short, long)
		}
		for line := range strings.Lines(cmd.Long) {
			if len(line) > 145 {
				t.Errorf("%s: a line of %d letters: %s", cmd.CommandPath(), len(line), line)
			}
		}
	}
	walk(newRootCommand(&app{}))
	if n < 17 {
		t.Errorf("only %d commands were looked at", n)
	}

	s := &session{t, t.TempDir()}
	says(t, s.run(0).out, "Exit codes:", "SHALE_CACHE_DIR", "Available Commands:")
	says(t, s.run(0, "backup").out, "Available Commands:", "restore")
	flag, topic := s.run(0, "backup", "create", "--help").out, s.run(0, "help", "backup", "create").out
	says(t, flag, "--thin-metadata FILE", "Examples:")
	if flag != topic {
		t.Errorf("help topic differs from --help:\n%s\n%s", topic, flag)
	}
	if text := s.run(0).out; strings.Contains(text, "internal-") {
		t.Errorf("internal commands are shown:\n%s", text)
	}
}
