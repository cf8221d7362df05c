package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

func TestBackupLife(t *testing.T) {
	s := newSession(t)
	repo := s.init()
	content := noise(1, 3<<20)
	img := s.image("img", content)
	made := s.run(0, "backup", "create", img, "--dest", repo, "--volume", "db", "--label", "kind=nightly", "--label", "note=a=b")
	says(t, made.talk, "everything was read: there is no earlier backup", "3.0 MiB of 3.0 MiB in use; read 3.0 MiB, new 3.0 MiB")
	if strings.Count(made.out, "\n") != 1 {
		t.Errorf("create prints more than the URL: %q", made.out)
	}
	url := lastLine(made.out)

	rec := s.inspect(url)
	if rec.Volume != "db" || rec.Blob.Size != 3<<20 || !reflect.DeepEqual(rec.Labels, map[string]string{"kind": "nightly", "note": "a=b"}) {
		t.Errorf("record is %+v", rec)
	}
	if want := "vfs://" + repo + "?backup=" + rec.ID + "&volume=db"; url != want {
		t.Errorf("create printed %q, want %q", url, want)
	}
	if text := s.run(0, "backup", "inspect", url).out; text != s.run(0, "backup", "inspect", url, "--json").out {
		t.Errorf("inspect is JSON with and without --json, not %s", text)
	}

	listed := s.run(0, "backup", "list", repo)
	lines := strings.Split(strings.TrimSpace(listed.out), "\n")
	if len(lines) != 2 || strings.Fields(lines[0])[0] != "VOLUME" || !strings.HasPrefix(lines[1], "db ") || !strings.HasSuffix(lines[1], rec.ID) {
		t.Errorf("list prints\n%s", listed.out)
	}
	says(t, s.run(0, "backup", "verify", url).out, rec.ID+": 3.0 MiB of 3.0 MiB verified")

	target := s.path("restored")
	restored := s.run(0, "backup", "restore", url, target)
	says(t, restored.talk, "3.0 MiB of 3.0 MiB in use; fetched 3.0 MiB, kept 0 B")
	if lastLine(restored.out) != target || !bytes.Equal(s.read(target), content) {
		t.Errorf("restored wrongly to %q", restored.out)
	}

	if out := s.run(0, "backup", "delete", url).out; out != url+"\n" {
		t.Errorf("delete prints %q", out)
	}
	if out := s.run(0, "backup", "list", repo, "--json").out; out != "[]\n" {
		t.Errorf("after delete list prints %q", out)
	}
	says(t, s.run(1, "backup", "delete", url).talk, "not found in the repository", "shale backup list vfs://"+repo)
}

// The URL that create prints is taken by every command that takes a backup or a repository.
func TestCreatedURLIsAccepted(t *testing.T) {
	s := newSession(t)
	url := s.create(s.init(), s.image("img", noise(2, 1<<20)), "v.1_x-2")
	for _, args := range [][]string{
		{"backup", "inspect", url},
		{"backup", "verify", url},
		{"backup", "list", url},
		{"backup", "diff", url, url},
		{"backup", "restore", url, s.path("out")},
		{"backup", "create", s.path("img"), "--dest", url, "--volume", "other"},
		{"repo", "stats", url},
		{"repo", "check", url},
		{"repo", "reindex", url},
		{"backup", "delete", url},
	} {
		s.run(0, args...)
	}
}

func TestURLForms(t *testing.T) {
	s := &session{t, t.TempDir()} // not parallel, for Chdir
	url := s.create(s.init(), s.image("img", noise(3, 1<<20)), "db")
	l, err := engine.ParseLocation(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(s.dir)
	for _, form := range []string{
		l.Path + "?backup=" + l.Backup + "&volume=db",
		"repo?volume=db&backup=" + l.Backup,
		"./repo/?backup=" + l.Backup + "&volume=db",
		"vfs://" + l.Path + `?backup=` + l.Backup + `\u0026volume=db`,
		"vfs://" + l.Path + "?backup=" + l.Backup + "u0026volume=db",
	} {
		if got := s.inspect(form).ID; got != l.Backup {
			t.Errorf("%s is backup %s, want %s", form, got, l.Backup)
		}
	}
	for _, form := range []string{l.Path, "vfs://" + l.Path, "repo", "../" + filepath.Base(s.dir) + "/repo/"} {
		says(t, s.run(0, "backup", "list", form).out, l.Backup)
	}
	for _, c := range []struct{ url, says string }{
		{"ftp://host/x", "scheme \"ftp\" is not known"},
		{"vfs://repo", "three slashes"},
		{"repo?backup=x", "?backup=ID&volume=NAME"},
		{"", "empty"},
	} {
		says(t, s.run(2, "backup", "list", c.url).talk, c.says, "See 'shale backup list --help'")
	}
}

func TestBaseFlags(t *testing.T) {
	s := newSession(t)
	repo := s.init("--compression", "none")
	content := noise(4, 4<<20)
	img := s.image("img", content)
	first := s.inspect(s.create(repo, img, "db"))
	firstURL := engine.Location{Path: repo}.Of(&first).String()

	s.image("img", append(content[:4<<20:4<<20], noise(5, 1<<20)...))
	for _, base := range []string{first.ID, firstURL} {
		url := s.create(repo, img, "db", "--base", base)
		if again := s.inspect(url); again.Blob.Size != 5<<20 || again.Blob.Root == first.Blob.Root {
			t.Errorf("--base %s made %+v", base, again)
		}
	}
	var full struct {
		URL, Reason string
		Writer      chunkstore.WriterStats
	}
	s.json(0, &full, "backup", "create", img, "--dest", repo, "--volume", "db", "--full")
	if full.Reason == "" || full.Writer.NewChunks != 0 || s.inspect(full.URL).Parent != "" {
		t.Errorf("--full of what is stored gave %+v", full)
	}
	says(t, s.run(1, "backup", "create", img, "--dest", repo, "--volume", "db", "--base", "backup-0000000000000000").talk,
		"backup-0000000000000000 of volume db: not found", "shale backup list")

	elsewhere := engine.Location{Path: s.path("elsewhere"), Volume: "db", Backup: first.ID}
	for base, want := range map[string]string{
		strings.Replace(firstURL, "=db", "=web", 1): "of volume web, not db",
		elsewhere.String():                          "another repository, vfs://" + elsewhere.Path,
		repo + "?backup=x":                          "--base: invalid URL",
	} {
		says(t, s.run(2, "backup", "create", img, "--dest", repo, "--volume", "db", "--base", base).talk, want)
	}
}

func TestCompressionFlags(t *testing.T) {
	s := newSession(t)
	repo := s.init("--compression", "none")
	letters := func(seed uint64) []byte { // half of what they take is wasted
		b := noise(seed, 1<<20)
		for i := range b {
			b[i] &= 15
		}
		return b
	}
	img := s.image("img", letters(6))
	var plain, packed struct{ Writer chunkstore.WriterStats }
	s.json(0, &plain, "backup", "create", img, "--dest", repo, "--volume", "db")
	s.image("img", letters(7))
	s.json(0, &packed, "backup", "create", img, "--dest", repo, "--volume", "db", "--compression", "zstd:3")
	if plain.Writer.Stored < 1<<20 || packed.Writer.Stored > 600<<10 {
		t.Errorf("zstd:3 stored %+v, none %+v", packed.Writer, plain.Writer)
	}
	var stats chunkstore.RepositoryStats
	s.json(0, &stats, "repo", "stats", repo)
	if stats.Compression != "none" || stats.Backups != 2 {
		t.Errorf("stats are %+v", stats)
	}
}

func TestListOfVolumes(t *testing.T) {
	s := newSession(t)
	repo, img := s.init(), s.image("img", noise(8, 1<<20))
	a, b := s.create(repo, img, "a"), s.create(repo, img, "b")
	urls := func(args ...string) (urls []string) {
		var list []listedBackup
		s.json(0, &list, append([]string{"backup", "list"}, args...)...)
		for _, l := range list {
			urls = append(urls, l.URL)
		}
		return urls
	}
	for _, c := range []struct {
		args, want []string
	}{
		{[]string{repo}, []string{a, b}},
		{[]string{repo, "--volume-name", "b"}, []string{b}},
		{[]string{repo, "--volume-name", "nosuch"}, nil},
		{[]string{a}, []string{a}},
	} {
		if got := urls(c.args...); !reflect.DeepEqual(got, c.want) {
			t.Errorf("list %v gives %v, want %v", c.args, got, c.want)
		}
	}
}

func TestDiff(t *testing.T) {
	s := newSession(t)
	repo := s.init()
	content := noise(9, 8<<20)
	img := s.image("img", content)
	old := s.create(repo, img, "db")
	const at = 5<<20 + 100
	content[at] ^= 1
	s.image("img", content)
	now := s.create(repo, img, "db")

	var d diffAnswer
	s.json(0, &d, "backup", "diff", old, now)
	if len(d.Ranges) != 1 || d.Ranges[0].Off > at || d.Ranges[0].Off+d.Ranges[0].Len <= at || d.Bytes != d.Ranges[0].Len || d.Bytes > 1<<20 {
		t.Errorf("one changed byte gives %+v", d)
	}
	text := s.run(0, "backup", "diff", old, now)
	says(t, text.talk, "differ")
	if strings.Count(text.out, "\n") != 1 || len(strings.Fields(text.out)) != 2 {
		t.Errorf("diff prints %q", text.out)
	}
	s.json(0, &d, "backup", "diff", old, old)
	if len(d.Ranges) != 0 {
		t.Errorf("a backup differs from itself in %+v", d.Ranges)
	}
	other := strings.Replace(old, "/repo?", "/elsewhere?", 1)
	says(t, s.run(2, "backup", "diff", old, other).talk, "both must be backups in one repository")
	says(t, s.run(2, "backup", "diff", old, repo).talk, "names a repository, not a backup")
}

func TestRestoreFlags(t *testing.T) {
	s := newSession(t)
	repo := s.init()
	content := noise(10, 8<<20)
	img := s.image("img", content)
	monday := s.create(repo, img, "db")
	changed := bytes.Clone(content)
	copy(changed[6<<20:], noise(11, 64<<10))
	clear(changed[1<<20 : 2<<20]) // a hole
	s.image("img", changed)
	tuesday := s.create(repo, img, "db")
	target := s.path("target")

	restore := func(code int, want []byte, args ...string) engine.RestoreResult {
		t.Helper()
		var res engine.RestoreResult
		s.json(code, &res, append([]string{"backup", "restore"}, args...)...)
		if want != nil && !bytes.Equal(s.read(target), want) {
			t.Errorf("restore %v gave other bytes", args)
		}
		return res
	}
	restore(0, content, monday, target)
	says(t, s.run(1, "backup", "restore", tuesday, target).talk, "target exists", "--overwrite")
	if res := restore(0, changed, tuesday, target, "--overwrite", "--verify"); res.Fetched == 0 || res.Fetched > 1<<20 || res.Kept < 6<<20 {
		t.Errorf("--overwrite of what is mostly there: %+v", res)
	}
	if res := restore(0, content, monday, target, "--overwrite", "--holds", tuesday); res.Fetched == 0 || res.Fetched > 3<<20 {
		t.Errorf("--holds URL: %+v", res)
	}
	if res := restore(0, changed, tuesday, target, "--overwrite", "--holds", s.inspect(monday).ID); res.Fetched == 0 || res.Fetched > 1<<20 {
		t.Errorf("--holds ID: %+v", res)
	}
	if err := os.Truncate(target, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(target, 8<<20); err != nil {
		t.Fatal(err)
	}
	if res := restore(0, changed, tuesday, target, "--overwrite", "--blank"); res.Fetched != res.Data || res.Kept != 0 {
		t.Errorf("--blank: %+v", res)
	}

	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{2, "exclude each other", []string{tuesday, target, "--blank", "--holds", monday}},
		{2, "another repository", []string{tuesday, target, "--overwrite", "--holds", strings.Replace(monday, "/repo?", "/x?", 1)}},
		{2, "--holds: invalid URL", []string{tuesday, target, "--overwrite", "--holds", repo + "?volume=db"}},
		{1, "not found in the repository", []string{tuesday, target, "--overwrite", "--holds", "backup-0000000000000000"}},
		{1, "neither a file nor a block device", []string{tuesday, s.dir}},
		{1, "no such file", []string{tuesday, s.path("nodir/target")}},
		{2, "names a repository, not a backup", []string{repo, target}},
	} {
		says(t, s.run(c.code, append([]string{"backup", "restore"}, c.args...)...).talk, c.says)
	}
}

// A device of a captured pool is backed up from its metadata and data.
func TestCreateFromThinPool(t *testing.T) {
	s := newSession(t)
	repo := s.init()
	meta := thinMeta(t, "basic-ext4", "meta.img.zst")
	data := s.image("data", thinFixture(t, "basic-ext4", "data.img.zst"))
	args := []string{"backup", "create", "--dest", repo, "--volume", "db", "--thin-metadata", meta, "--thin-data", data, "--quiet"}
	first := lastLine(s.run(0, append(args, "--thin-id", "2")...).out)
	second := lastLine(s.run(0, append(args, "--thin-id", "3", "--thin-base", "2")...).out)
	full := lastLine(s.run(0, append(args, "--thin-id", "3", "--full")...).out)
	a, b, c := s.inspect(first), s.inspect(second), s.inspect(full)
	if b.Parent != a.ID || b.Counts.Read >= c.Counts.Read || b.Blob.Root != c.Blob.Root {
		t.Errorf("incremental %+v, full %+v", b, c)
	}
	says(t, s.run(1, append(args, "--thin-id", "77")...).talk, "no such thin device", "shale thin devices META")
	needsCheck := thinMeta(t, "damaged", "needs-check.img.zst")
	args[7] = needsCheck
	says(t, s.run(1, append(args, "--thin-id", "2")...).talk, "needs_check", "--allow-needs-check")
	args[7] = data
	says(t, s.run(1, append(args, "--thin-id", "2")...).talk, "not the metadata of a thin pool", "_tmeta")
	args[7] = thinMeta(t, "damaged", "superblock-bad-checksum.img.zst")
	says(t, s.run(3, append(args, "--thin-id", "2")...).talk, "metadata block 0", "thin_check")
}
