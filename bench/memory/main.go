// Command memory measures the most memory that shale needs to back up, restore and read through a mount a large sparse image.
//
// It writes an image of -size bytes with -data bytes in it, scattered in runs of 1 MiB and compressible by half, and runs the shale
// command as a process of its own for each step; the kernel says what each needed at most (maxrss of wait4). What was restored and
// what the mount showed is compared with the image. The table is Markdown. It fails when a step needs more than -limit.
//
//	go run ./bench/memory
//	go run ./bench/memory -size 4096 -data 256
//
// The files need about two and a half times -data of room in $BENCH_DIR, or else in the temporary folder.
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
)

type options struct {
	size, data int64 // MiB
	limit      int64 // MiB
	seed       uint64
	shale      string
	dir        string
	parallel   int
	mount      bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	o, err := parse(os.Args[1:])
	if err == nil {
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "memory:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("memory", flag.ExitOnError)
	f.Int64Var(&o.size, "size", 64<<10, "MiB, the image's length")
	f.Int64Var(&o.data, "data", 4<<10, "MiB of it that are data")
	f.Int64Var(&o.limit, "limit", 256, "MiB that no step may exceed")
	f.Uint64Var(&o.seed, "seed", 1, "of the data and its places")
	f.StringVar(&o.shale, "shale", "", "the shale command to measure; default: built from this source")
	f.StringVar(&o.dir, "dir", os.Getenv("BENCH_DIR"), "where the files are written, default a temporary folder")
	f.IntVar(&o.parallel, "parallel", 0, "--parallel of the shale command; 0: its default")
	f.BoolVar(&o.mount, "mount", true, "measure the mount too, which needs FUSE")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.data < 1 || o.size < 2*o.data {
		return o, errors.New("-data is at least 1, and -size at least twice -data: the image is to be sparse")
	}
	return o, nil
}

// step is a measured command.
type step struct {
	name string
	cost cost
}

func run(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp(o.dir, "shale-memory-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if o.shale == "" {
		o.shale = filepath.Join(dir, "shale")
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", o.shale, "github.com/shalebackup/shale/cmd/shale").CombinedOutput(); err != nil {
			return fmt.Errorf("build shale: %w\n%s", err, out)
		}
	}
	img := newImage(filepath.Join(dir, "image.raw"), o)
	if err := img.write(ctx); err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	steps, err := measureAll(ctx, o, dir, img)
	if err != nil {
		return err
	}
	fmt.Printf("Image of %d MiB with %d MiB of data; %d CPUs, %s.\n\n", o.size, o.data, runtime.NumCPU(), runtime.Version())
	fmt.Println("| step | peak memory, MiB | CPU s | s |")
	fmt.Println("|---|---:|---:|---:|")
	var over []error
	for _, s := range steps {
		fmt.Printf("| %s | %d | %.1f | %.1f |\n", s.name, s.cost.rss, s.cost.cpu.Seconds(), s.cost.wall.Seconds())
		if s.cost.rss > o.limit {
			over = append(over, fmt.Errorf("%s needed %d MiB, more than %d", s.name, s.cost.rss, o.limit))
		}
	}
	return errors.Join(over...)
}
