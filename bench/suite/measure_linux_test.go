package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test program be the processes that the suite starts of itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == measuredArg || os.Args[1] == plainFuseArg) {
		if err := dispatch(context.Background(), os.Args[1:]); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestMeasureTree: what a command's orphans use and read is in the account, and the wall time is the command's own.
func TestMeasureTree(t *testing.T) {
	file := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	script := `(sleep 1; cat ` + file + ` >/dev/null; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done) & echo answer`
	begin := time.Now()
	out, c, err := measure(t.Context(), command{argv: []string{"sh", "-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); got != "answer" {
		t.Errorf("stdout is %q", got)
	}
	if c.Read < 8<<20 || c.Read > 10<<20 {
		t.Errorf("%d bytes read, not the file's 8 MiB", c.Read)
	}
	if total := time.Since(begin); c.CPU < 20*time.Millisecond || c.Wall > total-200*time.Millisecond || c.PeakKiB < 500 {
		t.Errorf("%+v in %v", c, total)
	}
}

func TestMeasureFailure(t *testing.T) {
	_, c, err := measure(t.Context(), command{argv: []string{"sh", "-c", "echo the reason >&2; exit 7"}})
	if err == nil || !strings.Contains(err.Error(), "the reason") || c.Status != 7 {
		t.Errorf("%+v, %v", c, err)
	}
	if _, _, err = measure(t.Context(), command{argv: []string{"no-such-program"}}); err == nil {
		t.Error("a program that does not exist: no error")
	}
}

// TestMeasureCancel: cancelling ends the whole tree.
func TestMeasureCancel(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, c, err := measure(ctx, command{argv: []string{"sh", "-c", "sleep 60 & sleep 60"}})
	if err == nil || c.Status != 128+15 || time.Since(begin) > 10*time.Second {
		t.Errorf("%+v, %v after %v", c, err, time.Since(begin))
	}
}
