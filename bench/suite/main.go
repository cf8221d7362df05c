package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

type options struct {
	quick    bool
	update   string // where -quick writes its counts
	size     int64  // bytes of the image
	seed     uint64
	rounds   int
	workload string
	dir      string
	out      string
	shale    string
	commit   string
	metadiff string
	peers    string
	tools    []string
	parts    map[string]bool
	chunks   int
	backups  int
	seconds  float64
	files    int
}

// parts are what -parts can choose, in the order in which they run.
var parts = []string{"image", "known", "metadata", "index", "many", "tree", "limits"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := dispatch(ctx, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// dispatch runs one of the measured processes, which are this program again, or the suite.
func dispatch(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case measuredArg:
			return measuredMain(args[1:])
		case plainFuseArg:
			return plainFuseMain(ctx, args[1:])
		case lookupArg:
			return lookupMain(ctx, args[1:])
		}
	}
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.quick {
		return runQuick(ctx, o, os.Stdout)
	}
	return runSuite(ctx, o)
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("bench/run", flag.ContinueOnError)
	f.BoolVar(&o.quick, "quick", false, "count what does not depend on the machine, and fail on a regression")
	f.StringVar(&o.update, "update", "", "with -quick: the file to write the counts to as the new baseline")
	size := f.String("size", "2G", "of the image; a number with M or G")
	f.Uint64Var(&o.seed, "seed", 1, "of the choice of files, their content and their changes")
	f.IntVar(&o.rounds, "rounds", 3, "times that every tool runs every row")
	f.StringVar(&o.workload, "workload", "", "ext4 (real files; needs root) or synthetic; default ext4 for root")
	f.StringVar(&o.dir, "dir", os.Getenv("BENCH_DIR"), "where data, repositories and mounts live; default /dev/shm when it has room, else a temporary folder")
	f.StringVar(&o.out, "out", "bench/results", "folder of the Markdown and the plot")
	f.StringVar(&o.shale, "shale", "", "the shale binary")
	f.StringVar(&o.commit, "commit", "unknown commit", "that the shale binary was built from")
	f.StringVar(&o.metadiff, "metadiff", "", "the metadiff binary")
	f.StringVar(&o.peers, "peers", os.Getenv("BENCH_PEERS"), "folder of further peers: restic, kopia, desync")
	tools := f.String("tools", "", "only these tools, by the beginnings of their names, with commas")
	chosen := f.String("parts", "image,known,metadata,index,many,limits", "of "+strings.Join(parts, ","))
	f.IntVar(&o.chunks, "chunks", 8_000_000, "chunks in the index of part index")
	f.IntVar(&o.backups, "backups", 1000, "backups in the repository of part many")
	f.Float64Var(&o.seconds, "seconds", 3, "that each measurement of random reads lasts")
	f.IntVar(&o.files, "files", 50_000, "files in the tree of part tree")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	var err error
	if o.size, err = parseSize(*size); err != nil {
		return o, err
	}
	if o.rounds < 1 || o.chunks < 1 || o.backups < 1 || o.files < 1 || o.seconds <= 0 {
		return o, errors.New("-rounds, -chunks, -backups, -files and -seconds are more than 0")
	}
	o.parts = map[string]bool{}
	for p := range strings.SplitSeq(*chosen, ",") {
		known := false
		for _, q := range parts {
			known = known || p == q
		}
		if !known {
			return o, fmt.Errorf("-parts: %q is not one of %s", p, strings.Join(parts, ", "))
		}
		o.parts[p] = true
	}
	if *tools != "" {
		o.tools = strings.Split(*tools, ",")
	}
	if o.peers != "" {
		if o.peers, err = filepath.Abs(o.peers); err != nil {
			return o, err
		}
	}
	switch o.workload {
	case "":
		o.workload = "synthetic"
		if os.Geteuid() == 0 {
			o.workload = "ext4"
		}
	case "ext4", "synthetic":
	default:
		return o, fmt.Errorf("-workload: %q is neither ext4 nor synthetic", o.workload)
	}
	return o, nil
}

// parseSize reads a number of bytes with a unit; images are whole MiB of at least 64.
func parseSize(s string) (int64, error) {
	unit, digits := int64(0), ""
	switch {
	case strings.HasSuffix(s, "M"):
		unit, digits = 1<<20, s[:len(s)-1]
	case strings.HasSuffix(s, "G"):
		unit, digits = 1<<30, s[:len(s)-1]
	}
	n, err := strconv.ParseInt(digits, 10, 32)
	if unit == 0 || err != nil || n < 1 || n*unit < 64<<20 || n*unit > 1<<40 {
		return 0, fmt.Errorf("-size: %q is not a number with M or G, from 64M to 1024G", s)
	}
	return n * unit, nil
}
