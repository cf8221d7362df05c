package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A virtual machine that reports its free memory gives pages back to its host soon after they are freed, and pays for them anew
// when they are used again: several seconds a GiB, charged to whichever tool comes by. Free blocks below 2 MiB are not reported.
// So the suite takes all memory that is free, and frees it but for one page in every 256 KiB.

const (
	ballastKept  = 4 << 10
	ballastEvery = 256 << 10
	ballastStep  = 256 << 20 // between two looks at the context
	ballastSpare = 2 << 30   // left alone for others while the memory is taken
)

// balloonDevice is virtio's number of a memory balloon, balloonReporting its feature of reporting free pages.
const (
	balloonDevice    = "0x0005"
	balloonReporting = 5
)

// reportsFreePages says whether this machine gives free memory back to a host.
func reportsFreePages(devices string) bool {
	names, _ := filepath.Glob(filepath.Join(devices, "*")) // only a bad pattern is an error
	for _, d := range names {
		kind, _ := os.ReadFile(filepath.Join(d, "device"))
		features, _ := os.ReadFile(filepath.Join(d, "features")) // a digit for each, from 0 on
		if strings.TrimSpace(string(kind)) == balloonDevice && len(features) > balloonReporting && features[balloonReporting] == '1' {
			return true
		}
	}
	return false
}

// holdMemory makes the machine keep the memory that it has, until release is called or this process ends.
func (s *suite) holdMemory(ctx context.Context) (release func(), err error) {
	none := func() {}
	if !reportsFreePages("/sys/bus/virtio/devices") {
		return none, nil
	}
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return none, err
	}
	size := (int64(memAvailable(string(meminfo))) - ballastSpare) / ballastStep * ballastStep
	if size <= 0 {
		return none, nil
	}
	fd, err := unix.MemfdCreate("shale-bench-ballast", unix.MFD_CLOEXEC)
	if err != nil {
		return none, fmt.Errorf("memory file: %w", err)
	}
	release = func() { _ = unix.Close(fd) }
	s.note("this virtual machine gives free memory back to its host: %d MiB were used once before, and are held in pieces", size>>20)
	if err := fillBallast(ctx, fd, size); err != nil {
		release()
		return none, err
	}
	return release, nil
}

// fillBallast gives the file size bytes of memory and takes most of it away again.
func fillBallast(ctx context.Context, fd int, size int64) error {
	for off := int64(0); off < size; off += ballastStep {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := unix.Fallocate(fd, 0, off, ballastStep); err != nil {
			return fmt.Errorf("memory file: allocate: %w", err)
		}
	}
	for off := int64(0); off < size; off += ballastEvery {
		if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off+ballastKept, ballastEvery-ballastKept); err != nil {
			return fmt.Errorf("memory file: punch: %w", err)
		}
	}
	return nil
}
