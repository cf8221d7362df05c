package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A virtual machine that reports its free memory gives pages back to its host soon after they are freed, and pays for them anew
// when they are used again: several seconds a GiB, charged to whichever tool comes by. Free blocks below a certain order are not
// reported. So the suite takes all memory that is free, and frees it but for a page in each half of such a block.

const (
	ballastKept  = 4 << 10
	ballastStep  = 256 << 20 // between two looks at the context
	ballastSpare = 2 << 30   // left alone for others while the memory is taken
)

// reportingOrder is the order from which free blocks are reported; without the file it is that of 2 MiB.
const (
	reportingOrder     = "/sys/module/page_reporting/parameters/page_reporting_order"
	defaultReportOrder = 9
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
	if err := fillBallast(ctx, fd, size, ballastEvery(reportingOrder)); err != nil {
		release()
		return none, err
	}
	return release, nil
}

// ballastEvery is the distance, in bytes, of kept pages between which no block is long enough to be reported.
func ballastEvery(orderFile string) int64 {
	text, _ := os.ReadFile(orderFile) // what cannot be read is the default
	order, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || order < 3 || order > 20 {
		order = defaultReportOrder
	}
	return ballastKept << (order - 1)
}

// fillBallast gives the file size bytes of memory and takes all of it away again but for a page in every so many bytes.
func fillBallast(ctx context.Context, fd int, size, every int64) error {
	for off := int64(0); off < size; off += ballastStep {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := unix.Fallocate(fd, 0, off, ballastStep); err != nil {
			return fmt.Errorf("memory file: allocate: %w", err)
		}
	}
	for off := int64(0); off < size; off += every {
		if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off+ballastKept, every-ballastKept); err != nil {
			return fmt.Errorf("memory file: punch: %w", err)
		}
	}
	return nil
}
