package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// cost is what a process used. This program stays small meanwhile, because the kernel counts a child's memory from the fork on.
type cost struct {
	wall, cpu time.Duration
	peakKiB   int64
}

func (c *cost) add(d cost) {
	c.wall, c.cpu, c.peakKiB = c.wall+d.wall, c.cpu+d.cpu, max(c.peakKiB, d.peakKiB)
}

// run runs a command in a folder, with additions to the environment. out may be nil.
func run(ctx context.Context, dir string, env []string, out io.Writer, argv ...string) (c cost, err error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout = dir, append(os.Environ(), env...), out
	var talk bytes.Buffer
	cmd.Stderr = &talk
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(talk.String())
		return c, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, said[max(0, len(said)-2000):])
	}
	c.wall, c.cpu = time.Since(begin), cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		c.peakKiB = usage.Maxrss
	}
	return c, nil
}

// lineCount counts the lines written to it that begin with prefix, and keeps none of them.
type lineCount struct {
	prefix string
	n      int64
	line   []byte // the beginning of the line under way, as far as it matters
}

// Write implements io.Writer.
func (l *lineCount) Write(p []byte) (int, error) {
	written := len(p)
	for {
		part, rest, ended := bytes.Cut(p, []byte("\n"))
		l.line = append(l.line, part[:min(len(part), len(l.prefix)-min(len(l.line), len(l.prefix)))]...)
		if !ended {
			return written, nil
		}
		if string(l.line) == l.prefix {
			l.n++
		}
		l.line, p = l.line[:0], rest
	}
}

// freed is the part of what was there before that is gone.
func freed(before, after int64) float64 {
	if before == 0 {
		return 0
	}
	return float64(before-after) / float64(before)
}

func printPruned(w io.Writer, o options, results []*pruned, notes []string) {
	fmt.Fprintf(w, "**prune beside peers**: %d chunks of %d KiB in %d backups, none compressed; the newest has %d of them, the other half is dead\n\n",
		o.chunks+(o.backups-1)*o.changes, blockLen>>10, o.backups, o.chunks)
	fmt.Fprintln(w, "| tool | forget, s | prune, s | prune, CPU s | to shale's | peak memory, MiB | chunks | stored, MiB | freed |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|---|")
	for _, r := range results {
		fmt.Fprintf(w, "| %s | %.2f | %.2f | %.2f | %.1f | %d | %d to %d | %d to %d | %.0f %% |\n", r.name,
			r.forget.wall.Seconds(), r.prune.wall.Seconds(), r.prune.cpu.Seconds(), r.prune.cpu.Seconds()/results[0].prune.cpu.Seconds(), r.prune.peakKiB>>10,
			r.chunksBefore, r.chunksAfter, r.storedBefore>>20, r.storedAfter>>20, 100*freed(r.storedBefore, r.storedAfter))
	}
	fmt.Fprintln(w)
	for _, r := range results {
		fmt.Fprintf(w, "- %s: %s\n", r.name, r.did)
	}
	for _, n := range notes {
		fmt.Fprintln(w, "-", n)
	}
}
