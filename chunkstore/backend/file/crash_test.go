package file

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
)

const crashFolder = "SHALE_TEST_CRASH_FOLDER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashFolder); dir != "" {
		fmt.Fprintln(os.Stderr, putForever(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// putForever is the process that gets killed. It writes a line to stdout for each Put that returned.
func putForever(dir string) error {
	b, err := Open(dir)
	if err != nil {
		return err
	}
	errs := make(chan error)
	for w := range 3 {
		go func() { errs <- putLoop(b, w) }()
	}
	return <-errs
}

func putLoop(b *Backend, worker int) error {
	ctx := context.Background()
	for i := 0; ; i++ {
		name := fmt.Sprintf("p%d/w%d/%d/%d", os.Getpid(), worker, i%7, i)
		put := b.Put
		if i%2 == 1 {
			put = b.PutIfAbsent
		}
		if err := put(ctx, name, crashContent(name)); err != nil {
			return err
		}
		hot := fmt.Sprintf("hot/w%d", worker)
		version := uint64(time.Now().UnixNano())
		if err := b.Put(ctx, hot, versionContent(hot, version)); err != nil {
			return err
		}
		// One write of less than PIPE_BUF bytes: lines of workers do not mix.
		if _, err := fmt.Printf("%s %s %d\n", name, hot, version); err != nil {
			return err
		}
	}
}

// crashContent has 0 to 255 KiB.
func crashContent(name string) []byte {
	return backendtest.Content(name, int(backendtest.Content(name, 1)[0])<<10)
}

// versionContent is that of an object which is replaced again and again.
func versionContent(name string, version uint64) []byte {
	p := binary.LittleEndian.AppendUint64(nil, version)
	return append(p, backendtest.Content(name+strconv.FormatUint(version, 10), int(version%100_000))...)
}

// TestKill kills a writing process at random moments. What it was told to be stored is there, and all that is there is whole.
func TestKill(t *testing.T) {
	seed := time.Now().UnixNano()
	if s := os.Getenv("SHALE_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseInt(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d (SHALE_TEST_SEED)", seed)
	rnd := rand.New(rand.NewPCG(uint64(seed), 0))
	b := create(t, Options{})
	acked, versions := map[string]bool{}, map[string]uint64{}
	temporaries := 0
	for round := range 8 {
		lines := killWriter(t, b.Location(), time.Duration(rnd.IntN(60_000))*time.Microsecond)
		for _, line := range lines {
			var name, hot string
			var version uint64
			if _, err := fmt.Sscan(line, &name, &hot, &version); err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
			acked[name] = true
			versions[hot] = max(versions[hot], version)
		}
		checkWhole(t, b, acked, versions)
		n, _, err := b.RemoveStale(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		temporaries += n
		t.Logf("round %d: %d puts acknowledged, %d temporaries left", round, len(lines), n)
	}
	if len(acked) == 0 || temporaries == 0 {
		t.Errorf("%d puts acknowledged, %d interrupted: the test did not test", len(acked), temporaries)
	}
}

// killWriter runs a writer, kills it some time after its first line, and returns its lines.
func killWriter(t *testing.T, dir string, after time.Duration) []string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashFolder+"="+dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	first, err := lines.ReadString('\n')
	var rest []byte
	var wg sync.WaitGroup
	wg.Go(func() { rest, _ = io.ReadAll(lines) })
	time.Sleep(after)
	killErr := cmd.Process.Kill()
	wg.Wait()
	waitErr := cmd.Wait()
	if err != nil || killErr != nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("writer ended by itself: %v, %v, %v: %s", err, killErr, waitErr, stderr.String())
	}
	return strings.Split(strings.TrimSuffix(first+string(rest), "\n"), "\n")
}

func checkWhole(t *testing.T, b *Backend, acked map[string]bool, versions map[string]uint64) {
	t.Helper()
	seen := map[string]bool{}
	for _, o := range listAll(t, b) {
		seen[o.Name] = true
		got, err := backend.ReadAll(t.Context(), b, o.Name)
		if err != nil {
			t.Fatal(err)
		}
		want := crashContent(o.Name)
		if strings.HasPrefix(o.Name, "hot/") {
			if len(got) < 8 {
				t.Fatalf("%s has %d bytes", o.Name, len(got))
			}
			version := binary.LittleEndian.Uint64(got)
			if version < versions[o.Name] {
				t.Errorf("%s is at %d, but %d was acknowledged", o.Name, version, versions[o.Name])
			}
			want = versionContent(o.Name, version)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not whole: %d bytes, want %d", o.Name, len(got), len(want))
		}
	}
	for name := range acked {
		if !seen[name] {
			t.Errorf("%s was acknowledged and is not there", name)
		}
	}
	for name := range versions {
		if !seen[name] {
			t.Errorf("%s was acknowledged and is not there", name)
		}
	}
}

func listAll(t *testing.T, b *Backend) []backend.Object {
	t.Helper()
	var objs []backend.Object
	err := b.List(t.Context(), "", func(o backend.Object) error {
		objs = append(objs, o)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return objs
}
