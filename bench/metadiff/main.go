// Command metadiff measures the difference of two thin snapshots beside thin_delta of thin-provisioning-tools.
//
// It writes the metadata of a pool with a device of -mappings blocks and a snapshot that shares its tree, maps -changed
// scattered blocks of the device anew, and lets both programs say which blocks differ: on the same metadata, in one run,
// each as a process of its own, whose CPU time is taken from the kernel. Both answers must equal the blocks that were
// changed. The table is Markdown.
//
//	go run ./bench/metadiff -mappings 1048576,16777216
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

type options struct {
	mappings          []uint64
	changed           int
	fill              int
	seed              uint64
	repeat            int
	dir               string
	child             string
	minCPU, minBlocks float64 // ratios below which a row fails
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	o, err := parse(os.Args[1:])
	if err == nil {
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "metadiff:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("metadiff", flag.ExitOnError)
	mappings := f.String("mappings", "1048576,4194304,16777216", "mapped blocks of each of the two devices; a row for each number")
	f.IntVar(&o.changed, "changed", 2000, "blocks that differ")
	f.IntVar(&o.fill, "fill", 248, "entries of a B-tree node: 248 as Linux 6.1 leaves them after ascending writes, 126 as thin_restore does")
	f.Uint64Var(&o.seed, "seed", 1, "of the layout and the choice of changed blocks")
	f.IntVar(&o.repeat, "repeat", 3, "runs of each program; the least CPU time counts")
	f.StringVar(&o.dir, "dir", "", "where the metadata is written (33 bytes a mapping), default a temporary folder")
	f.Float64Var(&o.minCPU, "min-cpu", 0, "fail when thin_delta takes less than so many times our CPU time")
	f.Float64Var(&o.minBlocks, "min-blocks", 0, "fail when both trees have less than so many times the blocks we read")
	f.StringVar(&o.child, "child", "", "internal: what the measured process does, diff or walk")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.child != "" {
		if f.NArg() != 1 {
			return o, errors.New("-child expects the metadata")
		}
		o.dir = f.Arg(0)
		return o, nil
	}
	for s := range strings.SplitSeq(*mappings, ",") {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil || n == 0 || n > 1<<32 {
			return o, fmt.Errorf("-mappings: %q is not a number from 1 to 2^32", s)
		}
		if uint64(o.changed) > n/2 {
			return o, fmt.Errorf("-changed: %d is more than half of %d mappings", o.changed, n)
		}
		o.mappings = append(o.mappings, n)
	}
	if o.changed < 1 || o.repeat < 1 {
		return o, errors.New("-changed and -repeat are at least 1")
	}
	return o, nil
}

func run(ctx context.Context, o options) error {
	if o.child != "" {
		return child(ctx, o.child, o.dir)
	}
	tool, err := exec.LookPath("thin_delta")
	if err != nil {
		return fmt.Errorf("thin_delta of thin-provisioning-tools is needed: %w", err)
	}
	dir, err := os.MkdirTemp(o.dir, "metadiff")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	version, err := exec.CommandContext(ctx, tool, "--version").Output()
	if err != nil {
		return fmt.Errorf("%s --version: %w", tool, err)
	}
	fmt.Printf("thin_delta %s, %s %s/%s, %d changed blocks, %d entries a node, least of %d runs\n\n",
		strings.TrimSpace(string(version)), runtime.Version(), runtime.GOOS, runtime.GOARCH, o.changed, o.fill, o.repeat)
	fmt.Println("| mappings | metadata MiB | thin_delta CPU s | wall s | shale diff CPU s | wall s | CPU ratio | blocks of both trees | blocks read | ratio | RSS MiB: thin_delta, shale |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|")
	for _, n := range o.mappings {
		if err := row(ctx, o, tool, filepath.Join(dir, "meta"), n); err != nil {
			return fmt.Errorf("%d mappings: %w", n, err)
		}
	}
	return nil
}

// row generates one pool, measures both programs on it and prints a line of the table.
func row(ctx context.Context, o options, tool, path string, n uint64) error {
	blocks, changed, err := generate(path, o, n)
	if err != nil {
		return err
	}
	peer, err := measure(ctx, o.repeat, changed, readXML, tool, "--thin1", "2", "--thin2", "1", path)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	own, err := measure(ctx, o.repeat, changed, readRanges, self, "-child", "diff", path)
	if err != nil {
		return err
	}
	walk, err := measure(ctx, 1, nil, nil, self, "-child", "walk", path)
	if err != nil {
		return err
	}
	cpu, read := peer.cpu.Seconds()/own.cpu.Seconds(), float64(walk.blocks)/float64(own.blocks)
	fmt.Printf("| %d | %d | %.3f | %.3f | %.4f | %.4f | %.0fx | %d | %d | %.1fx | %.0f, %.0f |\n",
		n, blocks*4096>>20, peer.cpu.Seconds(), peer.wall.Seconds(), own.cpu.Seconds(), own.wall.Seconds(),
		cpu, walk.blocks, own.blocks, read, float64(peer.rss)/1024, float64(own.rss)/1024)
	if cpu < o.minCPU || read < o.minBlocks {
		return fmt.Errorf("ratios of CPU time and blocks are %.1f and %.1f, wanted are %.1f and %.1f", cpu, read, o.minCPU, o.minBlocks)
	}
	return nil
}
