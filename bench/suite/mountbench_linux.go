package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

var mountMetrics = []metric{mFirst, mSeq, mSeqCPU, mIOPS1, mP50, mP99, mIOPS16, mPeak}

// mountRow measures a tool's mount with two fresh servers: one for random reads, one for a sequential read.
func (s *suite) mountRow(ctx context.Context, t tool, b *bed) error {
	b.mnt = filepath.Join(s.dir, "mounted")
	if err := os.MkdirAll(b.mnt, 0o755); err != nil {
		return err
	}
	server, path := t.mount(b)
	if path == "" {
		return nil
	}
	to := s.res.row("mount")
	to.title, to.metrics = "Mount: the changed image, read through FUSE", mountMetrics
	to.note = "First byte counts from the start of the server. Random reads are of 4 KiB over the whole image, holes included, of a server that has just begun; every answer is compared. CPU is the server's during the sequential read."
	to.commands[t.name()] = s.readable(server)
	got, err := s.readMount(ctx, server, b.mnt, path)
	if err != nil {
		return err
	}
	to.add(t.name(), got)
	s.log.Printf("%-12s mount      first byte %.0f ms, %.0f MB/s, %.0f and %.0f reads/s", t.name(), got[mFirst], got[mSeq], got[mIOPS1], got[mIOPS16])
	return nil
}

// readMount starts the server twice and reads.
func (s *suite) readMount(ctx context.Context, server command, mnt, path string) (sample, error) {
	got := sample{}
	want, err := mapFile(s.w.v2)
	if err != nil {
		return nil, err
	}
	defer unmapFile(want)
	random := func(f *os.File, first time.Duration) error {
		got[mFirst] = millis(first)
		one, err := randomReads(ctx, f, want, 1, s.o.seconds)
		if err != nil {
			return err
		}
		many, err := randomReads(ctx, f, want, 16, s.o.seconds)
		got[mIOPS1], got[mP50], got[mP99], got[mIOPS16] = one.rate, one.p50, one.p99, many.rate
		return err
	}
	used, err := served(ctx, server, mnt, path, random)
	if err != nil {
		return nil, err
	}
	got[mPeak] = float64(used.PeakKiB) / 1024
	sequential := func(f *os.File, _ time.Duration) error {
		rate, err := sequentialRead(ctx, f)
		got[mSeq] = rate
		return err
	}
	if used, err = served(ctx, server, mnt, path, sequential); err != nil {
		return nil, err
	}
	got[mSeqCPU], got[mPeak] = used.CPU.Seconds(), max(got[mPeak], float64(used.PeakKiB)/1024)
	return got, nil
}

// served starts a server, waits for the first byte of a file below mnt, lets fn read it, and unmounts.
func served(ctx context.Context, server command, mnt, path string, fn func(f *os.File, first time.Duration) error) (cost, error) {
	begin := time.Now()
	p, err := startMeasured(ctx, server)
	if err != nil {
		return cost{}, err
	}
	f, err := firstByte(ctx, filepath.Join(mnt, path), begin.Add(time.Minute), p.ended)
	if err == nil {
		err = fn(f, time.Since(begin))
		err = closing(err, f)
	}
	err = errors.Join(err, unmount(ctx, p, mnt))
	asked := time.AfterFunc(5*time.Second, func() { _ = p.interrupt() }) // for a server that does not see that it was unmounted
	used, waitErr := p.wait()
	asked.Stop()
	if used.Status == 128+int(unix.SIGINT) || used.Status == 130 {
		waitErr = nil // asked to
	}
	return used, errors.Join(err, waitErr)
}

// unmount ends a server by unmounting what it shows, and asks it to end if that is not enough.
func unmount(ctx context.Context, p *running, mnt string) error {
	ctx = context.WithoutCancel(ctx)
	var err error
	for range 50 { // it may be busy for a moment
		if _, err = output(ctx, command{argv: []string{"fusermount3", "-u", mnt}}); err == nil {
			break
		}
		if !isMountPoint(mnt) {
			return errors.Join(errors.New("the server has not mounted"), p.interrupt())
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

func isMountPoint(dir string) bool {
	var a, b unix.Stat_t
	if unix.Stat(dir, &a) != nil {
		return true // a dead FUSE mount cannot be looked at
	}
	return unix.Stat(filepath.Dir(dir), &b) == nil && a.Dev != b.Dev
}

// firstByte waits until the file can be read, and leaves it open. It gives up when its server has ended.
func firstByte(ctx context.Context, path string, until time.Time, ended <-chan struct{}) (*os.File, error) {
	p := make([]byte, 1)
	for {
		f, err := os.Open(path)
		if err == nil {
			if _, err = f.ReadAt(p, 0); err == nil {
				return f, nil
			}
			err = closing(err, f)
		}
		if time.Now().After(until) || ctx.Err() != nil {
			return nil, fmt.Errorf("the mount shows nothing: %w", firstOf(ctx.Err(), err))
		}
		select {
		case <-ended:
			return nil, errors.New("the server has ended")
		case <-time.After(time.Millisecond):
		}
	}
}

// readRate is what random reads gave.
type readRate struct {
	rate     float64 // a second
	p50, p99 float64 // milliseconds
}

// randomReads reads 4 KiB at random places for a while, from several goroutines, and compares each.
func randomReads(ctx context.Context, f io.ReaderAt, want []byte, readers int, seconds float64) (readRate, error) {
	var mu sync.Mutex
	var took []time.Duration
	var failed error
	var wg sync.WaitGroup
	begin := time.Now()
	until := begin.Add(time.Duration(seconds * float64(time.Second)))
	for i := range readers {
		wg.Go(func() {
			d, p := newDice(uint64(i), uint64(readers)), make([]byte, 4096)
			var own []time.Duration
			var err error
			for now := time.Now(); err == nil && now.Before(until) && ctx.Err() == nil; {
				off := int64(d.n(len(want)/4096)) * 4096
				if _, err = f.ReadAt(p, off); err == nil && !bytes.Equal(p, want[off:][:4096]) {
					err = fmt.Errorf("read of 4 KiB at %d: not what was backed up", off)
				}
				next := time.Now()
				own, now = append(own, next.Sub(now)), next
			}
			mu.Lock()
			defer mu.Unlock()
			took, failed = append(took, own...), firstOf(failed, err)
		})
	}
	wg.Wait()
	if failed = firstOf(failed, ctx.Err()); failed != nil || len(took) == 0 {
		return readRate{}, failed
	}
	rate := float64(len(took)) / time.Since(begin).Seconds()
	slices.Sort(took)
	return readRate{rate, millis(took[len(took)/2]), millis(took[len(took)*99/100])}, nil
}

// sequentialRead reads the whole file by 1 MiB and returns MB a second.
func sequentialRead(ctx context.Context, f io.ReaderAt) (float64, error) {
	p := make([]byte, 1<<20)
	begin := time.Now()
	for off := int64(0); ; {
		n, err := f.ReadAt(p, off)
		off += int64(n)
		if errors.Is(err, io.EOF) {
			return float64(off) / 1e6 / time.Since(begin).Seconds(), nil
		}
		if err = firstOf(err, ctx.Err()); err != nil {
			return 0, err
		}
	}
}

// mapFile maps a file for reading.
func mapFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return b, nil
}
