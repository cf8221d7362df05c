package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cost is what a process used. This program stays small, because the kernel counts a child's memory from the fork on.
type cost struct {
	rss       int64 // MiB, at most
	cpu, wall time.Duration
}

func (c *cost) of(cmd *exec.Cmd, begin time.Time) {
	c.wall = time.Since(begin)
	c.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		c.rss = (usage.Maxrss + 1023) / 1024
	}
}

// bench runs the shale command on one repository.
type bench struct {
	o   options
	dir string
}

func (b *bench) command(ctx context.Context, args ...string) *exec.Cmd {
	args = append(args, "--quiet", "--cache-dir", filepath.Join(b.dir, "cache"))
	if b.o.parallel > 0 {
		args = append(args, "--parallel", strconv.Itoa(b.o.parallel))
	}
	return exec.CommandContext(ctx, b.o.shale, args...)
}

// run returns the last line of stdout.
func (b *bench) run(ctx context.Context, args ...string) (c cost, last string, err error) {
	cmd := b.command(ctx, args...)
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		return c, "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, &talk)
	}
	c.of(cmd, begin)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	return c, lines[len(lines)-1], nil
}

func measureAll(ctx context.Context, o options, dir string, img *image) (steps []step, err error) {
	b := &bench{o, dir}
	repo, restored := filepath.Join(dir, "repository"), filepath.Join(dir, "restored.raw")
	if _, _, err := b.run(ctx, "repo", "init", repo); err != nil {
		return nil, err
	}
	c, url, err := b.run(ctx, "backup", "create", img.path, "--dest", repo, "--volume", "image")
	if err != nil {
		return nil, err
	}
	steps = append(steps, step{"backup", c})
	if c, _, err = b.run(ctx, "backup", "create", img.path, "--dest", repo, "--volume", "image", "--full"); err != nil {
		return nil, err
	}
	steps = append(steps, step{"the same again, in full", c})
	if err := os.Remove(img.path); err != nil {
		return nil, err
	}
	if c, _, err = b.run(ctx, "backup", "restore", url, restored); err != nil {
		return nil, err
	}
	steps = append(steps, step{"restore", c})
	if err := img.compare(ctx, restored); err != nil {
		return nil, err
	}
	if c, _, err = b.run(ctx, "backup", "restore", url, restored, "--overwrite"); err != nil {
		return nil, err
	}
	steps = append(steps, step{"restore onto the same", c})
	if err := os.Remove(restored); err != nil {
		return nil, err
	}
	if c, _, err = b.run(ctx, "repo", "check", repo, "--data"); err != nil {
		return nil, err
	}
	steps = append(steps, step{"check of all data", c})
	if o.mount {
		if c, err = b.mount(ctx, repo, img); err != nil {
			return nil, fmt.Errorf("mount: %w", err)
		}
		steps = append(steps, step{"mount, read in order", c})
	}
	return steps, nil
}

// mount shows the repository, reads all data in order and says what the mounting process needed.
func (b *bench) mount(ctx context.Context, repo string, img *image) (c cost, err error) {
	dir := filepath.Join(b.dir, "mount")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return c, err
	}
	cmd := b.command(ctx, "backup", "mount", repo, dir, "--foreground")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var talk bytes.Buffer
	cmd.Stderr = &talk
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return c, err
	}
	err = waitFor(ctx, filepath.Join(dir, "image", "latest", "image.raw"), 20*time.Second)
	if err == nil {
		err = img.compare(ctx, filepath.Join(dir, "image", "latest", "image.raw"))
	}
	err = errors.Join(err, cmd.Process.Signal(os.Interrupt))
	var exit *exec.ExitError
	if waitErr := cmd.Wait(); waitErr != nil && (!errors.As(waitErr, &exit) || exit.ExitCode() != 130) {
		err = errors.Join(err, waitErr)
	}
	if err != nil {
		return c, fmt.Errorf("%w: %s", err, &talk)
	}
	c.of(cmd, begin)
	return c, nil
}

// waitFor returns when the file is there.
func waitFor(ctx context.Context, path string, limit time.Duration) error {
	for begin := time.Now(); ; {
		_, err := os.Stat(path)
		if err == nil {
			return nil
		}
		if time.Since(begin) > limit {
			return fmt.Errorf("after %v: %w", limit, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
