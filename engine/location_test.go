package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shalebackup/shale/chunkstore"
)

func TestParseLocation(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	const id = "backup-019a6e0f1c2d3e4f"
	db := Location{Path: "/srv/b", Volume: "db", Backup: id}
	for _, c := range []struct {
		name, url string
		want      Location
	}{
		{"path", "/srv/b", Location{Path: "/srv/b"}},
		{"vfs", "vfs:///srv/b", Location{Path: "/srv/b"}},
		{"relative", "b", Location{Path: filepath.Join(wd, "b")}},
		{"relative up", "../b/", Location{Path: filepath.Join(filepath.Dir(wd), "b")}},
		{"unclean", "vfs:///srv//./x/../b/", Location{Path: "/srv/b"}},
		{"blank and per cent in the path", "/srv/my backups/100%25", Location{Path: "/srv/my backups/100%25"}},
		{"UTF-8 in the path", "/srv/Sicherung-ä", Location{Path: "/srv/Sicherung-ä"}},
		{"empty query", "/srv/b?", Location{Path: "/srv/b"}},
		{"backup", "/srv/b?backup=" + id + "&volume=db", db},
		{"backup, vfs", "vfs:///srv/b?backup=" + id + "&volume=db", db},
		{"other order", "vfs:///srv/b?volume=db&backup=" + id, db},
		{"Convoy's JSON", `vfs:///srv/b?backup=` + id + `\u0026volume=db`, db},
		{"Convoy's JSON, other order", `vfs:///srv/b?volume=db\u0026backup=` + id, db},
		{"Convoy's JSON through a shell", "vfs:///srv/b?backup=" + id + "u0026volume=db", db},
		{"a name that looks escaped", "/srv/b?backup=" + id + "&volume=au0026b", Location{Path: "/srv/b", Volume: "au0026b", Backup: id}},
		{"both", "/srv/b?volume=au0026bu0026backup=" + id, Location{Path: "/srv/b", Volume: "au0026b", Backup: id}},
		{"escaped in the query", "/srv/b?backup=" + id + "&volume=%64b", db},
	} {
		got, err := ParseLocation(c.url)
		if err != nil || got != c.want {
			t.Errorf("%s: %q is %+v, %v; want %+v", c.name, c.url, got, err, c.want)
			continue
		}
		if again, err := ParseLocation(got.String()); err != nil || again != got {
			t.Errorf("%s: %q is written as %q, which is %+v, %v", c.name, c.url, got, again, err)
		}
	}
}

func TestParseLocationRefuses(t *testing.T) {
	for _, c := range []struct{ url, says string }{
		{"", "empty"},
		{"vfs://", "three slashes"},
		{"vfs://srv/b", "three slashes"},
		{"s3://bucket@region/prefix", `scheme "s3" is not known`},
		{"?backup=a&volume=b", "empty"},
		{"/b?backup=a", "?backup=ID&volume=NAME"},
		{"/b?volume=v", "?backup=ID&volume=NAME"},
		{"/b?backup=&volume=v", "?backup=ID&volume=NAME"},
		{"/b?backup=a&volume=v&more=1", "?backup=ID&volume=NAME"},
		{"/b?backup=a&backup=c&volume=v", "?backup=ID&volume=NAME"},
		{"/b?bakup=a&volume=v", "?backup=ID&volume=NAME"},
		{"/b?nonsense", "?backup=ID&volume=NAME"},
		{"/b?backup=%zz&volume=v", "invalid URL escape"},
		{"/b?backup=a;volume=v", "semicolon"},
		{"/b?c?backup=a&volume=v", "no '?'"},
		{"/b\nc", "control characters"},
		{"/b\x00", "control characters"},
	} {
		if got, err := ParseLocation(c.url); !errors.Is(err, ErrURL) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q is %+v, %v; want an error that says %q", c.url, got, err, c.says)
		}
	}
}

func TestLocationOf(t *testing.T) {
	repo := Location{Path: "/srv/b"}
	of := repo.Of(&chunkstore.Backup{Volume: "db", ID: "backup-1"})
	if want := "vfs:///srv/b?backup=backup-1&volume=db"; of.String() != want || repo.String() != "vfs:///srv/b" {
		t.Errorf("got %s and %s, want %s", of, repo, want)
	}
}

// What parses is written in a form that means the same.
func FuzzLocation(f *testing.F) {
	for _, s := range []string{
		"/srv/b", "vfs:///srv/b", "b", "/b?backup=backup-1&volume=v", `/b?backup=1\u0026volume=v`, "/b?volume=vu0026backup=1",
		"/b?backup=a+b&volume=%26", "/?/?", "vfs:////b?backup=1&volume=u0026", "//host/b", "/b%3f?",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLocation(s)
		if err != nil {
			if !errors.Is(err, ErrURL) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		if !filepath.IsAbs(l.Path) || (l.Backup == "") != (l.Volume == "") {
			t.Fatalf("%q is %+v", s, l)
		}
		if again, err := ParseLocation(l.String()); err != nil || again != l {
			t.Fatalf("%q is %+v, written %q, which is %+v, %v", s, l, l, again, err)
		}
	})
}
