package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shalebackup/shale/chunkstore"
)

func TestCopyLife(t *testing.T) {
	s := newSession(t)
	repo, offsite := s.init(), s.path("offsite")
	s.run(0, "repo", "init", offsite, "--compression", "zstd:3", "--pack-size", "1")
	content := noise(50, 3<<20)
	first := s.create(repo, s.image("img", content), "db", "--label", "kind=nightly")
	content[2<<20] ^= 1
	second := s.create(repo, s.image("img", content), "db")

	got := s.run(0, "backup", "copy", first, offsite)
	rec, copied := s.inspect(first), s.inspect(lastLine(got.out))
	says(t, got.talk, "copied whole: 3.0 MiB of 3.0 MiB in use; read 3.0 MiB, new 3.0 MiB", "transfer: up 3.0 MiB")
	if got.out != "vfs://"+offsite+"?backup="+rec.ID+"&volume=db\n" || copied.Labels["kind"] != "nightly" || !copied.Time.Equal(rec.Time) ||
		copied.Origin == nil || copied.Origin.Backup != rec.ID || copied.Blob.Root == rec.Blob.Root {
		t.Errorf("copied to %q: %+v", got.out, copied)
	}
	again := s.run(0, "backup", "copy", first, offsite)
	says(t, again.talk, "it is there already: nothing was copied")
	if again.out != got.out {
		t.Errorf("again it prints %q", again.out)
	}
	next := s.run(0, "backup", "copy", second, offsite)
	says(t, next.talk, "compared with backup "+rec.ID)
	if b := s.inspect(lastLine(next.out)); b.Counts.Read > 1<<20 || b.Counts.New > 1<<20 {
		t.Errorf("the second copy cost %+v", b.Counts)
	}
	s.run(0, "backup", "restore", lastLine(next.out), s.path("out"))
	if !bytes.Equal(s.read(s.path("out")), content) {
		t.Error("the copy restores to something else")
	}
	content[1<<20] ^= 1
	s.create(offsite, s.image("img", content), "db")
	says(t, s.run(0, "repo", "sync", offsite, repo).out, "1 of 3 backups of 1 volume(s) copied, 2 were there")
	for _, r := range []string{repo, offsite} {
		s.run(0, "repo", "check", r, "--data")
	}
	if s.objects(s.path("cache"), "*/index"); len(s.objects(s.path("cache"), "*")) != 2 {
		t.Error("the two repositories do not have a cache each")
	}
}

func TestSyncCommand(t *testing.T) {
	s := newSession(t)
	repo, offsite := s.init(), s.path("offsite")
	s.run(0, "repo", "init", offsite)
	a := s.create(repo, s.image("a", noise(51, 1<<20)), "a")
	b := s.create(repo, s.image("b", noise(52, 1<<20)), "b")
	got := s.run(0, "repo", "sync", repo, offsite, "--volume", "b", "--compression", "none")
	if want := strings.Replace(b, repo, offsite, 1) + "\n1 of 1 backups of 1 volume(s) copied, 0 were there; read 1.0 MiB, stored 1.0 MiB\n"; got.out != want {
		t.Errorf("sync prints %q, want %q", got.out, want)
	}
	var answer syncAnswer
	s.json(0, &answer, "repo", "sync", repo, offsite)
	if answer.Volumes != 2 || answer.Backups != 2 || answer.Existed != 1 || len(answer.Copied) != 1 || answer.Copied[0].URL != strings.Replace(a, repo, offsite, 1) {
		t.Errorf("answer is %+v", answer)
	}

	s.run(0, "backup", "delete", strings.Replace(a, repo, offsite, 1))
	s.create(offsite, s.image("a", noise(51, 1<<20)), "a")
	got = s.run(0, "repo", "sync", repo, offsite, "--newer")
	says(t, got.talk, "1 older than the newest there, and left out")
	says(t, got.out, "0 of 1 backups of 2 volume(s) copied, 1 were there")

	missing := s.path("missing")
	says(t, s.run(1, "repo", "sync", repo, missing).talk, "no repository here", "'shale repo init vfs://"+missing+"'")
	says(t, s.run(1, "repo", "sync", repo, offsite, "--lock-for", "30d").talk, "no object locks")
	says(t, s.run(1, "backup", "copy", a, offsite, "--lock-for", "30d").talk, "no object locks")
	says(t, s.run(1, "repo", "sync", missing, repo).talk, "no repository here", "'shale repo init vfs://"+missing+"'")
	says(t, s.run(1, "backup", "copy", a, missing).talk, "no repository here", "'shale repo init vfs://"+missing+"'")
	says(t, s.run(1, "repo", "sync", repo, offsite, "--volume", "c").talk, "volume c: not found", "'shale backup list vfs://"+repo+"'")
	says(t, s.run(1, "backup", "copy", repo+"?backup=backup-0123456789abcdef&volume=a", offsite).talk, "not found", "'shale backup list vfs://"+repo+"'")
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"repo", "sync", repo}, "expects URL URL, got 1"},
		{[]string{"repo", "sync", a, offsite}, "names a backup: 'shale backup copy' copies one"},
		{[]string{"repo", "sync", repo, offsite, "--compression", "zip"}, `--compression "zip"`},
		{[]string{"repo", "sync", repo, offsite, "--lock-for", "0d"}, "--lock-for"},
		{[]string{"backup", "copy", a, offsite, "--lock-mode", "compliance"}, "--lock-mode is of use with --lock-for"},
		{[]string{"backup", "copy", a}, "expects BACKUP-URL URL, got 1"},
		{[]string{"backup", "copy", repo, offsite}, "names a repository, not a backup"},
		{[]string{"backup", "copy", a, offsite, "--compression", "zip"}, `--compression "zip"`},
	} {
		says(t, s.run(2, c.args...).talk, c.says, "See 'shale "+c.args[0]+" "+c.args[1]+" --help'")
	}
}

// Damage of the source is told as the source's, whichever command meets it; what is sound is copied.
func TestCopyDamage(t *testing.T) {
	s := newSession(t)
	repo, offsite := s.init("--compression", "none"), s.path("offsite")
	s.run(0, "repo", "init", offsite)
	bad := s.create(repo, s.image("a", noise(53, 1<<20)), "a")
	s.flip(s.objects(repo, "packs/data/*/*")[0], 1000)
	good := s.create(repo, s.image("b", noise(54, 1<<20)), "b")
	for _, args := range [][]string{{"backup", "copy", bad, offsite}, {"repo", "sync", repo, offsite}} {
		got := s.run(3, args...)
		says(t, got.out+got.talk, "read from "+repo, "packs/data/", "'shale repo check --stored vfs://"+repo+"'")
	}
	says(t, s.run(3, "repo", "sync", repo, offsite).out, "damaged, not copied: ", "0 of 2 backups of 2 volume(s) copied, 1 were there")
	s.flip(s.objects(repo, "volumes/*")[0], 60)
	says(t, s.run(3, "repo", "sync", repo, offsite).out, "damaged, but its backups were found: read from "+repo, "1 were there")
	s.run(0, "backup", "verify", strings.Replace(good, repo, offsite, 1))
	var list []chunkstore.Backup
	if s.json(0, &list, "backup", "list", offsite); len(list) != 1 {
		t.Errorf("%d backups were copied", len(list))
	}
}

// Two encrypted repositories with keys of their own, and a plain one beside them.
func TestCopyEncrypted(t *testing.T) {
	s := newSession(t)
	plain, sealed, other := s.init(), s.path("sealed"), s.path("other")
	content := noise(56, 1<<20)
	url := s.create(plain, s.image("a", content), "a")
	password := s.image("password", []byte("of sealed\n"))
	identity := writeIdentity(t, 1)
	s.run(0, "repo", "init", sealed, "--encrypt", "--password-file", password)
	s.run(0, "repo", "init", other, "--recipient", testRecipients[1])

	got := s.run(1, "backup", "copy", url, sealed, "--password-file", password)
	says(t, got.talk, "not encrypted", "--from-password-file and so on")
	s.run(0, "backup", "copy", url, sealed, "--password-file", password, "--from-allow-plain")
	says(t, s.run(1, "repo", "sync", plain, sealed).talk, "is encrypted", "--from-password-file and so on")

	says(t, s.run(1, "repo", "sync", sealed, other, "--identity-file", identity).talk, "wrong password, or no private key", "repo key list vfs://"+sealed)
	says(t, s.run(1, "repo", "sync", sealed, other, "--from-password-file", password).talk, other, "is encrypted")
	says(t, s.run(1, "repo", "sync", sealed, other, "--from-password-file", s.path("none"), "--identity-file", identity).talk, "--from-password-file")
	says(t, s.run(0, "repo", "sync", sealed, other, "--from-password-file", password, "--identity-file", identity).out, "1 of 1 backups")
	says(t, s.run(0, "repo", "sync", sealed, other, "--password-file", password, "--identity-file", identity).out, "0 of 1 backups") // both for both
	says(t, s.run(0, "repo", "sync", other, plain, "--from-identity-file", identity).out, "0 of 1 backups", "1 were there")
	s.run(0, "backup", "restore", strings.Replace(url, plain, other, 1), s.path("out"), "--identity-file", identity)
	if !bytes.Equal(s.read(s.path("out")), content) {
		t.Error("the copy's copy restores to something else")
	}
}

func TestSyncInterrupted(t *testing.T) {
	s := newSession(t)
	repo, offsite := s.init(), s.path("offsite")
	s.run(0, "repo", "init", offsite, "--pack-size", "1")
	url := s.create(repo, s.image("a", noise(55, 24<<20)), "a")
	sync := []string{"repo", "sync", repo, offsite}
	for _, args := range [][]string{{"backup", "copy", url, offsite}, sync} {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		says(t, s.runCtx(ctx, 130, args...).talk, "shale: interrupted")
	}
	got := s.interruptWhen(s.packsNoted, "backup", "copy", url, offsite)
	says(t, got.talk, "shale: interrupted: there is no copy; what was stored is kept, and not stored again next time\n")
	had := len(s.objects(offsite, "packs/data/*/*"))
	more := func() bool {
		packs, _ := filepath.Glob(filepath.Join(offsite, "packs", "data", "*", "*"))
		return len(packs) > had
	}
	got = s.interruptWhen(more, sync...)
	says(t, got.talk, "shale: interrupted: 0 backup(s) were copied; give the same command again to go on\n")
	if out := s.run(0, "backup", "list", offsite, "--json").out; out != "[]\n" {
		t.Errorf("an interrupted copy left the backup %s", out)
	}
	s.run(0, "repo", "check", offsite)

	got = s.run(0, sync...)
	says(t, got.talk, "took over ", " pack(s) that an interrupted run had stored")
	says(t, got.out, "1 of 1 backups")
	s.run(0, "repo", "check", offsite, "--data")
}
