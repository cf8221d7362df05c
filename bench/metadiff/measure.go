package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/shalebackup/shale/thin"
)

// cost is what a process used.
type cost struct {
	cpu, wall time.Duration // user and system together
	rss       int64         // KiB, at most
	blocks    uint64        // metadata blocks read, of our own process
}

// measure runs a program `repeat` times, checks each answer against want and returns the least cost.
func measure(ctx context.Context, repeat int, want []blockRange, read func(io.Reader) ([]blockRange, error), argv ...string) (cost, error) {
	var best cost
	for i := range repeat {
		var out, talk bytes.Buffer
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Stdout, cmd.Stderr = &out, &talk
		begin := time.Now()
		if err := cmd.Run(); err != nil {
			return best, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, talk.String())
		}
		c := cost{wall: time.Since(begin), cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
		if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
			c.rss = usage.Maxrss
		}
		if read != nil {
			got, err := read(&out)
			if err != nil {
				return best, fmt.Errorf("answer of %s: %w", argv[0], err)
			}
			if !slices.Equal(got, want) {
				return best, fmt.Errorf("%s names %d ranges that are not the %d that were changed", argv[0], len(got), len(want))
			}
		}
		if strings.HasPrefix(talk.String(), "blocks ") {
			if _, err := fmt.Sscanf(talk.String(), "blocks %d", &c.blocks); err != nil {
				return best, err
			}
		}
		if i == 0 || c.cpu < best.cpu {
			best = c
		}
	}
	return best, nil
}

// readXML reads what differs from thin_delta's answer.
func readXML(r io.Reader) ([]blockRange, error) {
	var ranges []blockRange
	dec := xml.NewDecoder(r)
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return ranges, nil
		}
		if err != nil {
			return nil, err
		}
		start, ok := token.(xml.StartElement)
		if !ok || start.Name.Local == "superblock" || start.Name.Local == "diff" || start.Name.Local == "same" {
			continue
		}
		if start.Name.Local != "different" {
			return nil, fmt.Errorf("unexpected element %s", start.Name.Local)
		}
		var e struct {
			Begin  uint64 `xml:"begin,attr"`
			Length uint64 `xml:"length,attr"`
		}
		if err := dec.DecodeElement(&e, &start); err != nil {
			return nil, err
		}
		ranges = join(ranges, blockRange{e.Begin, e.Length})
	}
}

// readRanges reads the answer of child.
func readRanges(r io.Reader) ([]blockRange, error) {
	var ranges []blockRange
	for lines := bufio.NewScanner(r); lines.Scan(); {
		var kind string
		var c blockRange
		if _, err := fmt.Sscan(lines.Text(), &kind, &c.begin, &c.length); err != nil || kind != thin.Changed.String() {
			return nil, fmt.Errorf("unexpected line %q", lines.Text())
		}
		ranges = join(ranges, c)
	}
	return ranges, nil
}

// child is the measured process: it prints the differing runs, or walks both devices as a reader without sharing would.
// On stderr it says how many metadata blocks it read.
func child(ctx context.Context, what, path string) error {
	r, err := thin.Open(path, thin.Options{})
	if err != nil {
		return err
	}
	defer r.Close()
	out := bufio.NewWriter(os.Stdout)
	switch what {
	case "diff":
		for c, err := range r.Diff(ctx, 2, 1, thin.DiffOptions{}) {
			if err != nil {
				return err
			}
			fmt.Fprintln(out, c.Kind, c.Thin, c.Len)
		}
	case "walk":
		for _, id := range []uint32{2, 1} {
			for _, err := range r.Runs(ctx, id) {
				if err != nil {
					return err
				}
			}
		}
	default:
		return fmt.Errorf("unknown -child %q", what)
	}
	fmt.Fprintln(os.Stderr, "blocks", r.Stats().BlocksRead)
	return out.Flush()
}
