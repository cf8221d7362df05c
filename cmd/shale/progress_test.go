package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestProgressLines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		a := &app{stderr: &out, progressEvery: 10 * time.Second}
		p := a.newProgress("backup")
		p.Total(10 << 20)
		p.Add(1 << 20)
		time.Sleep(9 * time.Second)
		p.Add(1 << 20)
		if out.Len() > 0 {
			t.Errorf("after 9 s there is %q", &out)
		}
		time.Sleep(time.Second)
		p.Add(1 << 20)
		p.Add(1 << 20) // at once: not worth a line
		time.Sleep(25 * time.Second)
		p.set(8<<20, 12<<20)
		p.done()
		p.Add(1 << 20)
		time.Sleep(time.Minute)
		p.Add(1 << 20)
		if want := "backup: 3.0 MiB of 10.0 MiB\nbackup: 8.0 MiB of 12.0 MiB\n"; out.String() != want {
			t.Errorf("lines are %q, want %q", &out, want)
		}
	})
}

func TestProgressOfNumbers(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := (&app{stderr: &out}).newProgress("packs")
	p.unit = unitNumber
	p.set(3, 2000)
	p.set(2, 2000) // told late by another goroutine
	p.done()
	if want := "packs: 3 of 2000\npacks: 3 of 2000\n"; out.String() != want {
		t.Errorf("lines are %q, want %q", &out, want)
	}
}

func TestProgressQuiet(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := (&app{stderr: &out, quiet: true}).newProgress("backup")
	p.Total(10)
	p.Add(10)
	p.done()
	if out.Len() > 0 {
		t.Errorf("--quiet draws %q", &out)
	}
}

// However often progress is drawn, stdout is the answer alone.
func TestProgressStaysOffStdout(t *testing.T) {
	s := newSession(t)
	repo, img := s.init(), s.image("img", noise(50, 8<<20))
	runWith := func(args ...string) (stdout, stderr string) {
		var out, talk bytes.Buffer
		a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &talk}
		if code := a.run(t.Context(), append([]string{"--cache-dir", s.path("cache")}, args...)); code != 0 {
			t.Fatalf("%v: exit code %d: %s", args, code, &talk)
		}
		return out.String(), talk.String()
	}
	create := []string{"backup", "create", img, "--dest", repo, "--volume", "db"}
	out, talk := runWith(append(create, "--json")...)
	var created struct{ URL string }
	if err := json.Unmarshal([]byte(out), &created); err != nil || created.URL == "" {
		t.Errorf("stdout is %q: %v", out, err)
	}
	says(t, talk, "backup: ", " of 8.0 MiB\n")
	for what, args := range map[string][]string{
		"verify":  {"backup", "verify", created.URL},
		"restore": {"backup", "restore", created.URL, s.path("out")},
		"check":   {"repo", "check", "--data", repo},
		"packs":   {"repo", "reindex", repo},
	} {
		out, talk := runWith(append(args, "--json")...)
		if !json.Valid([]byte(out)) {
			t.Errorf("stdout of %v is %q", args, out)
		}
		says(t, talk, what+": ")
	}
	if out, talk := runWith(append(create, "--quiet")...); talk != "" || strings.Count(out, "\n") != 1 {
		t.Errorf("--quiet: stdout is %q, stderr %q", out, talk)
	}
}

// openTerminal opens a pseudo-terminal and its other end.
func openTerminal(t *testing.T) (tty, ptmx *os.File) {
	t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	fd := int(ptmx.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 120})
	}
	if err == nil {
		tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Skip(err)
	}
	return tty, ptmx
}

// terminal opens a pseudo-terminal; what is written to it is in the buffer when it was closed.
func terminal(t *testing.T) (tty *os.File, read func() string) {
	t.Helper()
	tty, ptmx := openTerminal(t)
	text := make(chan string)
	go func() {
		b, _ := io.ReadAll(ptmx) // ends with EIO when the terminal is closed
		text <- string(b)
	}()
	return tty, func() string {
		_ = tty.Close()
		defer ptmx.Close()
		return <-text
	}
}

func TestProgressBar(t *testing.T) {
	t.Parallel()
	for _, u := range []unit{unitBytes, unitNumber} {
		tty, read := terminal(t)
		p := (&app{stderr: tty, progressEvery: time.Hour}).newProgress("restore")
		p.unit = u
		p.Total(4 << 20)
		p.Add(1 << 20)
		time.Sleep(300 * time.Millisecond) // mpb draws every 150 ms
		p.done()
		text := read()
		want := "1.0 MiB / 4.0 MiB"
		if u == unitNumber {
			want = "1048576 / 4194304"
		}
		says(t, text, "restore ", want)
	}
	tty, read := terminal(t)
	p := (&app{stderr: tty, quiet: true}).newProgress("restore")
	p.Total(1)
	p.done()
	if text := read(); text != "" {
		t.Errorf("--quiet draws %q", text)
	}
}
