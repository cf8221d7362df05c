package fusemount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// readyEnv names the file descriptor on which a detached process reports to the one that started it.
const readyEnv = "SHALE_MOUNT_READY_FD"

// readyWord is the report of success; anything else is the text of an error.
const readyWord = "ready\n"

// Detach starts this program again, with other arguments, in a session of its own, and returns its process ID when it calls
// Ready. When it calls Failed or ends before that, Detach returns why; when ctx ends first, the process is told to end.
//
// A mount must not die with the command, the terminal or the daemon that asked for it: its readers would be left with errors.
// input is what it finds on its stdin; log gets its stdout and stderr, nil discards them.
func Detach(ctx context.Context, args []string, input []byte, log *os.File) (pid int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find this program: %w", err)
	}
	reports, report, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer reports.Close()
	cmd := exec.Command(self, args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), readyEnv+"=3")
	cmd.ExtraFiles = []*os.File{report}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if log != nil {
		cmd.Stdout, cmd.Stderr = log, log
	}
	stdin, err := inputPipe(input)
	if err != nil {
		return 0, errors.Join(err, report.Close())
	}
	defer stdin.Close()
	cmd.Stdin = stdin
	err = cmd.Start()
	report.Close() // else the pipe would not end with the child
	if err != nil {
		return 0, fmt.Errorf("start the mount's process: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = reports.SetReadDeadline(time.Now()) })
	defer stop()
	text, err := io.ReadAll(io.LimitReader(reports, 64<<10))
	switch {
	case ctx.Err() != nil:
		return 0, errors.Join(ctx.Err(), end(cmd))
	case err != nil:
		return 0, errors.Join(fmt.Errorf("wait for the mount's process: %w", err), end(cmd))
	case string(text) == readyWord:
		pid = cmd.Process.Pid // before Release, which forgets it
		return pid, cmd.Process.Release()
	case len(text) > 0:
		_ = cmd.Wait() // it said why already
		return 0, errors.New(strings.TrimSpace(string(text)))
	default:
		return 0, fmt.Errorf("the mount's process ended before the mount was ready: %w", ended(cmd))
	}
}

// inputPipe is a pipe's end from which input is read; it may be secret, so it is in no file.
func inputPipe(input []byte) (*os.File, error) {
	if len(input) == 0 {
		return os.Open(os.DevNull)
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	go func() { // ends when all is read, or nobody can read any more
		_, _ = in.Write(input)
		_ = in.Close()
	}()
	return out, nil
}

// end asks the process to unmount and go, and waits for it.
func end(cmd *exec.Cmd) error {
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	_ = cmd.Wait() // killed by our signal, or ended as it should
	return nil
}

// ended waits for a process that closed the pipe, and says how it went.
func ended(cmd *exec.Cmd) error {
	if err := cmd.Wait(); err != nil {
		return err
	}
	return errors.New("exit status 0")
}

// Ready tells the process that called Detach that the mount can be read. In a process that nobody detached it does nothing.
func Ready() error { return reportToParent(readyWord) }

// Failed tells the process that called Detach why there will be no mount. In a process that nobody detached it does nothing.
func Failed(why error) error { return reportToParent(why.Error() + "\n") }

// reportToParent may be called once; the environment variable goes with it.
func reportToParent(text string) error {
	value, ok := os.LookupEnv(readyEnv)
	if !ok {
		return nil
	}
	if err := os.Unsetenv(readyEnv); err != nil {
		return err
	}
	fd, err := strconv.Atoi(value)
	if err != nil || fd < 3 {
		return fmt.Errorf("%s is %q, not a file descriptor", readyEnv, value)
	}
	f := os.NewFile(uintptr(fd), "ready")
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
