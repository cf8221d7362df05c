package chunkstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

func testBackup() *Backup {
	return &Backup{
		Version: 1, ID: "backup-18df3ec0a80abcde", Volume: "vol-1.data", Time: time.Date(2024, 2, 29, 12, 0, 0, 123456789, time.UTC),
		Blob:   BlobRef{Root: seqID(1), Size: 10 << 30, Data: 3 << 30},
		Parent: "backup-18df3ec0a80abcdd", Host: "host.example", Labels: map[string]string{"b": "2", "a": "1"},
		Source: json.RawMessage(`{"kind":"thin","id":7}`),
		Counts: Counts{Read: 1, MetadataBlocks: 2, Chunks: 3, New: 4, NewChunks: 5, NewNodes: 6, Stored: 7, Seconds: 8.5},
	}
}

// openFixed opens a repository with the constants of testConfig, so that its objects are the same in every run.
func openFixed(t testing.TB) (*mem.Backend, *Repository) {
	t.Helper()
	ctx := context.Background()
	be := mem.New()
	c := testConfig()
	b, err := c.encode()
	if err == nil {
		err = be.Put(ctx, objectConfig, b)
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(ctx, be, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return be, r
}

func TestBackupRecordGolden(t *testing.T) {
	be, r := openFixed(t)
	want := testBackup()
	record, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "backup-json", record)
	object := r.backupObject(want.Volume, want.ID)
	golden(t, "backup-name", []byte(object))
	if *update { // compressed bytes may change with the library: a pack once written is only ever read
		_, pack, err := r.buildObject(kindBackup, record)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "backup", pack)
	}
	if err := be.Put(t.Context(), object, readGolden(t, "backup")); err != nil {
		t.Fatal(err)
	}
	got, err := r.Backup(t.Context(), want.Volume, want.ID)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v, want %+v", got, err, want)
	}
}

// putRecord stores any bytes as a backup record of that name.
func putRecord(t testing.TB, r *Repository, object string, kind packKind, data []byte) {
	t.Helper()
	_, pack, err := r.buildObject(kind, data)
	if err == nil {
		err = r.be.Put(context.Background(), object, pack)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestBackupRecordRefuses(t *testing.T) {
	_, r := openFixed(t)
	good := testBackup()
	object := r.backupObject(good.Volume, good.ID)
	for _, c := range []struct {
		name        string
		edit        func(b *Backup)
		unsupported bool
	}{
		{"version", func(b *Backup) { b.Version = 2 }, true},
		{"no version", func(b *Backup) { b.Version = 0 }, true},
		{"another volume", func(b *Backup) { b.Volume = "other" }, false},
		{"volume with a path", func(b *Backup) { b.Volume = "../x" }, false},
		{"another ID", func(b *Backup) { b.ID = "backup-18df3ec0a80abcdf" }, false},
		{"no ID", func(b *Backup) { b.ID = "" }, false},
		{"negative size", func(b *Backup) { b.Blob.Size = -1 }, false},
		{"too large", func(b *Backup) { b.Blob.Size = maxBlobSize + 1 }, false},
		{"negative data", func(b *Backup) { b.Blob.Data = -1 }, false},
		{"more data than size", func(b *Backup) { b.Blob.Data = b.Blob.Size + 1 }, false},
		{"data without a root", func(b *Backup) { b.Blob.Root = ID{} }, false},
		{"root without data", func(b *Backup) { b.Blob.Data = 0 }, false},
	} {
		b := testBackup()
		c.edit(b)
		record, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		putRecord(t, r, object, kindBackup, record)
		_, err = r.Backup(t.Context(), good.Volume, good.ID)
		if err == nil || errors.Is(err, ErrUnsupported) != c.unsupported || errors.Is(err, ErrCorrupt) == c.unsupported || !strings.Contains(err.Error(), object) {
			t.Errorf("%s: %v; unsupported: want %v", c.name, err, c.unsupported)
		}
	}
	record, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty": {}, "not JSON": []byte("{"), "another type": []byte("[1]"), "two": slices.Concat(record, record),
		"too long": slices.Concat(record, bytes.Repeat([]byte(" "), maxRecordLen)),
	} {
		putRecord(t, r, object, kindBackup, data)
		if _, err := r.Backup(t.Context(), good.Volume, good.ID); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want %v", name, err, ErrCorrupt)
		}
	}
	putRecord(t, r, object, kindVolume, record)
	if _, err := r.Backup(t.Context(), good.Volume, good.ID); !errors.Is(err, ErrCorrupt) {
		t.Errorf("pack of another kind: %v, want %v", err, ErrCorrupt)
	}
	putRecord(t, r, object, kindBackup, record)
	if _, err := r.Backup(t.Context(), good.Volume, good.ID); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

// TestPutBackupRefuses: what could not be read back is not written.
func TestPutBackupRefuses(t *testing.T) {
	be := backendtest.NewCounting(mem.New())
	r := openTest(t, be, Options{})
	w := newTestWriter(t, r)
	be.Reset()
	for name, b := range map[string]*Backup{
		"no volume":       {},
		"volume":          {Volume: "a/b"},
		"ID":              {Volume: "v", ID: "backup-1"},
		"upper-case ID":   {Volume: "v", ID: "backup-18DF3EC0A80ABCDE"},
		"blob":            {Volume: "v", Blob: BlobRef{Size: 5, Data: 6, Root: ID{1}}},
		"root":            {Volume: "v", Blob: BlobRef{Size: 5, Root: ID{1}}},
		"source not JSON": {Volume: "v", Source: json.RawMessage("{")},
		"too long":        {Volume: "v", Host: strings.Repeat("x", maxRecordLen)},
		"time":            {Volume: "v", Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		if err := w.PutBackup(t.Context(), b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if be.Calls(backendtest.Put) != 0 || be.Calls(backendtest.PutIfAbsent) != 0 {
		t.Error("something was written")
	}
	b := &Backup{Volume: "v"}
	if err := w.PutBackup(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if err := w.PutBackup(t.Context(), b); !errors.Is(err, backend.ErrExist) {
		t.Errorf("the same again: %v, want %v", err, backend.ErrExist)
	}
}

func TestListAndDeleteBackups(t *testing.T) {
	be := mem.New()
	r := openTest(t, be, Options{})
	w := newTestWriter(t, r)
	ctx := t.Context()
	start := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	ids := map[string][]string{}
	for i := range 130 { // more than one batch
		b := &Backup{Volume: []string{"b", "a", "long-name." + strings.Repeat("x", 200)}[i%3], Time: start.Add(time.Duration(i) * time.Hour)}
		if err := w.PutBackup(ctx, b); err != nil {
			t.Fatal(err)
		}
		if got := BackupTime(b.ID); !got.Equal(b.Time) {
			t.Errorf("time of %s: %v, want %v", b.ID, got, b.Time)
		}
		ids[b.Volume] = append(ids[b.Volume], b.ID)
	}
	volumes, err := r.Volumes(ctx)
	if err != nil || len(volumes) != 3 || !slices.IsSorted(volumes) || volumes[0] != "a" {
		t.Errorf("volumes: %v, %v", volumes, err)
	}
	for _, v := range volumes {
		if got, err := r.Backups(ctx, v); err != nil || !slices.Equal(got, ids[v]) {
			t.Errorf("backups of %s: %v, %v, want %v", v, got, err, ids[v])
		}
	}
	all, err := r.ListBackups(ctx, "")
	if err != nil || len(all) != 130 || !slices.IsSortedFunc(all, func(a, b *Backup) int { return a.Time.Compare(b.Time) }) {
		t.Errorf("%d backups, %v", len(all), err)
	}
	if err := r.DeleteBackup(ctx, "a", ids["a"][0]); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"deleted":            r.DeleteBackup(ctx, "a", ids["a"][0]),
		"of another volume":  r.DeleteBackup(ctx, "a", ids["b"][0]),
		"no ID":              r.DeleteBackup(ctx, "a", "../../config"),
		"read deleted":       func() error { _, err := r.Backup(ctx, "a", ids["a"][0]); return err }(),
		"read what is no ID": func() error { _, err := r.Backup(ctx, "a", "backup-zz"); return err }(),
	} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v, want %v", name, err, ErrNotFound)
		}
	}
	if got, err := r.Backups(ctx, "a"); err != nil || !slices.Equal(got, ids["a"][1:]) {
		t.Errorf("after the delete: %v, %v", got, err)
	}
	if got, err := r.Backups(ctx, "none"); err != nil || len(got) != 0 {
		t.Errorf("of no volume: %v, %v", got, err)
	}
	stop := errors.New("enough")
	n := 0
	err = r.WalkBackups(ctx, "", func(string, *Backup, error) error {
		if n++; n == 70 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || n != 70 {
		t.Errorf("walk ended with %v after %d", err, n)
	}
}

// TestWalkBackupsPastDamage: a record that cannot be read does not hide the others.
func TestWalkBackupsPastDamage(t *testing.T) {
	be := mem.New()
	r := openTest(t, be, Options{})
	w := newTestWriter(t, r)
	var objects []string
	for range 3 {
		b := &Backup{Volume: "v"}
		if err := w.PutBackup(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, r.backupObject("v", b.ID))
	}
	data, err := backend.ReadAll(t.Context(), be, objects[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := be.Put(t.Context(), objects[1], data[:len(data)-3]); err != nil {
		t.Fatal(err)
	}
	good, bad := 0, ""
	err = r.WalkBackups(t.Context(), "v", func(object string, b *Backup, err error) error {
		if err != nil {
			mustBeDamage(t, err)
			bad += object
		} else {
			good++
		}
		return nil
	})
	if err != nil || good != 2 || bad != objects[1] {
		t.Errorf("%d good, %q bad, %v", good, bad, err)
	}
	if _, err := r.ListBackups(t.Context(), "v"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("list: %v, want %v", err, ErrCorrupt)
	}
	if err := be.Put(t.Context(), objects[1], data); err != nil {
		t.Fatal(err)
	}
}

func TestVolumeNames(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "A-1_b.c": true, strings.Repeat("x", 255): true, "9": true,
		"": false, ".a": false, "-a": false, "_a": false, "a/b": false, "a b": false, "a\n": false, "ä": false, strings.Repeat("x", 256): false,
	} {
		if ValidVolumeName(name) != want {
			t.Errorf("%q: want %v", name, want)
		}
	}
	be, r := openFixed(t)
	object := prefixVolumes + r.volumeKey("v")
	for name, data := range map[string]string{"another": `{"volume":"w"}`, "no JSON": "v", "invalid": `{"volume":"/"}`} {
		putRecord(t, r, object, kindVolume, []byte(data))
		if _, err := r.Volumes(t.Context()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want %v", name, err, ErrCorrupt)
		}
	}
	gone := backendtest.NewFaulty(t, be, backendtest.Fault{Method: backendtest.Stat, Prefix: prefixVolumes, Err: backend.ErrNotExist})
	r.be = gone
	if got, err := r.Volumes(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("a volume that went meanwhile: %v, %v", got, err)
	}
}

func TestBackupIDs(t *testing.T) {
	for _, id := range []string{"", "backup-", "backup-18df3ec0a80abcd", "backup-18df3ec0a80abcdef", "backup-18DF3EC0A80ABCDE", "18df3ec0a80abcde", "backup-18df3ec0a80abcdg"} {
		if validBackupID(id) || !BackupTime(id).IsZero() {
			t.Errorf("%q passes for an ID", id)
		}
	}
	last := ""
	for i := range 100 {
		id, err := NewBackupID(time.UnixMilli(int64(i) * 1000_000))
		if err != nil || !validBackupID(id) || id <= last {
			t.Fatalf("%q after %q, %v", id, last, err)
		}
		last = id
	}
	if id, err := NewBackupID(time.Time{}); err != nil || !validBackupID(id) {
		t.Errorf("time zero: %q, %v", id, err)
	}
}

func FuzzBackupRecord(f *testing.F) {
	record, err := json.Marshal(testBackup())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(record)
	f.Add([]byte(`{"version":1,"id":"backup-18df3ec0a80abcde","volume":"v","blob":{"root":"` + seqID(1).String() + `","size":9223372036854775807,"data":1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := decodeBackup(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		b2, err := decodeBackup(again)
		if err != nil || b2.ID != b.ID || b2.Volume != b.Volume || b2.Blob != b.Blob || !b2.Time.Equal(b.Time) {
			t.Fatalf("%+v became %+v, %v", b, b2, err)
		}
	})
}

// FuzzObject: whatever is stored under a record's name, reading it ends in an error or a record.
func FuzzObject(f *testing.F) {
	be, r := openFixed(f)
	b := testBackup()
	object := r.backupObject(b.Volume, b.ID)
	f.Add(readGolden(f, "backup"))
	_, pack := smallPack(f, kindBackup)
	f.Add(pack)
	ctx := context.Background()
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := be.Put(ctx, object, data); err != nil {
			t.Fatal(err)
		}
		got, err := r.Backup(ctx, b.Volume, b.ID)
		if err == nil && (got.ID != b.ID || got.Volume != b.Volume) {
			t.Fatalf("got %+v", got)
		}
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
			t.Fatal(err)
		}
	})
}

func ExampleBackupTime() {
	fmt.Println(BackupTime("backup-18df3ec0a80abcde").UTC().Format(time.RFC3339))
	// Output: 2024-02-29T08:12:29Z
}
