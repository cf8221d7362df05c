package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// command is one run of dmsetup, of an LVM command or of sync.
type command struct {
	name string
	args []string

	// inherit stays open in the command until it ends, even when this process ends before it. May be nil.
	inherit *os.File

	timeout time.Duration // 0: commandTimeout
}

// withTimeout gives a command a limit of its own.
func (c command) withTimeout(d time.Duration) command {
	c.timeout = d
	return c
}

func (c command) String() string { return c.name + " " + strings.Join(c.args, " ") }

// runner runs commands; tests have one that needs no kernel. An error is a *CommandError, or the context's.
type runner interface {
	run(ctx context.Context, c command) (stdout string, err error)
}

// commandTimeout bounds most commands; they wait for nothing but the kernel.
const commandTimeout = time.Minute

// writeTimeout bounds commands that write out what a file system holds in memory.
const writeTimeout = 30 * time.Minute

// errStuck: a command neither ended nor died. What it was told to do may still happen.
var errStuck = errors.New("command hangs in the kernel and cannot be killed")

// killGrace is how long a killed command may take to die. In the kernel's uninterruptible sleep it may take for ever.
const killGrace = 2 * time.Second

// execRunner runs the real commands.
type execRunner struct{}

func (execRunner) run(ctx context.Context, c command) (string, error) {
	limit := c.timeout
	if limit == 0 {
		limit = commandTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return "", err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(c.name, c.args...)
	cmd.Env = commandEnv()
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C at the terminal is for us to handle, not for it
	if c.inherit != nil {
		cmd.ExtraFiles = []*os.File{c.inherit}
	}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			err = ErrNoTool
		}
		return "", &CommandError{Command: c.String(), Err: err}
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			return "", newCommandError(c.String(), stderr.String(), err)
		}
		return stdout.String(), nil
	case <-ctx.Done():
	}
	_ = cmd.Process.Kill()
	select {
	case <-ended:
	case <-time.After(killGrace): // stuck in the kernel; the goroutine above reaps it when it comes back
		return "", &CommandError{Command: c.String(), Err: fmt.Errorf("%w: %w", errStuck, ctx.Err())}
	}
	return "", &CommandError{Command: c.String(), Err: ctx.Err()}
}

// commandEnv is the environment of the commands: English, and without waiting for an udevd that is not there (in a container),
// in which case libdevmapper makes the nodes in /dev/mapper itself.
func commandEnv() []string {
	env := append(os.Environ(), "LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1")
	if _, err := os.Stat("/run/udev/control"); errors.Is(err, os.ErrNotExist) {
		env = append(env, "DM_DISABLE_UDEV=1")
	}
	return env
}
