package fusemount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func stat(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t)
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestTree(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	b := r.add("vol-1", randomImage(rng, 3<<20+777), rng)
	r.add("other", randomImage(rng, 1<<20), rng)
	m := mountFake(t, r, Options{})

	if got, want := names(t, m.Dir()), []string{"other", "vol-1"}; !slices.Equal(got, want) {
		t.Errorf("the root lists %q, want %q", got, want)
	}
	vol := filepath.Join(m.Dir(), "vol-1")
	if got, want := names(t, vol), []string{b.ID, latestName}; !slices.Equal(got, want) {
		t.Errorf("the volume lists %q, want %q", got, want)
	}
	if got, want := names(t, filepath.Join(vol, b.ID)), []string{recordName, imageName}; !slices.Equal(got, want) {
		t.Errorf("the backup lists %q, want %q", got, want)
	}
	if got, err := os.Readlink(filepath.Join(vol, latestName)); err != nil || got != b.ID {
		t.Errorf("latest points to %q (%v), want %q", got, err, b.ID)
	}

	st := stat(t, filepath.Join(vol, b.ID, imageName))
	if st.Size != int64(len(b.image)) || st.Blocks != (b.data+511)/512 {
		t.Errorf("image: %d bytes, %d blocks, want %d and %d", st.Size, st.Blocks, len(b.image), (b.data+511)/512)
	}
	if st.Mode != syscall.S_IFREG|0o444 || st.Nlink != 1 || st.Uid != uint32(os.Getuid()) || st.Mtim.Sec != b.Time.Unix() {
		t.Errorf("image: mode %o, %d links, uid %d, mtime %d", st.Mode, st.Nlink, st.Uid, st.Mtim.Sec)
	}
	st = stat(t, filepath.Join(vol, b.ID))
	if st.Mode != syscall.S_IFDIR|0o555 || st.Mtim.Sec != b.Time.Unix() {
		t.Errorf("backup: mode %o, mtime %d", st.Mode, st.Mtim.Sec)
	}

	text, err := os.ReadFile(filepath.Join(vol, b.ID, recordName))
	if err != nil {
		t.Fatal(err)
	}
	var got fakeRecord
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if want := (fakeRecord{"vol-1", b.ID, len(b.image)}); got != want || !strings.HasSuffix(string(text), "}\n") {
		t.Errorf("backup.json is %s, want %+v", text, want)
	}
}

func TestNothingCanBeWritten(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	b := r.add("vol", randomImage(rng, 1<<20), rng)
	m := mountFake(t, r, Options{})
	image := filepath.Join(m.Dir(), "vol", b.ID, imageName)
	for name, try := range map[string]func() error{
		"open for writing": func() error { _, err := os.OpenFile(image, os.O_RDWR, 0); return err },
		"truncate":         func() error { return os.Truncate(image, 0) },
		"remove":           func() error { return os.Remove(image) },
		"create":           func() error { return os.WriteFile(filepath.Join(m.Dir(), "new"), nil, 0o644) },
		"make a folder":    func() error { return os.Mkdir(filepath.Join(m.Dir(), "vol", "new"), 0o755) },
		"rename":           func() error { return os.Rename(image, image+".old") },
	} {
		if err := try(); !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v, want EROFS", name, err)
		}
	}
}

func TestNoSuchName(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	b := r.add("vol", randomImage(rng, 1<<20), rng)
	var log lockedBuilder
	m := mountFake(t, r, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	for _, name := range []string{"none", "vol/none", "vol/" + b.ID + "/none", "latest"} {
		if _, err := os.Stat(filepath.Join(m.Dir(), name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v, want ErrNotExist", name, err)
		}
	}
	if log.String() != "" {
		t.Errorf("a name that is not there was logged: %s", log.String())
	}
}

// TestLooksCostLittle: listing reads no record, looking at a backup reads its record only, opening reads nothing.
func TestLooksCostLittle(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	image := make([]byte, 64<<10)
	fillText(rng, image)
	for range 100 {
		r.add("vol", image, rng)
	}
	m := mountFake(t, r, Options{Refresh: time.Minute})
	cost := func() [3]int64 { return [3]int64{r.records.Load(), r.lists.Load(), r.reads.Load()} }
	vol := filepath.Join(m.Dir(), "vol")
	for _, name := range names(t, vol) {
		stat(t, filepath.Join(vol, name))
	}
	if got := cost(); got != [3]int64{} {
		t.Errorf("listing a volume cost %d records, lists, chunks; want none", got)
	}
	for range 3 {
		stat(t, filepath.Join(vol, "latest", imageName))
		names(t, filepath.Join(vol, "latest"))
	}
	if got, want := cost(), [3]int64{1}; got != want {
		t.Errorf("looking at a backup cost %d records, lists, chunks; want %d", got, want)
	}
	f, err := os.Open(filepath.Join(vol, "latest", imageName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, want := cost(), [3]int64{1}; got != want {
		t.Errorf("opening cost %d records, lists, chunks; want %d", got, want)
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	if got := cost(); got[1] == 0 {
		t.Errorf("reading cost %d: the counters do not count", got)
	}
}

func TestNewBackupAppears(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	first := r.add("vol", randomImage(rng, 1<<20), rng)
	m := mountFake(t, r, Options{Refresh: 20 * time.Millisecond})
	vol := filepath.Join(m.Dir(), "vol")
	open, err := os.Open(filepath.Join(vol, latestName, imageName))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	second := r.add("vol", randomImage(rng, 2<<20), rng)
	r.add("new volume", second.image, rng)
	waitFor(t, "the new backup", func() bool {
		_, err := os.Stat(filepath.Join(vol, second.ID, imageName))
		return err == nil
	})
	waitFor(t, "latest", func() bool {
		to, err := os.Readlink(filepath.Join(vol, latestName))
		return err == nil && to == second.ID
	})
	waitFor(t, "the new volume", func() bool { return slices.Contains(names(t, m.Dir()), "new volume") })
	if got, want := names(t, vol), []string{first.ID, second.ID, latestName}; !slices.Equal(got, want) {
		t.Errorf("the volume lists %q, want %q", got, want)
	}
	if st := stat(t, filepath.Join(vol, latestName, imageName)); st.Size != int64(len(second.image)) {
		t.Errorf("latest has %d bytes, want %d", st.Size, len(second.image))
	}
	if err := compareAll(open, first.image); err != nil {
		t.Errorf("the file that was open before: %v", err)
	}
}

// TestHostileNames: names that cannot be files are left out and logged, the rest works.
func TestHostileNames(t *testing.T) {
	rng := seeded(t)
	r := newFakeRepo(t)
	image := randomImage(rng, 1<<20)
	good := []string{"plain", "with space", "ünïcode", "-dash", strings.Repeat("a", 255)}
	bad := []string{"", ".", "..", "a/b", "/", "nul\x00", strings.Repeat("b", 256)}
	for _, name := range slices.Concat(good, bad) {
		r.add(name, image, rng)
	}
	for i, name := range []string{"..", "x/y", latestName} {
		r.add("plain", image, rng).ID = name
		_ = i
	}
	var log lockedBuilder
	m := mountFake(t, r, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	want := slices.Sorted(slices.Values(good))
	if got := names(t, m.Dir()); !slices.Equal(got, want) {
		t.Errorf("the root lists %q, want %q", got, want)
	}
	plain := names(t, filepath.Join(m.Dir(), "plain"))
	if len(plain) != 2 || plain[1] != latestName {
		t.Errorf("the volume lists %q, want one backup and latest", plain)
	}
	if n := strings.Count(log.String(), "left out"); n < len(bad)+3 {
		t.Errorf("%d names were logged as left out, want %d or more:\n%s", n, len(bad)+3, log.String())
	}
}

// brokenRepo fails where it is told to.
type brokenRepo struct {
	*fakeRepo
	volumes, backups, backup error
	shown                    *Backup
}

func (r *brokenRepo) Volumes(ctx context.Context) ([]string, error) {
	names, err := r.fakeRepo.Volumes(ctx)
	return names, errors.Join(err, r.volumes)
}

func (r *brokenRepo) Backups(ctx context.Context, volume string) ([]Entry, error) {
	list, err := r.fakeRepo.Backups(ctx, volume)
	return list, errors.Join(err, r.backups)
}

func (r *brokenRepo) Backup(ctx context.Context, volume, id string) (*Backup, error) {
	if r.shown != nil {
		return r.shown, nil
	}
	b, err := r.fakeRepo.Backup(ctx, volume, id)
	return b, errors.Join(err, r.backup)
}

func TestBrokenRepository(t *testing.T) {
	broken := errors.New("the store is away")
	for _, tc := range []struct {
		name string
		repo brokenRepo
		path string
		want error
	}{
		{"volumes", brokenRepo{volumes: broken}, "vol", syscall.EIO},
		{"backups", brokenRepo{backups: broken}, "vol/latest", syscall.EIO},
		{"record", brokenRepo{backup: broken}, "vol/latest/image.raw", syscall.EIO},
		{"denied", brokenRepo{backup: fmt.Errorf("get: %w", syscall.EACCES)}, "vol/latest/image.raw", syscall.EACCES},
		{"negative size", brokenRepo{shown: &Backup{Size: -1}}, "vol/latest/backup.json", syscall.EIO},
		{"record that is no JSON", brokenRepo{shown: &Backup{Record: func() {}}}, "vol/latest/backup.json", syscall.EIO},
		{"no image", brokenRepo{shown: &Backup{Record: 1}}, "vol/latest/image.raw", syscall.ENOENT},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rng := seeded(t)
			tc.repo.fakeRepo = newFakeRepo(t)
			tc.repo.add("vol", randomImage(rng, 1<<20), rng)
			var log lockedBuilder
			m := mountFake(t, &tc.repo, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
			for range 3 {
				if _, err := os.Stat(filepath.Join(m.Dir(), tc.path)); !errors.Is(err, tc.want) {
					t.Fatalf("%s: %v, want %v", tc.path, err, tc.want)
				}
			}
			want := 1
			if tc.want == syscall.ENOENT {
				want = 0
			}
			if n := strings.Count(log.String(), "level=ERROR"); n != want {
				t.Errorf("%d errors logged, want %d:\n%s", n, want, log.String())
			}
		})
	}
}

// TestHungListing: who waits for an answer that does not come can give up, and the next one asks again.
func TestHungListing(t *testing.T) {
	hung := make(chan struct{})
	calls := 0
	r := remember(time.Minute, func(ctx context.Context) (int, error) {
		if calls++; calls == 1 {
			close(hung)
			<-ctx.Done()
			return 0, ctx.Err()
		}
		return 7, nil
	})
	first, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := r.get(first)
		failed <- err
	}()
	<-hung
	second, cancelSecond := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancelSecond()
	if _, err := r.get(second); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who waited got %v", err)
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("who asked got %v", err)
	}
	for range 2 {
		if got, err := r.get(t.Context()); got != 7 || err != nil {
			t.Errorf("the next one got %d, %v", got, err)
		}
	}
	if calls != 2 {
		t.Errorf("asked %d times, want 2", calls)
	}
}
