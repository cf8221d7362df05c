package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

func TestDamagedData(t *testing.T) {
	s := newSession(t)
	repo := s.init("--pack-size", "1")
	content := noise(30, 6<<20)
	img := s.image("img", content)
	url := s.create(repo, img, "db")
	packs := s.objects(repo, "packs/data/*/*")
	s.flip(packs[0], 5000)
	object, err := filepath.Rel(repo, packs[0])
	if err != nil {
		t.Fatal(err)
	}

	s.run(0, "repo", "check", repo) // the structure is sound
	for _, level := range []string{"--stored", "--data"} {
		var rep chunkstore.CheckReport
		s.json(3, &rep, "repo", "check", repo, level)
		if len(rep.Damage) != 1 || rep.Damage[0].Object != object || len(rep.Damage[0].Touches) != 1 || rep.Damage[0].Touches[0].Volume != "db" {
			t.Errorf("%s reports %+v, want %s", level, rep.Damage, object)
		}
	}
	text := s.run(3, "repo", "check", repo, "--stored")
	says(t, text.out, "damaged: "+object, "lost: volume db backup backup-", "1 places damaged")
	says(t, text.talk, "damage found in 1 place(s)", "'shale repo repair vfs://"+repo+"'", "--from SOURCE")

	var rep engine.VerifyReport
	s.json(3, &rep, "backup", "verify", url)
	if len(rep.Damage) != 1 || rep.Read+rep.Damage[0].Len != rep.Data {
		t.Errorf("verify reports %+v", rep)
	}
	says(t, s.run(3, "backup", "verify", url).out, "damaged: ", "verified")
	says(t, s.run(3, "backup", "restore", url, s.path("out")).talk, object, "'shale repo check --stored")
	if _, err := os.Stat(s.path("out")); err == nil {
		t.Error("a restore of damaged bytes is there under its name")
	}

	// The advice works: from the image all comes back; without it, with the next full backup.
	if err := os.Remove(packs[1]); err != nil {
		t.Fatal(err)
	}
	var dry, done chunkstore.RepairReport
	s.json(3, &dry, "repo", "repair", repo, "--from", img, "--dry-run")
	if _, err := os.Stat(filepath.Join(repo, "trash")); err == nil || len(dry.Damage) != 2 || len(dry.Lost)+len(dry.Left) > 0 {
		t.Errorf("a dry run says %+v", dry)
	}
	text = s.run(3, "repo", "repair", repo)
	says(t, text.out, "damaged: "+object, "stored anew: ", "out of damaged packs", "condemned: 2 packs", "lost: volume db backup backup-", " bytes at ", "1 backups have lost something")
	says(t, text.talk, "could not be mended", "--from SOURCE", "--full")
	says(t, s.run(3, "backup", "restore", url, s.path("out")).talk, "chunk", "not found in the repository", "'shale repo reindex")
	says(t, s.run(3, "repo", "prune", repo).talk, "'shale repo repair vfs://"+repo+"'")
	if made := s.run(0, "backup", "create", img, "--dest", repo, "--volume", "db"); !strings.Contains(made.talk, "has lost data") {
		t.Errorf("an incremental backup on one that has lost data says %s", made.talk)
	}
	s.run(0, "backup", "restore", url, s.path("out"))
	if !bytes.Equal(s.read(s.path("out")), content) {
		t.Error("the mended backup has other bytes")
	}
	s.run(0, "repo", "check", repo, "--data")

	s.flip(s.objects(repo, "packs/data/*/*")[0], 5000)
	for _, path := range s.objects(repo, "packs/tree/*/*") {
		s.flip(path, 60)
	}
	s.json(0, &done, "repo", "repair", repo, "--from", img)
	if done.Found[0].Nodes == 0 || done.Found[0].Source != img {
		t.Errorf("found: %+v", done.Found)
	}
	s.run(0, "repo", "check", repo, "--data")
	s.run(0, "backup", "verify", url)
	s.run(0, "repo", "prune", repo, "--grace", "0")
	s.run(0, "repo", "check", repo, "--data")
	s.run(0, "backup", "verify", url)
	says(t, s.run(0, "repo", "repair", repo, "--data").out, "0 places damaged")
}

// A repair takes another repository, of whatever secret, and a backup in it.
func TestRepairFromRepository(t *testing.T) {
	s := newSession(t)
	content := noise(33, 3<<20)
	img := s.image("img", content)
	repo, other := s.init("--pack-size", "1"), s.path("other")
	s.run(0, "repo", "init", other)
	url, elsewhere := s.create(repo, img, "db"), s.create(other, img, "db")
	for i, from := range []string{other, elsewhere, elsewhere} {
		packs := s.objects(repo, "packs/data/*/*")
		if err := os.Remove(packs[i%len(packs)]); err != nil {
			t.Fatal(err)
		}
		s.run(3, "repo", "check", repo)
		says(t, s.run(0, "repo", "repair", repo, "--structure", "--from", from).out, "found in vfs://"+other, "0 backups have lost something")
		s.run(0, "repo", "check", repo, "--data")
		s.run(0, "backup", "verify", url)
	}
	says(t, s.run(1, "repo", "repair", repo, "--from", s.path("nothing")).talk, "no such file")
	says(t, s.run(1, "repo", "repair", repo, "--from", elsewhere+"x").talk, "not found")
	s.run(2, "repo", "repair", repo, "--structure", "--data")
}

func TestDamagedTree(t *testing.T) {
	s := newSession(t)
	repo := s.init()
	img := s.image("img", noise(31, 1<<20))
	url := s.create(repo, img, "db")
	for _, pack := range s.objects(repo, "packs/tree/*/*") {
		s.flip(pack, 40)
	}
	s.run(3, "repo", "check", repo)
	s.run(0, "backup", "restore", url, s.path("copies")) // this host has what it stored of the tree
	if err := os.RemoveAll(s.path("cache")); err != nil {
		t.Fatal(err)
	}
	says(t, s.run(3, "backup", "restore", url, s.path("out")).talk, "packs/tree/", "'shale repo check --stored")
	s.run(3, "backup", "diff", url, s.create(repo, s.image("img", noise(32, 1<<20)), "db", "--full"))
}

func TestDamagedRecord(t *testing.T) {
	s := newSession(t)
	repo := s.init()
	img := s.image("img", noise(33, 1<<20))
	bad, good := s.create(repo, img, "db"), s.create(repo, img, "db")
	l, err := engine.ParseLocation(bad)
	if err != nil {
		t.Fatal(err)
	}
	s.flip(s.objects(repo, "backups/*/"+l.Backup)[0], 40)

	list := s.run(3, "backup", "list", repo)
	if strings.Contains(list.out, l.Backup) || strings.Count(list.out, "\n") != 2 {
		t.Errorf("list prints\n%s", list.out)
	}
	says(t, list.talk, "cannot be read: ", l.Backup, "1 backup record(s)", "'shale repo check --stored")
	var records []listedBackup
	if f := s.json(3, &records, "backup", "list", repo); len(records) != 1 || records[0].URL != good || f.Error != "" {
		t.Errorf("list gives %+v, then a second value %+v", records, f)
	}
	s.run(3, "backup", "inspect", bad)
	s.run(3, "repo", "check", repo)
	s.run(0, "backup", "delete", bad)
	s.run(0, "backup", "list", repo)
}

func TestDamagedIndex(t *testing.T) {
	s := newSession(t)
	repo := s.init()
	img := s.image("img", noise(34, 1<<20))
	url := s.create(repo, img, "db")
	segments := s.objects(repo, "index/*")
	s.flip(segments[0], -1)
	if err := os.RemoveAll(s.path("cache")); err != nil {
		t.Fatal(err)
	}
	says(t, s.run(3, "backup", "verify", url).talk, "index/", "'shale repo reindex vfs://"+repo+"' makes the index anew")

	for range 2 { // damaged, then lost
		says(t, s.run(0, "repo", "reindex", repo).out, "1 segments written")
		s.run(0, "backup", "verify", url)
		s.run(0, "repo", "check", repo, "--data")
		for _, name := range s.objects(repo, "index/*") {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	says(t, s.run(3, "backup", "verify", url).talk, "damage found")
	says(t, s.run(3, "backup", "restore", url, s.path("out")).talk, "not found in the repository", "'shale repo reindex")

	var rep chunkstore.ReindexReport
	s.flip(s.objects(repo, "packs/data/*/*")[0], -1)
	if f := s.json(3, &rep, "repo", "reindex", repo); len(rep.Damage) != 1 || f.Error != "" {
		t.Errorf("reindex over a damaged pack reports %+v, then a second value %+v", rep, f)
	}
	says(t, s.run(3, "repo", "reindex", repo).out, "damaged: packs/data/")
}

// A pack whose table is damaged may hold sound chunks; what the old index knows of them stays known.
func TestReindexKeeps(t *testing.T) {
	s := newSession(t)
	repo := s.init()
	url := s.create(repo, s.image("img", noise(35, 1<<20)), "db")
	s.flip(s.objects(repo, "packs/data/*/*")[0], -1)
	says(t, s.run(3, "repo", "reindex", repo).out, "damaged: packs/data/", " chunks of damaged packs kept")
	s.run(0, "backup", "verify", url)
}

func TestDamagedConfig(t *testing.T) {
	s := newSession(t)
	repo := s.init()
	good := s.read(filepath.Join(repo, "config"))
	s.flip(filepath.Join(repo, "config"), 30)
	says(t, s.run(3, "repo", "check", repo).talk, "config", "Put back the file 'config' from a copy")
	says(t, s.run(1, "repo", "init", repo).talk, "there is a repository already")

	s.image("repo/config", good)
	s.run(0, "repo", "check", repo)
}

// What a newer shale wrote is not damage.
func TestNewerRepository(t *testing.T) {
	s := newSession(t)
	repo := s.init()
	line, _, _ := bytes.Cut(s.read(filepath.Join(repo, "config")), []byte("\n"))
	newer := bytes.Replace(line, []byte(`"version":1`), []byte(`"version":9`), 1)
	if bytes.Equal(newer, line) {
		t.Fatalf("no version in %s", line)
	}
	s.image("repo/config", fmt.Appendf(newer, "\n%016x\n", xxhash.Sum64(newer)))
	says(t, s.run(1, "repo", "stats", repo).talk, "repository version 9", "A newer shale wrote it")
}
