package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// suite is one run of all that was chosen.
type suite struct {
	o     options
	dir   string // all data; removed in the end
	w     *workload
	tools []tool
	res   results
	meta  string // Markdown of metadiff
	ratio float64
	notes []string
	log   *log.Logger
}

func runSuite(ctx context.Context, o options) (err error) {
	s := &suite{o: o, log: log.New(os.Stderr, "", log.Ltime)}
	if o.shale == "" {
		return errors.New("no shale binary: bench/run builds one")
	}
	s.tools, s.notes = peerTools(o.shale, o.commit, o.peers)
	s.tools = chosen(s.tools, o.tools)
	if len(s.tools) == 0 {
		return errors.New("-tools chooses none")
	}
	if s.dir, err = s.place(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(s.dir)) }()
	if err := os.Setenv("TMPDIR", s.dir); err != nil {
		return err
	}
	release, err := s.holdMemory(ctx)
	if err != nil {
		return err
	}
	defer release()
	if o.parts["image"] || o.parts["known"] || o.parts["limits"] {
		s.log.Printf("making the %s workload of %d MiB in %s", o.workload, o.size>>20, s.dir)
		if s.w, err = makeWorkload(ctx, o, s.dir); err != nil {
			return err
		}
	}
	for _, p := range []struct {
		name string
		run  func(context.Context) error
	}{{"image", s.images}, {"known", s.known}, {"metadata", s.metadata}, {"index", s.index}, {"many", s.many}, {"tree", s.tree}, {"limits", s.limits}} {
		if !o.parts[p.name] {
			continue
		}
		s.log.Printf("part %s", p.name)
		if err := p.run(ctx); err != nil {
			return errors.Join(fmt.Errorf("part %s: %w", p.name, err), s.report(ctx))
		}
	}
	return s.report(ctx)
}

// place makes the folder for all data. What is measured lies in memory where there is room: on a disk the disk would be measured.
func (s *suite) place() (string, error) {
	need := uint64(s.o.size) * uint64(4+len(s.tools)/3)
	dir := s.o.dir
	if dir == "" {
		dir = "/dev/shm"
		if free, err := freeBytes(dir); err != nil || free < need {
			dir = os.TempDir()
			s.notes = append(s.notes, "/dev/shm has no room for the data: the figures are of the disk below "+dir)
		}
	}
	if free, err := freeBytes(dir); err != nil || free < need {
		return "", fmt.Errorf("about %d MiB are needed below %s, %d are free: a smaller -size or another BENCH_DIR", need>>20, dir, free>>20)
	}
	path, err := os.MkdirTemp(dir, "shale-bench")
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

// freeBytes is the room on a file system; of one in memory, no more than the memory that is left.
func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	free := st.Bavail * uint64(st.Bsize)
	if st.Type == unix.TMPFS_MAGIC {
		if b, err := os.ReadFile("/proc/meminfo"); err == nil {
			free = min(free, memAvailable(string(b)))
		}
	}
	return free, nil
}

// note keeps a remark for the report, once.
func (s *suite) note(format string, args ...any) {
	n := fmt.Sprintf(format, args...)
	for _, m := range s.notes {
		if m == n {
			return
		}
	}
	s.log.Print(n)
	s.notes = append(s.notes, n)
}
