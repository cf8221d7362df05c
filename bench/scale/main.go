// Command scale makes a repository of millions of chunks and a thousand backups, and measures what its size costs: an incremental backup, the
// first read on a host without a cache, and a prune. Each is a process of its own; its peak memory is the kernel's VmHWM, touched pages of the mapped
// index included. The tables are Markdown. It fails when a number is above its limit.
//
//	go run ./bench/scale                          # 8 million chunks, 1,000 backups
//	go run ./bench/scale -chunks 500000 -backups 100
//	go run ./bench/scale -peers /opt/peers peers  # only the prunes of shale, restic and kopia, at 200,000 chunks
//
// With -peers or $BENCH_PEERS that comparison follows the phases.
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
)

type options struct {
	chunks, backups, changes int
	stride                   int64 // bytes
	prune, requests          int64 // limits: MiB, requests
	fresh, beyond            int64 // limits: KiB
	dir                      string
	keep                     bool
	peers                    string // a folder of programs
	peerChunks               int
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

// phasePeers is the comparison with peers, which has its own repositories; run alone when the command's argument is its name.
const phasePeers = "peers"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	o, args, err := parse(os.Args[1:])
	switch {
	case err != nil:
	case len(args) == 0:
		err = runPhases(ctx, o)
		if err == nil && o.peers != "" {
			err = comparePrunes(ctx, o)
		}
	case len(args) == 1 && args[0] == phasePeers:
		err = comparePrunes(ctx, o)
	default:
		err = phase(ctx, o, args[0], args[1:])
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
	f.StringVar(&o.peers, "peers", os.Getenv("BENCH_PEERS"), "a folder with programs called restic (newer than the one in PATH) and kopia, to be measured beside shale")
	f.IntVar(&o.peerChunks, "peer-chunks", 200_000, "in the repositories that shale and the peers prune")
	if err := f.Parse(args); err != nil {
		return o, nil, err
	}
	if o.chunks < 1 || o.backups < 2 || o.changes < 1 || o.changes > o.chunks || o.stride < 4096 || (4<<20)%o.stride != 0 || o.peerChunks < 4 {
		return o, nil, errors.New("impossible numbers")
	}
	return o, f.Args(), nil
}

// tempFolder makes a folder for all files of a run in the one that the options name.
func tempFolder(o options) (options, error) {
	dir, err := os.MkdirTemp(o.dir, "shale-scale-")
	if err == nil && o.keep {
		fmt.Fprintln(os.Stderr, "in", dir)
	}
	o.dir = dir
	return o, err
}

// remove removes that folder, unless it is to stay.
func (o options) remove() error {
	if o.keep {
		return nil
	}
	return os.RemoveAll(o.dir)
}

// runPhases makes the repository and runs each phase as a process of its own.
func runPhases(ctx context.Context, o options) (err error) {
	if o, err = tempFolder(o); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.remove()) }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	fmt.Printf("%d chunks of %d KiB, %d backups, each with %d chunks changed\n\n", o.chunks, o.stride>>10, o.backups, o.changes)
	for _, p := range phases {
		cmd := exec.CommandContext(ctx, self, append(own(self, o)[1:], p.name)...)
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

// phase runs one phase in this process and prints its report as JSON, or a step of the peers' phase.
func phase(ctx context.Context, o options, name string, args []string) error {
	if step, ok := peerSteps[name]; ok {
		return step(ctx, o, args)
	}
	if len(args) > 0 {
		return fmt.Errorf("phase %s expects no arguments", name)
	}
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
