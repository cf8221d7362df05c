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
		{"bucket", "s3://my-bucket", Location{Bucket: "my-bucket"}},
		{"bucket with a slash", "s3://my-bucket/", Location{Bucket: "my-bucket"}},
		{"bucket and region", "s3://my.bucket@eu-central-1/", Location{Bucket: "my.bucket", Region: "eu-central-1"}},
		{"bucket and prefix", "s3://bucket/some/Prefix/", Location{Bucket: "bucket", Path: "some/Prefix"}},
		{"backup in a bucket", "s3://bucket@us-east-1/p?backup=" + id + "&volume=db",
			Location{Bucket: "bucket", Region: "us-east-1", Path: "p", Volume: "db", Backup: id}},
		{"backup in a bucket, Convoy's JSON", `s3://bucket@us-east-1/?backup=` + id + `\u0026volume=db`,
			Location{Bucket: "bucket", Region: "us-east-1", Volume: "db", Backup: id}},
		{"an at sign in the prefix", "s3://bucket/a@b", Location{Bucket: "bucket", Path: "a@b"}},
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
		{"ftp://host/prefix", `scheme "ftp" is not known`},
		{"s3://", "no bucket's name"},
		{"s3:///prefix", "no bucket's name"},
		{"s3://@region/prefix", "no bucket's name"},
		{"s3://Bucket/prefix", "no bucket's name"},
		{"s3://a/prefix", "no bucket's name"},
		{"s3://../prefix", "no bucket's name"},
		{"s3://192.168.0.1/prefix", "no bucket's name"},
		{"s3://bucket@/prefix", "no region"},
		{"s3://bucket@EU west/prefix", "no region"},
		{"s3://bucket@a@b/prefix", "no region"},
		{"s3://bucket/a//b", "no empty segments"},
		{"s3://bucket//a", "no empty segments"},
		{"s3://bucket/a/../b", "no empty segments"},
		{"s3://bucket/a\nb", "control characters"},
		{"s3://bucket/" + strings.Repeat("a", 501), "prefix"},
		{"s3://bucket/a?b?backup=a&volume=v", "no '?'"},
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

// A URL with a secret in it is not repeated.
func TestParseLocationKeepsSecrets(t *testing.T) {
	_, err := ParseLocation("s3://AKIAEXAMPLE:secret@bucket/prefix")
	if !errors.Is(err, ErrURL) || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "AKIA") {
		t.Errorf("got %v", err)
	}
}

func TestSameRepository(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"/srv/b", "vfs:///srv/b?backup=a&volume=v", true},
		{"/srv/b", "/srv/c", false},
		{"s3://bucket@eu-west-1/p", "s3://bucket/p?backup=a&volume=v", true},
		{"s3://bucket/p", "s3://other/p", false},
		{"s3://bucket/p", "s3://bucket/p/q", false},
		{"s3://bucket/srv/b", "/srv/b", false},
	} {
		a, err := ParseLocation(c.a)
		if err != nil {
			t.Fatal(err)
		}
		b, err := ParseLocation(c.b)
		if err != nil {
			t.Fatal(err)
		}
		if a.SameRepository(b) != c.want || b.SameRepository(a) != c.want {
			t.Errorf("%s and %s: want %t", c.a, c.b, c.want)
		}
		if r := b.Repository(); r.Backup != "" || r.Volume != "" || !r.SameRepository(b) {
			t.Errorf("the repository of %s is %s", b, r)
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
		"s3://bucket", "s3://bucket@region/prefix/?backup=1&volume=v", "s3://a:b@bucket/",
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
		if (l.Bucket == "" && !filepath.IsAbs(l.Path)) || (l.Bucket != "" && strings.HasSuffix(l.Path, "/")) || (l.Backup == "") != (l.Volume == "") {
			t.Fatalf("%q is %+v", s, l)
		}
		if again, err := ParseLocation(l.String()); err != nil || again != l {
			t.Fatalf("%q is %+v, written %q, which is %+v, %v", s, l, l, again, err)
		}
	})
}
