// Command scale makes a repository of millions of chunks and a thousand backups, and measures what its size costs: an incremental backup, the
// first read on a host without a cache, and a prune. Each is a process of its own; its peak memory is the kernel's VmHWM, touched pages of the mapped
// index included. The tables are Markdown. It fails when a number is above its limit.
//
//	go run ./bench/scale                          # 8 million chunks, 1,000 backups
//	go run ./bench/scale -chunks 500000 -backups 100
//
// The repository is simulated in one thing only: a chunk stands for -stride bytes of the volume and has 4 KiB, nearly all zeros, and the
// store keeps packs of chunks compressed. Trees, index, packs' tables and records are what shale makes of such a volume. Requests
// are counted as S3 counts them: a listing is a request for each 1,000 names.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
)

type options struct {
	chunks, backups, changes int
	stride                   int64 // bytes
	prune, requests          int64 // limits: MiB, requests
	fresh, beyond            int64 // limits: KiB
	dir                      string
	keep                     bool
}

// phases run in this order, each in a process of its own: the command's arguments are its name, the folder and the options as JSON.
var phases = []struct {
	name string
	run  func(ctx context.Context, o options) (*report, error)
}{
	{"generate", generate},
	{"incremental", incremental},
	{"fresh", fresh},
	{"prune", prune},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	o, args, err := parse(os.Args[1:])
	switch {
	case err != nil:
	case len(args) == 1:
		err = phase(ctx, o, args[0])
	case len(args) > 1:
		err = errors.New("expects no arguments")
	default:
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func parse(args []string) (o options, rest []string, err error) {
	f := flag.NewFlagSet("scale", flag.ExitOnError)
	f.IntVar(&o.chunks, "chunks", 8<<20, "in the first backup")
	f.IntVar(&o.backups, "backups", 1000, "in all")
	f.IntVar(&o.changes, "changes", 100, "chunks that each backup but the first changes, anywhere")
	f.Int64Var(&o.stride, "stride", 128<<10, "bytes of the volume that a chunk stands for; a multiple of 4096 of which 4 MiB are a multiple")
	f.Int64Var(&o.prune, "limit-prune", 512, "MiB of memory")
	f.Int64Var(&o.requests, "limit-requests", 20, "of an incremental backup without a merge of the index, packs of chunks not counted")
	f.Int64Var(&o.beyond, "limit-beyond", 2<<10, "KiB that an incremental backup reads and writes beyond packs of chunks")
	f.Int64Var(&o.fresh, "limit-fresh", 16<<10, "KiB that a host without a cache reads before the first byte of a file")
	f.StringVar(&o.dir, "dir", os.Getenv("BENCH_DIR"), "where the files are written, default a temporary folder")
	f.BoolVar(&o.keep, "keep", false, "leave the repository there")
	if err := f.Parse(args); err != nil {
		return o, nil, err
	}
	if o.chunks < 1 || o.backups < 2 || o.changes < 1 || o.changes > o.chunks || o.stride < 4096 || (4<<20)%o.stride != 0 {
		return o, nil, errors.New("impossible numbers")
	}
	return o, f.Args(), nil
}

// run makes the repository and runs each phase as a process of its own.
func run(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp(o.dir, "shale-scale-")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Fprintln(os.Stderr, "in", dir)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	fmt.Printf("%d chunks of %d KiB, %d backups, each with %d chunks changed\n\n", o.chunks, o.stride>>10, o.backups, o.changes)
	for _, p := range phases {
		cmd := exec.CommandContext(ctx, self, "-chunks", strconv.Itoa(o.chunks), "-backups", strconv.Itoa(o.backups), "-changes", strconv.Itoa(o.changes),
			"-stride", strconv.FormatInt(o.stride, 10), "-dir", dir, p.name)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		var r report
		if err := json.Unmarshal(out, &r); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		r.print(p.name)
		if err := r.within(p.name, o); err != nil {
			return err
		}
	}
	return nil
}

// phase runs one phase in this process and prints its report as JSON.
func phase(ctx context.Context, o options, name string) error {
	for _, p := range phases {
		if p.name == name {
			r, err := p.run(ctx, o)
			if err != nil {
				return err
			}
			return json.NewEncoder(os.Stdout).Encode(r)
		}
	}
	return fmt.Errorf("there is no phase %q", name)
}

func (o options) path(name string) string { return filepath.Join(o.dir, name) }
