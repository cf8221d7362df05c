package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// priority is how this process stands behind others: flags, as given.
type priority struct {
	nice   int
	ionice string
}

// apply gives the process the priority that the flags of cmd ask for.
func (p *priority) apply(cmd *cobra.Command) error {
	if cmd.Flags().Changed("nice") {
		if p.nice < -20 || p.nice > 19 {
			return usagef(cmd, "--nice is %d, want -20 to 19", p.nice)
		}
		if err := eachThread(func(tid int) error { return unix.Setpriority(unix.PRIO_PROCESS, tid, p.nice) }); err != nil {
			return fmt.Errorf("--nice %d: %w", p.nice, err)
		}
	}
	if cmd.Flags().Changed("ionice") {
		prio, err := parseIonice(p.ionice)
		if err != nil {
			return usagef(cmd, "--ionice %q: %v", p.ionice, err)
		}
		if err := eachThread(func(tid int) error { return ioprioSet(tid, prio) }); err != nil {
			return fmt.Errorf("--ionice %s: %w", p.ionice, err)
		}
	}
	return nil
}

// eachThread sets something that belongs to threads in all of them. Linux has priorities for each thread, and a new thread
// takes those of the one that starts it: so a pass over all threads that finds none it has not set before is the last, whatever
// threads the Go runtime starts meanwhile.
func eachThread(set func(tid int) error) error {
	done := map[int]bool{}
	for more := true; more; {
		more = false
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil || done[tid] {
				continue
			}
			if err := set(tid); err != nil && !errors.Is(err, syscall.ESRCH) { // the thread has ended
				return err
			}
			done[tid], more = true, true
		}
	}
	return nil
}

// Of linux/ioprio.h.
const (
	ioprioWhoProcess = 1
	ioprioClassShift = 13
	ioprioLevels     = 8
	ioprioLevel      = 4 // where none is given, as ionice(1) has it
)

var ioprioClasses = map[string]int{"realtime": 1, "best-effort": 2, "idle": 3}

// parseIonice reads CLASS[:LEVEL].
func parseIonice(s string) (int, error) {
	name, level, leveled := strings.Cut(s, ":")
	class, ok := ioprioClasses[name]
	if !ok {
		return 0, errors.New("the class is idle, best-effort or realtime")
	}
	n := ioprioLevel
	if name == "idle" {
		n = 0
	}
	if leveled {
		var err error
		if n, err = strconv.Atoi(level); err != nil || n < 0 || n >= ioprioLevels || name == "idle" {
			return 0, fmt.Errorf("best-effort and realtime have levels from 0, the first, to %d", ioprioLevels-1)
		}
	}
	return class<<ioprioClassShift | n, nil
}

func ioprioSet(tid, prio int) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, uintptr(tid), uintptr(prio)); errno != 0 {
		return errno
	}
	return nil
}
