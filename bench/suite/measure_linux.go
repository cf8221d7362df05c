package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cost is what a command and all processes that it started used, by the kernel's accounts.
type cost struct {
	Wall    time.Duration `json:"wall"`
	CPU     time.Duration `json:"cpu"`     // user and system
	PeakKiB int64         `json:"peak"`    // resident memory of the largest process of the tree
	Read    int64         `json:"read"`    // bytes that read calls returned; what is read through a mapping is not in it
	Written int64         `json:"written"` // bytes given to write calls
	Others  time.Duration `json:"-"`       // CPU time that the rest of the machine used meanwhile
	Status  int           `json:"status"`  // exit code; 128 and the signal for one that was ended
}

// command is a program to run, in a folder and with additions to the environment.
type command struct {
	argv []string
	env  []string
	dir  string
}

// String is the command as a reader would type it, with the folder of the run left out.
func (c command) String() string { return strings.Join(c.argv, " ") }

const measuredArg = "measured"

// measure runs a command to its end. stdout is its answer; on failure the error holds the end of what it said.
func measure(ctx context.Context, c command) (stdout []byte, _ cost, err error) {
	p, err := startMeasured(ctx, c)
	if err != nil {
		return nil, cost{}, err
	}
	used, err := p.wait()
	return p.stdout.Bytes(), used, err
}

// running is a measured command under way.
type running struct {
	c      command
	cmd    *exec.Cmd
	report *os.File
	stdout bytes.Buffer
	talk   bytes.Buffer
	busy   time.Duration // of the machine, when it began
	ended  chan struct{} // closed when it has; then result is set
	result error
}

// startMeasured starts the command below a small process of its own: one that has little memory, which the command would inherit in its
// account, and to which orphans are given.
func startMeasured(ctx context.Context, c command) (*running, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	p := &running{c: c, report: r}
	p.cmd = exec.CommandContext(ctx, self, append([]string{measuredArg}, c.argv...)...)
	p.cmd.Env = append(os.Environ(), c.env...)
	p.cmd.Dir, p.cmd.ExtraFiles = c.dir, []*os.File{w}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.talk
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Cancel = func() error { return syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM) }
	p.cmd.WaitDelay = 20 * time.Second
	if p.busy, err = machineBusy(); err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", c, err), r.Close())
	}
	p.ended = make(chan struct{})
	go func() {
		p.result = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// interrupt asks the command to end.
func (p *running) interrupt() error {
	select {
	case <-p.ended:
		return nil // its number may be another's by now
	default:
		return syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT)
	}
}

// wait waits for the command and all that it started.
func (p *running) wait() (used cost, err error) {
	defer func() { err = closing(err, p.report) }()
	<-p.ended
	if err := json.NewDecoder(p.report).Decode(&used); err != nil {
		return used, fmt.Errorf("%s: no account of it: %w: %s", p.c, errors.Join(p.result, err), lastLines(p.talk.String()))
	}
	busy, err := machineBusy()
	if err != nil {
		return used, err
	}
	used.Others = max(0, busy-p.busy-used.CPU)
	if used.Status != 0 {
		return used, fmt.Errorf("%s: exit status %d: %s", p.c, used.Status, lastLines(p.talk.String()))
	}
	return used, nil
}

func lastLines(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 2000 {
		s = "..." + s[len(s)-2000:]
	}
	return s
}

// measuredMain runs a command, waits for all descendants and writes the account to descriptor 3.
func measuredMain(argv []string) error {
	if len(argv) == 0 {
		return errors.New("measured: no command")
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper: %w", err)
	}
	// Caught, not ignored: what is ignored stays so in the command.
	signal.Notify(make(chan os.Signal, 8), syscall.SIGINT, syscall.SIGTERM) // they go to the whole group; this process outlives it
	unix.CloseOnExec(3)
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	read, written, err := ioAccount()
	if err != nil {
		return err
	}
	used := cost{}
	begin := time.Now()
	child, err := os.StartProcess(path, argv, &os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}})
	if err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		var usage unix.Rusage
		pid, err := unix.Wait4(-1, &status, 0, &usage)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ECHILD) {
			break
		}
		if err != nil {
			return fmt.Errorf("wait: %w", err)
		}
		used.CPU += time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
		used.PeakKiB = max(used.PeakKiB, usage.Maxrss)
		if pid == child.Pid {
			used.Wall, used.Status = time.Since(begin), status.ExitStatus()
			if status.Signaled() {
				used.Status = 128 + int(status.Signal())
			}
		}
	}
	r, w, err := ioAccount()
	if err != nil {
		return err
	}
	used.Read, used.Written = r-read, w-written
	return json.NewEncoder(os.NewFile(3, "report")).Encode(used)
}

// ioAccount returns what this process and those of its descendants that were waited for have read and written.
func ioAccount() (read, written int64, err error) {
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/self/io: %w", err)
		}
		switch name {
		case "rchar":
			read = n
		case "wchar":
			written = n
		}
	}
	return read, written, nil
}

// machineBusy returns the CPU time that the machine has spent on anything.
func machineBusy() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 {
		return 0, fmt.Errorf("/proc/stat: %q", line)
	}
	var ticks int64
	for i, f := range fields[1:9] { // user nice system idle iowait irq softirq steal
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		if i != 3 && i != 4 {
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / 100, nil // USER_HZ
}

// ownCPU is the CPU time of this process.
func ownCPU() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
