package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// machine describes this machine in a line.
func machine() string {
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo") // what cannot be read is left out
	meminfo, _ := os.ReadFile("/proc/meminfo")
	release, _ := os.ReadFile("/etc/os-release")
	load, _ := os.ReadFile("/proc/loadavg")
	kernel := "unknown"
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Sprintf("%d CPUs %s, %d MiB, kernel %s, %s, %s, load in the end %s", runtime.NumCPU(), field(string(cpuinfo), "model name", ":"),
		kibField(string(meminfo), "MemTotal")>>10, kernel, strings.Trim(field(string(release), "PRETTY_NAME", "="), `"`), runtime.Version(),
		strings.Join(strings.Fields(string(load))[:min(3, len(strings.Fields(string(load))))], " "))
}

// field finds "name sep value" in lines of text.
func field(text, name, sep string) string {
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, sep); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func kibField(meminfo, name string) uint64 {
	n, err := strconv.ParseUint(strings.TrimSuffix(field(meminfo, name, ":"), " kB"), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// memAvailable is how many bytes can be used before the machine swaps.
func memAvailable(meminfo string) uint64 { return kibField(meminfo, "MemAvailable") << 10 }

// fileSystem names what a folder lies on.
func fileSystem(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err.Error()
	}
	switch st.Type {
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "XFS"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	}
	return fmt.Sprintf("file system of type %#x", st.Type)
}
