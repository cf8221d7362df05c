package main

import (
	"testing"

	"github.com/shalebackup/shale/chunkstore"
)

func TestParseSubset(t *testing.T) {
	for s, want := range map[string]chunkstore.Subset{
		"5%": {Share: 0.05}, "100%": {Share: 1}, "0.5%": {Share: 0.005}, "1/5": {Part: 1, Of: 5}, "5/5": {Part: 5, Of: 5},
		"7": {Bytes: 7}, "3K": {Bytes: 3 << 10}, "3M": {Bytes: 3 << 20}, "2G": {Bytes: 2 << 30}, "1T": {Bytes: 1 << 40},
	} {
		if got, err := parseSubset(s); err != nil || got != want {
			t.Errorf("%q: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "%", "0%", "-1%", "101%", "NaN%", "0/5", "6/5", "1/0", "1/", "/", "-1/5", "G", "0", "-5", "1.5G", "2GG", "2GiB", "2g", "9999999T", "1/2/3"} {
		if got, err := parseSubset(s); err == nil {
			t.Errorf("%q: %+v", s, got)
		}
	}
}

// A share each time, until all is read; the text says how far that is.
func TestCheckSubset(t *testing.T) {
	s := newSession(t)
	repo := s.init("--pack-size", "1")
	s.create(repo, s.image("img", noise(31, 6<<20)), "db")
	says(t, s.run(0, "repo", "check", repo, "--read-data-subset", "30%").out, "read ", " of ", "packs; ", " left: ", "more checks\n")
	says(t, s.run(0, "repo", "check", repo, "--read-data-subset", "30%").out, "more checks, all read by ")
	says(t, s.run(0, "repo", "check", repo, "--read-data-subset", "1/1").out, "packs\n")
	var rep chunkstore.CheckReport
	for range 5 {
		s.json(0, &rep, "repo", "check", repo, "--read-data-subset", "30%")
		if rep.Subset == nil || rep.Subset.Turn == nil || rep.BytesRead == 0 {
			t.Fatalf("%+v", rep)
		}
		if rep.Subset.Turn.Left.Objects == 0 {
			break
		}
	}
	if rep.Subset.Turn.Left.Objects > 0 {
		t.Errorf("not all is read: %+v", rep.Subset.Turn)
	}
	says(t, s.run(0, "repo", "check", repo, "--data", "--read-data-subset", "1T").out, "with this all has been read since ", "in 1 check(s)")
	for _, path := range s.objects(repo, "packs/*/*/*") { // whichever is read first
		s.flip(path, 5000)
	}
	s.run(3, "repo", "check", repo, "--read-data-subset", "1")
	says(t, s.run(2, "repo", "check", repo, "--read-data-subset", "much").talk, "--read-data-subset is \"much\"")
}
