package main

import (
	"strings"
	"testing"
	"time"
)

func TestForget(t *testing.T) {
	s := newSession(t)
	repo, img := s.init(), s.image("img", noise(40, 1<<20))
	var urls []string
	for range 4 {
		urls = append(urls, s.create(repo, img, "db", "--label", "n=1"))
		time.Sleep(2 * time.Millisecond) // two backups of one millisecond have no order
	}
	other := s.create(repo, img, "other", "--label", "keep=")
	ids := make([]string, 4)
	for i, url := range urls {
		ids[i] = s.inspect(url).ID
	}

	got := s.run(0, "backup", "forget", repo, "--keep-last", "1", "--keep-daily", "2", "--dry-run")
	says(t, got.out, "KEPT BY", ids[3]+"  last, daily\n", ids[1]+"  would be forgotten\n", ids[0]+"  daily (oldest)\n", "3 kept, 2 would be forgotten\n")
	var answer forgetAnswer
	s.json(0, &answer, "backup", "forget", repo, "--keep-last", "1", "--timezone", "Europe/Berlin", "--dry-run")
	if !answer.DryRun || answer.Timezone != "Europe/Berlin" || len(answer.Keep) != 2 || len(answer.Forget) != 3 || answer.Prune != nil ||
		answer.Keep[0].URL != urls[3] || answer.Forget[2].URL != urls[0] || answer.Keep[1].URL != other {
		t.Errorf("answer is %+v", answer)
	}

	says(t, s.run(0, "backup", "forget", repo, "--keep-within", "1y", "--prune").out, "5 kept, 0 forgotten\n", "5 backups need ")
	says(t, s.run(0, "backup", "forget", repo, "--keep-label", "keep", "--label", "n=2").out, "0 kept, 0 forgotten\n")
	says(t, s.run(0, "backup", "forget", repo, "--keep-label", "keep").out, "newest", "label", "2 kept, 3 forgotten\n")
	s.run(0, "backup", "inspect", urls[3])
	s.run(1, "backup", "inspect", urls[2])
	urls = append(urls, s.create(repo, img, "db"))
	says(t, s.run(0, "backup", "forget", urls[4], "--keep-last", "1").out, "1 kept, 1 forgotten\n") // of its volume
	s.run(0, "backup", "inspect", other)
	s.run(0, "repo", "check", repo)

	says(t, s.run(1, "backup", "forget", repo, "--keep-last", "1", "--volume", "bd").talk, "volume bd: not found in the repository", "shale backup list")
	for _, c := range []struct {
		args []string
		says string
	}{
		{nil, "nothing is said to be kept: at least one --keep-..."},
		{[]string{"--keep-last", "0", "--keep-daily", "0"}, "nothing is said to be kept"},
		{[]string{"--keep-within", "0d"}, "nothing is said to be kept"},
		{[]string{"--keep-last", "-2"}, "keep last -2"},
		{[]string{"--keep-last", "all"}, "invalid argument"},
		{[]string{"--keep-within", "7"}, "a period is numbers with y, m, d and h"},
		{[]string{"--keep-last", "1", "--label", "=x"}, "KEY or KEY=VALUE"},
		{[]string{"--keep-label", ""}, "KEY or KEY=VALUE"},
		{[]string{"--keep-last", "1", "--timezone", "Mars/Olympus"}, "--timezone"},
		{[]string{"--keep-last", "1", "--timezone", "../../etc/passwd"}, "--timezone"},
		{[]string{"--keep-last", "1", "--timezone", ""}, "--timezone"},
		{[]string{"--keep-last", "1", "--prune", "--dry-run"}, "exclude each other"},
	} {
		got := s.run(2, append([]string{"backup", "forget", repo}, c.args...)...)
		says(t, got.talk, c.says, "See 'shale backup forget --help'")
	}
	if n := strings.Count(s.run(0, "backup", "list", repo).out, "backup-"); n != 2 {
		t.Errorf("%d backups are left", n)
	}
}

// What cannot be read stays and is told of; the rest is forgotten.
func TestForgetDamage(t *testing.T) {
	s := newSession(t)
	repo, img := s.init(), s.image("img", noise(41, 1<<20))
	for range 3 {
		s.create(repo, img, "db")
	}
	s.flip(s.objects(repo, "backups/*/*")[1], 60)
	var answer forgetAnswer
	if f := s.json(3, &answer, "backup", "forget", repo, "--keep-last", "1"); f.Error != "" {
		t.Errorf("a second value: %+v", f)
	}
	if len(answer.Keep) != 1 || len(answer.Forget) != 1 || len(answer.Unreadable) != 1 {
		t.Errorf("answer is %+v", answer)
	}
	says(t, s.run(3, "backup", "forget", repo, "--keep-last", "1").talk, "cannot be read, and was left", "shale repo check --stored")
	if n := len(s.objects(repo, "backups/*/*")); n != 2 {
		t.Errorf("%d records are left, want 2", n)
	}
}
