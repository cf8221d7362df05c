package pool

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// What a caller decides on. Errors of commands are CommandErrors that match one of these and the errno.
var (
	ErrNotFound      = errors.New("no such device")
	ErrNotThin       = errors.New("not a thin device")
	ErrInactive      = errors.New("not active")
	ErrExists        = errors.New("already exists")
	ErrBusy          = errors.New("device is busy")
	ErrPermission    = errors.New("permission denied")
	ErrNoTool        = errors.New("command is not installed")
	ErrNoKernel      = errors.New("the kernel has no device-mapper")
	ErrUnsupported   = errors.New("not supported")
	ErrFailed        = errors.New("pool has failed")
	ErrNeedsCheck    = errors.New("pool needs thin_check")
	ErrReadOnly      = errors.New("pool is read-only")
	ErrOutOfSpace    = errors.New("pool is out of data space")
	ErrHeld          = errors.New("metadata snapshot is held by another program")
	ErrFreezeExpired = errors.New("volume did not stay frozen while its snapshot was taken")
)

// CommandError is a command of device-mapper or LVM that did not succeed.
type CommandError struct {
	Command string        // as run, for messages
	Output  string        // what it wrote to stderr, in one line
	Errno   syscall.Errno // the kernel's answer; 0 when the command named none
	Err     error         // one of this package's errors, or how the command ended
}

func (e *CommandError) Error() string {
	if e.Output == "" {
		return fmt.Sprintf("%s: %v", e.Command, e.Err)
	}
	return fmt.Sprintf("%s: %v (%s)", e.Command, e.Err, e.Output)
}

// Unwrap lets errors.Is match the sentinel and the errno.
func (e *CommandError) Unwrap() []error {
	if e.Errno != 0 {
		return []error{e.Err, e.Errno}
	}
	return []error{e.Err}
}

// answered says whether the kernel refused what a command asked for. Else the command may have had its effect, or have it still.
func answered(err error) bool {
	var ce *CommandError
	return errors.As(err, &ce) && ce.Errno != 0
}

// newCommandError is the one place that looks at a command's text. The commands run with LC_ALL=C.
func newCommandError(command, stderr string, err error) *CommandError {
	e := &CommandError{Command: command, Output: oneLine(stderr), Errno: errnoOf(stderr), Err: err}
	has := func(s string) bool { return strings.Contains(stderr, s) }
	switch {
	case e.Errno == syscall.EPERM, e.Errno == syscall.EACCES:
		e.Err = ErrPermission
	case has("Failure to communicate with kernel device-mapper driver"):
		e.Err = ErrNoKernel
	case e.Errno == syscall.EEXIST:
		e.Err = ErrExists
	case e.Errno == syscall.EBUSY, has(" in use."):
		e.Err = ErrBusy
	case e.Errno == syscall.EOPNOTSUPP: // pool_message: "unable to service pool target messages in READ_ONLY or FAIL mode"
		e.Err = ErrReadOnly
	case e.Errno == syscall.ENOSPC:
		e.Err = ErrOutOfSpace
	case e.Errno == syscall.ENXIO, e.Errno == syscall.ENODATA,
		has("Device does not exist."), has("Failed to find logical volume"), has("Volume group \"") && has("\" not found"):
		e.Err = ErrNotFound
	}
	return e
}

// errnoOf finds the errno whose text ends a line of stderr: "device-mapper: message ioctl on pool  failed: File exists".
func errnoOf(stderr string) syscall.Errno {
	for line := range strings.Lines(stderr) {
		i := strings.LastIndex(line, "failed: ")
		if i < 0 {
			continue
		}
		text := strings.TrimSpace(line[i+len("failed: "):])
		for n := syscall.Errno(1); n < 134; n++ {
			if strings.EqualFold(n.Error(), text) { // Go's texts are glibc's, in lower case
				return n
			}
		}
	}
	return 0
}

// oneLine joins the lines that say something.
func oneLine(stderr string) string {
	var said []string
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		if line != "" && line != "Command failed." && !strings.HasPrefix(line, "WARNING: ") {
			said = append(said, line)
		}
	}
	return strings.Join(said, "; ")
}
