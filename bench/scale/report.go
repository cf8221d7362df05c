package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// report is what a phase cost, step by step.
type report struct {
	Steps []step `json:"steps"`
	Peak  int64  `json:"peak"` // KiB
}

// step is a part of a phase.
type step struct {
	Name     string  `json:"name"`
	Seconds  float64 `json:"seconds"`
	Requests int64   `json:"requests"` // writes and reads of packs of chunks not counted
	Read     int64   `json:"read"`     // bytes, packs of chunks not counted
	Written  int64   `json:"written"`  // the same
	Data     int64   `json:"data"`     // bytes of packs of chunks, read and written
	Deletes  int64   `json:"deletes"`  // of the requests
	Note     string  `json:"note"`
}

// measure adds a step that fn makes.
func (r *report) measure(name string, c *counting, fn func() (note string, err error)) error {
	c.reset()
	begin := time.Now()
	note, err := fn()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s := c.step()
	s.Name, s.Seconds, s.Note = name, time.Since(begin).Seconds(), note
	r.Steps = append(r.Steps, s)
	r.Peak, err = peak()
	return err
}

// peak is the most memory that this process had, in KiB.
func peak() (int64, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			return strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
		}
	}
	return 0, fmt.Errorf("no VmHWM in /proc/self/status: %w", lines.Err())
}

func (r *report) print(phase string) {
	fmt.Printf("**%s**: peak memory %d MiB\n\n", phase, r.Peak>>10)
	fmt.Println("| step | s | requests | of these deletes | read, KiB | written, KiB | packs of chunks, KiB | |")
	fmt.Println("|---|---|---|---|---|---|---|---|")
	for _, s := range r.Steps {
		fmt.Printf("| %s | %.2f | %d | %d | %d | %d | %d | %s |\n", s.Name, s.Seconds, s.Requests, s.Deletes, s.Read>>10, s.Written>>10, s.Data>>10, s.Note)
	}
	fmt.Println()
}

// within compares a phase with its limits.
func (r *report) within(phase string, o options) error {
	for _, s := range r.Steps {
		switch {
		case phase == "incremental" && s.Deletes == 0 && s.Requests >= o.requests:
			return fmt.Errorf("%s makes %d requests, the limit is %d", s.Name, s.Requests, o.requests)
		case phase == "incremental" && s.Deletes == 0 && s.Read+s.Written >= o.beyond<<10:
			return fmt.Errorf("%s moves %d KiB beyond packs of chunks, the limit is %d", s.Name, (s.Read+s.Written)>>10, o.beyond)
		case phase == "fresh" && s.Name == firstRead && s.Read >= o.fresh<<10:
			return fmt.Errorf("%s reads %d KiB, the limit is %d", s.Name, s.Read>>10, o.fresh)
		}
	}
	if phase == "prune" && r.Peak > o.prune<<10 {
		return fmt.Errorf("prune takes %d MiB, the limit is %d", r.Peak>>10, o.prune)
	}
	return nil
}
