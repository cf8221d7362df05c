package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/limit"
	"github.com/shalebackup/shale/chunkstore/backend/s3"
	"github.com/shalebackup/shale/chunkstore/backend/s3/s3test"
)

const mib = 1 << 20

// open opens a new bucket.
func open(t *testing.T, srv *s3test.Server, change ...func(*s3.Options)) *s3.Backend {
	t.Helper()
	bucket := s3test.BucketName(t)
	srv.NewBucket(t, bucket)
	o := srv.Options(bucket)
	for _, c := range change {
		c(&o)
	}
	be, err := s3.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return be
}

func TestContract(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{})
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		return open(t, srv, func(o *s3.Options) { o.Prefix = "some/Prefix" })
	})
}

// Over TLS bodies are signed differently; a paced body is another reader. Versions change what a delete does, and leave what the contract says
// of it, but that this server keeps PutIfAbsent from a name that was deleted.
func TestContractTLSPaced(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{TLS: true})
	fast := limit.NewBucket(4 << 30)
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		return limit.New(open(t, srv), limit.Options{Upload: fast, Download: fast})
	})
}

// The bucket in the host name.
func TestVirtualHost(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{Domain: "s3.example"})
	bucket := s3test.BucketName(t)
	srv.NewBucket(t, bucket)
	o := srv.Options(bucket)
	o.Endpoint, o.Addressing = "http://s3.example", s3.AddressVirtualHost
	o.DialTo(srv.Addr)
	be, err := s3.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := be.Put(t.Context(), "a/b", []byte("content")); err != nil {
		t.Fatal(err)
	}
	mustHold(t, be, "a/b", []byte("content"))
	if info, err := srv.Client().StatObject(t.Context(), bucket, "a/b", minio.StatObjectOptions{}); err != nil || info.Size != 7 {
		t.Errorf("seen with the bucket in the path: %+v, %v", info, err)
	}
}

func mustHold(t *testing.T, be backend.Backend, name string, want []byte) {
	t.Helper()
	got, err := backend.ReadAll(t.Context(), be, name)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s holds %d bytes, %v, want %d", name, len(got), err, len(want))
	}
}

// The rest share a server.
func TestRealServer(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{})
	for name, test := range map[string]func(*testing.T, *s3test.Server){
		"Prefixes": testPrefixes, "Foreign": testForeign, "Mistakes": testMistakes,
		"LostAnswer": testLostAnswer, "LostAnswerOfLoser": testLostAnswerOfLoser, "Unconditional": testUnconditional,
		"PartLost": testPartLost, "CompletionLost": testCompletionLost, "UploadFails": testUploadFails,
		"BodyCut": testBodyCut, "BodyCutAndReplaced": testBodyCutAndReplaced, "ListCut": testListCut,
		"DamagedOnTheWay": testDamagedOnTheWay, "Stale": testStale, "NoLock": testNoLock,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, srv)
		})
	}
}

// Repositories in one bucket do not see each other.
func testPrefixes(t *testing.T, srv *s3test.Server) {
	bucket := s3test.BucketName(t)
	srv.NewBucket(t, bucket)
	at := func(prefix string) *s3.Backend {
		o := srv.Options(bucket)
		o.Prefix = prefix
		be, err := s3.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		return be
	}
	for _, prefix := range []string{"vol1", "vol10", "vol1/x"} {
		be := at(prefix)
		if want := "s3://" + bucket + "/" + prefix; be.Location() != want {
			t.Errorf("location is %s, want %s", be.Location(), want)
		}
		if err := be.Put(t.Context(), "name", []byte(prefix)); err != nil {
			t.Fatal(err)
		}
	}
	for _, prefix := range []string{"vol1", "vol10", "vol1/x"} {
		mustHold(t, at(prefix), "name", []byte(prefix))
	}
	if err := at("vol1").Delete(t.Context(), "name"); err != nil {
		t.Fatal(err)
	}
	mustHold(t, at("vol10"), "name", []byte("vol10"))
	mustHold(t, at("vol1/x"), "name", []byte("vol1/x"))
}

// Keys that are no valid names are left alone.
func testForeign(t *testing.T, srv *s3test.Server) {
	bucket := s3test.BucketName(t)
	srv.NewBucket(t, bucket)
	for _, key := range []string{"p/Foreign", "p/.hidden", "p/a b", "q/valid", "p/valid"} {
		if _, err := srv.Client().PutObject(t.Context(), bucket, key, strings.NewReader("x"), 1, minio.PutObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	o := srv.Options(bucket)
	o.Prefix = "p"
	be, err := s3.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	err = be.List(t.Context(), "", func(o backend.Object) error {
		names = append(names, o.Name)
		return nil
	})
	if err != nil || len(names) != 1 || names[0] != "valid" {
		t.Errorf("listed %q, %v", names, err)
	}
}

// What a user gets wrong, against a real server.
func testMistakes(t *testing.T, srv *s3test.Server) {
	bucket := s3test.BucketName(t)
	srv.NewBucket(t, bucket)
	env := func(id, secret string) func(string) string {
		return func(name string) string {
			return map[string]string{
				"AWS_ACCESS_KEY_ID": id, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": s3test.Region, "AWS_EC2_METADATA_DISABLED": "true",
			}[name]
		}
	}
	for _, c := range []struct {
		what   string
		want   error
		change func(*s3.Options)
	}{
		{"no mistake", backend.ErrNotExist, func(*s3.Options) {}},
		{"secret key", s3.ErrCredentials, func(o *s3.Options) { o.Getenv = env(s3test.AccessKey, "wrong") }},
		{"access key", s3.ErrCredentials, func(o *s3.Options) { o.Getenv = env("wrong", s3test.SecretKey) }},
		{"half the keys", s3.ErrNoCredentials, func(o *s3.Options) { o.Getenv = env(s3test.AccessKey, "") }},
		{"the other half", s3.ErrNoCredentials, func(o *s3.Options) { o.Getenv = env("", s3test.SecretKey) }},
		{"bucket", s3.ErrNoBucket, func(o *s3.Options) { o.Bucket = "no-such-bucket" }},
		{"region", s3.ErrRegion, func(o *s3.Options) { o.Region = "eu-central-1" }},
		{"TLS", s3.ErrTLS, func(o *s3.Options) { o.Endpoint = "https://" + srv.Addr }},
	} {
		o := srv.Options(bucket)
		c.change(&o)
		be, err := s3.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		_, statErr := be.Stat(t.Context(), "config")
		for verb, err := range map[string]error{"stat": statErr, "read": be.ReadAt(t.Context(), "config", make([]byte, 1), 0)} {
			if !errors.Is(err, c.want) {
				t.Errorf("%s, %s: got %v, want %v", c.what, verb, err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), s3test.SecretKey) {
				t.Errorf("%s, %s: the secret key is in %v", c.what, verb, err)
			}
		}
	}
}

// The answer of a conditional put that was successful is lost: the next try finds the name taken, by ourselves.
func testLostAnswer(t *testing.T, srv *s3test.Server) {
	g := newGate(t, srv)
	bucket := s3test.BucketName(t)
	srv.NewBucket(t, bucket)
	g.next(rule{method: http.MethodPut, times: 2, lose: true})
	be := g.open(t, bucket)
	if err := be.PutIfAbsent(t.Context(), "a", []byte("ours")); err != nil {
		t.Fatal(err)
	}
	if n := g.count(http.MethodPut); n != 3 {
		t.Errorf("tried %d times, want 3", n)
	}
	mustHold(t, be, "a", []byte("ours"))
	if err := be.PutIfAbsent(t.Context(), "a", []byte("ours")); !errors.Is(err, backend.ErrExist) {
		t.Errorf("the same once more: %v, want ErrExist", err)
	}
}

// As before, but the name is another's, whose bytes are the same.
func testLostAnswerOfLoser(t *testing.T, srv *s3test.Server) {
	g := newGate(t, srv)
	be := open(t, srv)
	if err := be.PutIfAbsent(t.Context(), "a", []byte("same")); err != nil {
		t.Fatal(err)
	}
	g.next(rule{method: http.MethodPut, lose: true})
	other := g.open(t, strings.TrimPrefix(be.Location(), "s3://"))
	if err := other.PutIfAbsent(t.Context(), "a", []byte("same")); !errors.Is(err, backend.ErrExist) {
		t.Errorf("got %v, want ErrExist", err)
	}
}

// A server that says that it has no conditional writes.
func testUnconditional(t *testing.T, srv *s3test.Server) {
	g := newGate(t, srv)
	g.next(rule{method: http.MethodPut, times: 10, answer: answers(501, "NotImplemented")})
	if err := g.open(t, "bucket").PutIfAbsent(t.Context(), "a", nil); !errors.Is(err, backend.ErrNoPutIfAbsent) || g.count(http.MethodPut) != 1 {
		t.Errorf("after %d tries: %v", g.count(http.MethodPut), err)
	}
}

// inParts are options by which 20 MiB are four parts.
func inParts(o *s3.Options) { o.PartBytes = 5 * mib }

// Of an upload only the part is put again whose answer was lost.
func testPartLost(t *testing.T, srv *s3test.Server) {
	g := newGate(t, srv)
	bucket := s3test.BucketName(t)
	srv.NewBucket(t, bucket)
	g.next(rule{method: http.MethodPut, query: "partNumber", lose: true})
	g.next(rule{method: http.MethodPut, query: "partNumber", answer: answers(503, "SlowDown")})
	be := g.open(t, bucket, inParts)
	want := backendtest.Content("parts", 20*mib-7)
	if err := be.Put(t.Context(), "packs/a", want); err != nil {
		t.Fatal(err)
	}
	if n := g.count(http.MethodPut); n != 6 {
		t.Errorf("%d puts of parts, want 4 and 2 more", n)
	}
	mustHold(t, be, "packs/a", want)
}

// The answer to the completion is lost: the upload is gone then, and the object there.
func testCompletionLost(t *testing.T, srv *s3test.Server) {
	g := newGate(t, srv)
	bucket := s3test.BucketName(t)
	srv.NewBucket(t, bucket)
	g.next(rule{method: http.MethodPost, query: "uploadId", lose: true})
	be := g.open(t, bucket, inParts)
	want := backendtest.Content("completed", 10*mib)
	if err := be.Put(t.Context(), "packs/a", want); err != nil {
		t.Fatal(err)
	}
	mustHold(t, be, "packs/a", want)
}

// An upload that fails for good leaves no object and no parts.
func testUploadFails(t *testing.T, srv *s3test.Server) {
	g := newGate(t, srv)
	bucket := s3test.BucketName(t)
	srv.NewBucket(t, bucket)
	g.next(rule{method: http.MethodPut, query: "partNumber", answer: answers(403, "AccessDenied")})
	be := g.open(t, bucket, inParts)
	if err := be.Put(t.Context(), "packs/a", make([]byte, 20*mib)); !errors.Is(err, s3.ErrDenied) || !strings.Contains(err.Error(), "of 4") {
		t.Errorf("got %v", err)
	}
	if _, err := be.Stat(t.Context(), "packs/a"); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("the object: %v", err)
	}
	for u := range srv.Client().ListIncompleteUploads(t.Context(), bucket, "", true) {
		t.Errorf("left: %+v", u)
	}
}

// A body that breaks off is asked for again from there on.
func testBodyCut(t *testing.T, srv *s3test.Server) {
	g := newGate(t, srv)
	bucket := s3test.BucketName(t)
	srv.NewBucket(t, bucket)
	be := g.open(t, bucket)
	want := backendtest.Content("cut", 2*mib)
	if err := be.Put(t.Context(), "a", want); err != nil {
		t.Fatal(err)
	}
	g.next(rule{method: http.MethodGet, lose: true, after: mib})
	g.next(rule{method: http.MethodGet, lose: true})
	p := make([]byte, 2*mib-5)
	if err := be.ReadAt(t.Context(), "a", p, 5); err != nil || !bytes.Equal(p, want[5:]) {
		t.Fatalf("%v, or other bytes", err)
	}
	if n := g.count(http.MethodGet); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
}

// An object that is replaced while it is read gives the bytes of one or of the other.
func testBodyCutAndReplaced(t *testing.T, srv *s3test.Server) {
	g := newGate(t, srv)
	bucket := s3test.BucketName(t)
	srv.NewBucket(t, bucket)
	be := g.open(t, bucket)
	if err := be.Put(t.Context(), "a", bytes.Repeat([]byte("1"), mib)); err != nil {
		t.Fatal(err)
	}
	replaced := sync.OnceValue(func() error { return be.Put(context.Background(), "a", bytes.Repeat([]byte("2"), mib)) })
	g.next(rule{method: http.MethodGet, lose: true, after: mib / 2})
	g.next(rule{method: http.MethodGet, answer: func(w http.ResponseWriter, r *http.Request) {
		if err := replaced(); err != nil {
			t.Error(err)
		}
		panic(http.ErrAbortHandler)
	}})
	p := make([]byte, mib)
	if err := be.ReadAt(t.Context(), "a", p, 0); err != nil || !bytes.Equal(p, bytes.Repeat([]byte("2"), mib)) {
		t.Errorf("%v, or a mixture: %q...%q", err, p[:3], p[mib-3:])
	}
}

// A listing that breaks off goes on behind the last name.
func testListCut(t *testing.T, srv *s3test.Server) {
	g := newGate(t, srv)
	bucket := s3test.BucketName(t)
	srv.NewBucket(t, bucket)
	be := g.open(t, bucket)
	const n = 1010 // two pages
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < n; i += 8 {
				if err := be.Put(t.Context(), fmt.Sprintf("l/%04d", i), nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for range 2 {
		g.next(rule{method: http.MethodGet, query: "list-type", lose: true, after: 1000})
	}
	i := 0
	err := be.List(t.Context(), "l/", func(o backend.Object) error {
		if want := fmt.Sprintf("l/%04d", i); o.Name != want {
			t.Fatalf("got %s, want %s", o.Name, want)
		}
		if i++; i == 500 {
			g.next(rule{method: http.MethodGet, query: "list-type", lose: true})
		}
		return nil
	})
	if err != nil || i != n {
		t.Errorf("listed %d, %v", i, err)
	}
}

// A byte that is changed on the way to the server is noticed there, and sent again.
func testDamagedOnTheWay(t *testing.T, srv *s3test.Server) {
	g := newGate(t, srv)
	bucket := s3test.BucketName(t)
	srv.NewBucket(t, bucket)
	flip := rule{method: http.MethodPut}
	flip.answer = func(w http.ResponseWriter, r *http.Request) { // what versitygw answers to that
		answers(400, "XAmzContentSHA256Mismatch")(w, r)
	}
	be := g.open(t, bucket)
	g.next(flip)
	if err := be.Put(t.Context(), "a", []byte("content")); err != nil {
		t.Fatal(err)
	}
	mustHold(t, be, "a", []byte("content"))
}

func testStale(t *testing.T, srv *s3test.Server) {
	bucket := s3test.BucketName(t)
	srv.NewBucket(t, bucket)
	core := minio.Core{Client: srv.Client()}
	begin := func(key string) {
		id, err := core.NewMultipartUpload(t.Context(), bucket, key, minio.PutObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for part := range 2 {
			if _, err := core.PutObjectPart(t.Context(), bucket, key, id, part+1, bytes.NewReader(make([]byte, 1000)), 1000, minio.PutObjectPartOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, key := range []string{"p/packs/a", "p/packs/b", "p/packs/b", "p/Foreign", "q/packs/a"} {
		begin(key)
	}
	o := srv.Options(bucket)
	o.Prefix = "p"
	be, err := s3.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if n, size, err := be.RemoveStale(t.Context(), time.Hour); n != 0 || size != 0 || err != nil {
		t.Errorf("young ones: removed %d of %d bytes, %v", n, size, err)
	}
	if n, size, err := be.RemoveStale(t.Context(), -time.Minute); n != 3 || size != 6000 || err != nil {
		t.Errorf("removed %d of %d bytes, %v, want 3 of 6000", n, size, err)
	}
	left := 0
	for u := range srv.Client().ListIncompleteUploads(t.Context(), bucket, "", true) {
		if u.Err != nil {
			t.Fatal(u.Err)
		}
		left++
	}
	if left != 2 {
		t.Errorf("%d uploads left, want the two that are not the repository's", left)
	}
}

func testNoLock(t *testing.T, srv *s3test.Server) {
	be := open(t, srv)
	if err := be.CanRetain(t.Context()); !errors.Is(err, backend.ErrNoLock) {
		t.Errorf("got %v, want ErrNoLock", err)
	}
	if err := be.Put(t.Context(), "a", nil); err != nil {
		t.Fatal(err)
	}
	if until, err := be.Retained(t.Context(), "a"); !until.IsZero() || err != nil {
		t.Errorf("locked until %v, %v", until, err)
	}
	if _, err := be.Retain(t.Context(), "a", backend.Governance, time.Now().Add(time.Hour)); err == nil {
		t.Error("locked in a bucket without object lock")
	}
}

// Keys come from the shared files, too.
func TestSharedFiles(t *testing.T) {
	srv := s3test.Start(t, s3test.Config{})
	bucket := s3test.BucketName(t)
	srv.NewBucket(t, bucket)
	file := t.TempDir() + "/credentials"
	content := fmt.Sprintf("[default]\naws_access_key_id = x\naws_secret_access_key = x\n[backup]\naws_access_key_id = %s\naws_secret_access_key = %s\n[empty]\n[half]\naws_access_key_id = x\n",
		s3test.AccessKey, s3test.SecretKey)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	t.Setenv("AWS_CONFIG_FILE", t.TempDir()+"/none")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_REGION", s3test.Region)
	for profile, want := range map[string]error{
		"backup": nil, "": s3.ErrCredentials, "missing": s3.ErrNoCredentials, "empty": s3.ErrNoCredentials, "half": s3.ErrNoCredentials,
	} {
		t.Setenv("AWS_PROFILE", profile)
		o := srv.Options(bucket)
		o.Getenv = nil
		be, err := s3.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := be.Put(t.Context(), "a", nil); !errors.Is(err, want) {
			t.Errorf("profile %q: got %v, want %v", profile, err, want)
		}
	}
	t.Setenv("AWS_PROFILE", "")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file+".none")
	o := srv.Options(bucket)
	o.Getenv = nil
	be, err := s3.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := be.Put(t.Context(), "a", nil); !errors.Is(err, s3.ErrNoCredentials) {
		t.Errorf("no keys at all: got %v", err)
	}
	t.Setenv("AWS_ACCESS_KEY", s3test.AccessKey) // Convoy's names
	t.Setenv("AWS_SECRET_KEY", s3test.SecretKey)
	if be, err = s3.Open(o); err != nil {
		t.Fatal(err)
	}
	if err := be.Put(t.Context(), "a", nil); err != nil {
		t.Errorf("Convoy's variables: %v", err)
	}
}
