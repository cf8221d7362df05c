package pool

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

// WatchdogCommand is the argument with which a program is started to call RunWatchdog.
const WatchdogCommand = "internal-resume"

// guard watches over a frozen volume while its snapshot is taken.
type guard interface {
	inherited() *os.File // to be held open by the command that suspends
	done() error         // the volume is resumed: nothing is left to do
	abandon()            // the volume could not be resumed: go on trying
}

// The watchdog is a process of its own that reads a pipe from the one that suspends. The word "done" ends it. When the pipe
// closes without it, its writer is dead, and the watchdog resumes the volume; when the limit is over it does so, too. The
// commands that suspend and create hold the pipe open as well: at the pipe's end nobody is left who could suspend later.
const (
	watchdogReady = "ready"
	watchdogDone  = "done"

	watchdogStart = 10 * time.Second       // limit for starting it
	watchdogTries = 10 * time.Minute       // how long it goes on resuming
	watchdogPause = 500 * time.Millisecond // between tries
)

// RunWatchdog is the watchdog's whole life; the program that uses this package calls it in a process of its own when it is
// started with WatchdogCommand and these arguments: device-mapper's name of the volume, and the limit as a duration. stdin
// and stdout are the pipes to the process that started it. Signals that ask to end are ignored.
func RunWatchdog(args []string, stdin io.Reader, stdout io.Writer) error {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	return New(Config{}).watch(args, stdin, stdout)
}

func (h *Host) watch(args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) != 2 {
		return fmt.Errorf("watchdog: want a device and a duration, got %d arguments", len(args))
	}
	device := args[0]
	limit, err := time.ParseDuration(args[1])
	if err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	ctx := context.Background()
	// Asked before the freeze, so that dmsetup works, and is in memory should it lie on the volume.
	if _, err := h.infoByName(ctx, device); err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	if _, err := fmt.Fprintln(stdout, watchdogReady); err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	ended := make(chan bool, 1) // true: done was said
	go func() {
		line, _ := bufio.NewReader(stdin).ReadString('\n')
		ended <- line == watchdogDone+"\n"
	}()
	select {
	case done := <-ended:
		if done {
			return nil
		}
	case <-time.After(limit):
		err := h.resumeLong(ctx, device)
		if done := <-ended; done { // else: the suspending command outlived the limit
			return err
		}
	}
	return h.resumeLong(ctx, device)
}

// resumeLong resumes for as long as it takes.
func (h *Host) resumeLong(ctx context.Context, device string) error {
	ctx, cancel := context.WithTimeout(ctx, watchdogTries)
	defer cancel()
	for {
		err := h.resume(ctx, device)
		if err == nil {
			return nil
		}
		if serr := sleep(ctx, watchdogPause); serr != nil {
			return fmt.Errorf("watchdog gives up: %w", err)
		}
	}
}

// process is the watchdog seen from the process that suspends.
type process struct {
	pipe  *os.File
	ended chan error
}

// startWatchdog returns when the watchdog is ready.
func (h *Host) startWatchdog(ctx context.Context, device string, limit time.Duration) (guard, error) {
	argv := h.conf.Watchdog
	if len(argv) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		argv = []string{self, WatchdogCommand}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(argv[0], append(argv[1:len(argv):len(argv)], device, limit.String())...)
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // out of reach of the terminal's signals
	ready, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	_ = r.Close()
	if err != nil {
		_ = w.Close()
		return nil, err
	}
	p := &process{pipe: w, ended: make(chan error, 1)}
	if err := awaitReady(ctx, ready); err != nil {
		_ = w.Close()
		_ = cmd.Process.Kill()
		return nil, errors.Join(err, cmd.Wait())
	}
	go func() { p.ended <- cmd.Wait() }()
	return p, nil
}

// awaitReady waits for the watchdog's word.
func awaitReady(ctx context.Context, stdout io.ReadCloser) error {
	ctx, cancel := context.WithTimeout(ctx, watchdogStart)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = stdout.Close() })
	defer stop()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if ctx.Err() != nil {
		return fmt.Errorf("not ready: %w", ctx.Err())
	}
	if line != watchdogReady+"\n" {
		return fmt.Errorf("not ready: it said %q (%w)", line, err)
	}
	return nil
}

func (p *process) inherited() *os.File { return p.pipe }

func (p *process) done() error {
	_, err := p.pipe.WriteString(watchdogDone + "\n")
	if errors.Is(err, syscall.EPIPE) {
		err = nil // the watchdog has ended already; the volume is resumed all the same
	}
	err = errors.Join(err, p.pipe.Close())
	select {
	case <-p.ended:
	case <-time.After(watchdogStart): // stopped, perhaps; it has nothing left to do
	}
	return err
}

func (p *process) abandon() { _ = p.pipe.Close() }
