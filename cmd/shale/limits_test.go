package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestByteRate(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "1": 1, "512": 512, "512b": 512, "10K": 10 << 10, "10M": 10 << 20, "1.5m": 3 << 19, "2G": 2 << 30, "1T": 1 << 40,
	} {
		var r byteRate
		if err := r.Set(s); err != nil || int64(r) != want {
			t.Errorf("%s: got %d, %v, want %d", s, r, err, want)
		}
	}
	for _, s := range []string{"", "M", "-1", "1MM", "10 M", "0.1", "inf", "10MB", "10M/s", "8388608T"} {
		var r byteRate
		if err := r.Set(s); err == nil {
			t.Errorf("%q: got %d, want an error", s, r)
		}
	}
}

// What a command tells that it moved is what lies in the repository, and what it was given to read.
func TestTransfer(t *testing.T) {
	s := newSession(t)
	repo, img := s.init(), s.image("img", noise(30, 3<<20))
	before := s.stored(repo)
	var got struct {
		URL      string
		Transfer transfer
	}
	s.json(0, &got, "backup", "create", img, "--dest", repo, "--volume", "db")
	tr := got.Transfer
	if tr.SourceRead != 3<<20 || tr.Uploaded != s.stored(repo)-before || tr.Requests.Put == 0 || tr.Seconds <= 0 {
		t.Errorf("create: %+v, want source_read %d, uploaded %d", tr, 3<<20, s.stored(repo)-before)
	}
	if want := float64(tr.Uploaded) / tr.Seconds; float64(tr.UploadRate) < 0.99*want || float64(tr.UploadRate) > 1.01*want {
		t.Errorf("create: upload_rate %d, want %.0f", tr.UploadRate, want)
	}
	for _, args := range [][]string{
		{"backup", "restore", got.URL, s.path("restored")}, {"backup", "verify", got.URL}, {"repo", "check", repo, "--data"},
	} {
		var read struct{ Transfer transfer }
		s.json(0, &read, args...)
		if tr := read.Transfer; tr.Downloaded < 3<<20 || tr.Uploaded != 0 || tr.Requests.Read == 0 || tr.SourceRead != 0 {
			t.Errorf("%v: %+v, want 3 MiB downloaded", args, tr)
		}
	}
	said := s.run(0, "backup", "create", s.image("other", noise(31, 1<<20)), "--dest", repo, "--volume", "db").talk
	says(t, said, "transfer: up 1.0 MiB (", "source 1.0 MiB (", "requests: ", " put")
	if said := s.run(0, "repo", "check", repo, "--quiet").talk; said != "" {
		t.Errorf("--quiet says %q", said)
	}
}

// stored is the sum of all objects' sizes.
func (s *session) stored(repo string) (n int64) {
	s.t.Helper()
	err := filepath.Walk(repo, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// Each limit slows what it is for, and nothing else.
func TestLimits(t *testing.T) {
	s := newSession(t)
	repo, img := s.init("--pack-size", "1"), s.image("img", noise(32, 2<<20))
	timed := func(args ...string) (string, time.Duration) {
		start := time.Now()
		out := s.run(0, args...).out
		return lastLine(out), time.Since(start)
	}
	create := func(volume string, flags ...string) (string, time.Duration) {
		return timed(append([]string{"backup", "create", img, "--dest", repo, "--volume", volume}, flags...)...)
	}
	const least = 900 * time.Millisecond // of 2 MiB at 2 MiB/s, but for what may go at once
	url, took := create("first", "--limit-upload", "2M")
	if took < least {
		t.Errorf("create --limit-upload took %v", took)
	}
	if _, took := create("read", "--limit-read", "2M", "--full"); took < least {
		t.Errorf("create --limit-read took %v", took)
	}
	if _, took := create("nothing", "--limit-upload", "20K", "--full"); took > 50*time.Second { // 2 MiB would take twice that
		t.Errorf("create --limit-upload that stores nothing took %v", took)
	}
	for _, args := range [][]string{
		{"backup", "restore", url, s.path("restored")}, {"backup", "verify", url}, {"repo", "check", repo, "--data"},
	} {
		if _, took := timed(append(args, "--limit-download", "2M")...); took < least {
			t.Errorf("%v --limit-download took %v", args, took)
		}
	}
}

// The priorities are those of every thread.
func TestPriority(t *testing.T) {
	s := newSession(t)
	repo, img := s.init(), s.image("img", noise(33, 1<<20))
	cmd := command(t, "backup", "create", img, "--dest", repo, "--volume", "db", "--cache-dir", s.path("cache"),
		"--limit-read", "1K", "--parallel", "8", "--nice", "7", "--ionice", "best-effort:6")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}()
	threads := func() (all, low int) {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil {
				t.Fatal(err)
			}
			nice, err := unix.Getpriority(unix.PRIO_PROCESS, tid) // as 20 - nice
			prio, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioWhoProcess, uintptr(tid), 0)
			if err != nil || errno != 0 {
				continue // the thread ended
			}
			all++
			if nice == 20-7 && prio == 2<<ioprioClassShift|6 {
				low++
			}
		}
		return all, low
	}
	all, low := 0, 0
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && (low == 0 || low < all); time.Sleep(10 * time.Millisecond) {
		all, low = threads()
	}
	time.Sleep(200 * time.Millisecond) // more threads
	if all, low = threads(); all < 3 || low != all {
		t.Errorf("%d of %d threads have the priority", low, all)
	}
}

func TestParseIonice(t *testing.T) {
	for s, want := range map[string]int{
		"idle": 3 << 13, "best-effort": 2<<13 | 4, "best-effort:0": 2 << 13, "best-effort:7": 2<<13 | 7, "realtime:1": 1<<13 | 1,
	} {
		if got, err := parseIonice(s); err != nil || got != want {
			t.Errorf("%s: got %#x, %v, want %#x", s, got, err, want)
		}
	}
	for _, s := range []string{"", "none", "idle:0", "best-effort:", "best-effort:-1", "best-effort:8", "3", "idle:x", strings.Repeat("x", 100)} {
		if got, err := parseIonice(s); err == nil {
			t.Errorf("%s: got %#x, want an error", s, got)
		}
	}
}
