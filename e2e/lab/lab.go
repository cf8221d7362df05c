package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Guest is what one boot of the guest gets. The zero value is good for most tests.
type Guest struct {
	Disks   []string      // raw images: /dev/vda, /dev/vdb, ... in the guest
	Memory  int           // MiB; 0: 3072. Files in the guest take from it
	Out     string        // folder of the host that is writable at /out; empty: a temporary one
	Env     []string      // NAME=value, for the command
	Timeout time.Duration // for the whole run; 0: 5 minutes
}

// Require skips the test unless SHALE_E2E=1 asks for end-to-end tests.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv("SHALE_E2E") != "1" {
		t.Skip("set SHALE_E2E=1 to run tests in the lab guest (needs what scripts/setup installs)")
	}
}

// Run boots the guest and runs a command in it as root. Its output, and what the kernel says meanwhile, goes to w as it
// comes. An *exec.ExitError has the command's status; 124: the timeout, 125: the guest died.
func (g Guest) Run(ctx context.Context, w io.Writer, command ...string) error {
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(root, "e2e", "lab", "run"), g.args(command)...)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }) // the script and its guest
	defer stop()
	return cmd.Wait()
}

// before is the limit for the guest, so that it ends before the test's deadline: nobody would be left to end it then.
func (g Guest) before(t *testing.T) time.Duration {
	limit := g.Timeout
	if limit == 0 {
		limit = 5 * time.Minute
	}
	if deadline, ok := t.Deadline(); ok {
		limit = max(time.Second, min(limit, time.Until(deadline)-deadlineSpare))
	}
	return limit
}

// deadlineSpare is for ending the guest and reporting its tests.
const deadlineSpare = 10 * time.Second

func (g Guest) args(command []string) []string {
	var args []string
	for _, d := range g.Disks {
		args = append(args, "-d", d)
	}
	if g.Memory != 0 {
		args = append(args, "-m", strconv.Itoa(g.Memory))
	}
	if g.Out != "" {
		args = append(args, "-o", g.Out)
	}
	if g.Timeout != 0 {
		args = append(args, "-t", strconv.Itoa(int(g.Timeout.Seconds())))
	}
	args = append(args, "env")
	return append(append(args, g.Env...), command...)
}

// Test compiles the tests of a package, runs them in one boot of the guest, and reports each as a subtest of t. pattern, when
// given, is what -test.run takes. A test that skips in the guest fails: whatever it misses belongs into scripts/setup.
func (g Guest) Test(t *testing.T, pkg string, pattern ...string) {
	t.Helper()
	Require(t)
	binary := Compile(t, "test", "-c", pkg)
	g.Timeout = g.before(t)
	command := []string{binary, "-test.v", "-test.timeout", "0"}
	if len(pattern) > 0 {
		command = append(command, "-test.run", strings.Join(pattern, "|"))
	}
	r, w := io.Pipe()
	ran := make(chan error, 1)
	start := time.Now()
	go func() {
		err := g.Run(t.Context(), w, command...)
		ran <- errors.Join(err, w.Close())
	}()
	var live io.Writer
	if testing.Verbose() {
		live = os.Stdout
	}
	results, rest := parse(r, live)
	err := <-ran
	t.Logf("guest: %d tests in %.1f s, boot included", len(results), time.Since(start).Seconds())
	for _, res := range results {
		t.Run(res.name, func(t *testing.T) { res.report(t) })
	}
	switch {
	case err != nil && !t.Failed():
		t.Errorf("guest: %v\n%s", err, rest)
	case len(results) == 0:
		t.Errorf("guest: no test ran\n%s", rest)
	}
}

// Compile runs `go test` or `go build` with the given arguments so that the result, whose path it returns, is a static binary:
// it runs in the guest at that path.
func Compile(t testing.TB, verb string, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "bin")
	cmd := exec.CommandContext(t.Context(), "go", append([]string{verb, "-o", out}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, msg)
	}
	return out
}

// result is what the guest said of one test.
type result struct {
	name    string
	verdict string // PASS, FAIL or SKIP; empty: it never ended
	output  strings.Builder
}

func (r *result) report(t *testing.T) {
	switch r.verdict {
	case "PASS":
		t.Log("in the guest:\n" + r.output.String())
	case "":
		t.Errorf("did not end in the guest:\n%s", r.output.String())
	default:
		t.Errorf("%s in the guest:\n%s", r.verdict, r.output.String())
	}
}

// parse reads the output of a test binary run with -test.v, line by line, and copies it to live unless that is nil. Output
// outside any test is returned as rest.
func parse(r io.Reader, live io.Writer) (results []*result, rest string) {
	var outside strings.Builder
	var current *result
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if line != "" && live != nil {
			fmt.Fprint(live, "    guest| ", strings.TrimRight(line, "\n"), "\n")
		}
		if name, ok := strings.CutPrefix(line, "=== RUN   "); ok && !strings.Contains(name, "/") {
			current = &result{name: strings.TrimSpace(name)}
			results = append(results, current)
		}
		switch {
		case current != nil:
			current.output.WriteString(line)
		default:
			outside.WriteString(line)
		}
		if name, verdict, ok := parseVerdict(line); ok && current != nil && name == current.name {
			current.verdict = verdict
			current = nil
		}
		if err != nil {
			return results, outside.String()
		}
	}
}

// parseVerdict reads "--- PASS: TestName (0.01s)".
func parseVerdict(line string) (name, verdict string, ok bool) {
	rest, ok := strings.CutPrefix(line, "--- ")
	if !ok {
		return "", "", false
	}
	verdict, rest, ok = strings.Cut(rest, ": ")
	name, _, ok2 := strings.Cut(rest, " (")
	return name, verdict, ok && ok2
}

// moduleRoot is the folder of this module's go.mod.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("lab: go env: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}
