package source_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shalebackup/shale/e2e/fstest"
	"github.com/shalebackup/shale/engine/source"
)

const mib = 1 << 20

// edits are what a test does to a reflinked copy of an image of 8 MiB: random bytes but for a hole at [2 MiB, 3 MiB) and space that was
// reserved and not written at [3 MiB, 4 MiB).
var edits = []struct {
	name string
	do   func(t *testing.T, f *os.File)
	data int64 // most bytes to be read
	hole int64 // bytes that became a hole
}{
	{name: "nothing", do: func(*testing.T, *os.File) {}},
	{name: "one block", data: 4096, do: func(t *testing.T, f *os.File) { write(t, f, mib, noise(1, 4096)) }},
	{name: "one byte", data: 4096, do: func(t *testing.T, f *os.File) { write(t, f, mib+17, []byte{1}) }},
	{name: "two bytes across a border", data: 8192, do: func(t *testing.T, f *os.File) { write(t, f, mib+4095, []byte{1, 2}) }},
	{name: "the same bytes", data: 65536, do: func(t *testing.T, f *os.File) {
		b := make([]byte, 65536)
		if _, err := f.ReadAt(b, mib); err != nil {
			t.Fatal(err)
		}
		write(t, f, mib, b)
	}},
	{name: "300 scattered blocks", data: 300 * 4096, do: func(t *testing.T, f *os.File) {
		for i := range int64(300) {
			write(t, f, 4*mib+i*3*4096, noise(uint64(i), 4096))
		}
	}},
	{name: "into the hole", data: 4096, do: func(t *testing.T, f *os.File) { write(t, f, 2*mib+8192, noise(1, 100)) }},
	{name: "into reserved space", data: 4096, do: func(t *testing.T, f *os.File) { write(t, f, 3*mib+8192, noise(1, 100)) }},
	{name: "reserve the hole", do: func(t *testing.T, f *os.File) { fallocate(t, f, 0, 2*mib, mib) }},
	{name: "reserve beyond the end", do: func(t *testing.T, f *os.File) { fallocate(t, f, unix.FALLOC_FL_KEEP_SIZE, 8*mib, mib) }},
	{name: "punch", hole: mib, do: func(t *testing.T, f *os.File) {
		fallocate(t, f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5*mib, mib)
	}},
	{name: "punch across borders", data: 8192, hole: mib - 4096, do: func(t *testing.T, f *os.File) {
		fallocate(t, f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5*mib+100, mib)
	}},
	{name: "zero range", hole: mib, do: func(t *testing.T, f *os.File) {
		fallocate(t, f, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, 5*mib, mib)
	}},
	{name: "append", data: mib, do: func(t *testing.T, f *os.File) { write(t, f, 8*mib, noise(1, mib)) }},
	{name: "append far behind", data: 8192, do: func(t *testing.T, f *os.File) { write(t, f, 16*mib+5, noise(1, 5000)) }},
	{name: "grow", do: func(t *testing.T, f *os.File) { truncate(t, f, 16*mib+5) }},
	{name: "shrink", do: func(t *testing.T, f *os.File) { truncate(t, f, 6*mib) }},
	{name: "shrink into a block", data: 4096, do: func(t *testing.T, f *os.File) { truncate(t, f, 6*mib+1234) }},
	{name: "shrink and grow back", data: 4096, hole: 2*mib - 4096, do: func(t *testing.T, f *os.File) {
		truncate(t, f, 6*mib+1234)
		truncate(t, f, 8*mib)
	}},
	{name: "to nothing", do: func(t *testing.T, f *os.File) { truncate(t, f, 0) }},
	{name: "move blocks within", data: mib, do: func(t *testing.T, f *os.File) {
		clone := unix.FileCloneRange{Src_fd: int64(f.Fd()), Src_offset: 0, Src_length: mib, Dest_offset: 6 * mib}
		if err := unix.IoctlFileCloneRange(int(f.Fd()), &clone); err != nil {
			t.Fatal(err)
		}
	}},
	{name: "through a mapping", data: 4096, do: func(t *testing.T, f *os.File) {
		b, err := unix.Mmap(int(f.Fd()), 0, 8*mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		b[mib]++
		if err := unix.Munmap(b); err != nil {
			t.Fatal(err)
		}
	}},
}

func TestImageReflinked(t *testing.T) {
	mounts := []struct {
		name, fstype string
		mkfs         []string
		options      []string
		coarse       bool // blocks are not of 4 KiB, or compressed: only the content is checked
		encoded      bool // places say nothing: all data counts as changed
	}{
		{name: "xfs", fstype: "xfs"},
		{name: "xfs blocks of 1 KiB", fstype: "xfs", mkfs: []string{"-b", "size=1024"}, coarse: true},
		{name: "btrfs", fstype: "btrfs"},
		{name: "btrfs compressed", fstype: "btrfs", options: []string{"compress-force=zstd"}, coarse: true, encoded: true},
	}
	for _, m := range mounts {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel() // most of the time goes into waiting for the disk
			dir := fstest.MountWith(t, m.fstype, 400, m.mkfs, m.options...)
			old := filepath.Join(dir, "old.raw")
			makeImage(t, old, m.encoded)
			parent := parentOf(t, old)
			for _, e := range edits {
				t.Run(e.name, func(t *testing.T) {
					new := reflink(t, old)
					edit(t, new, e.do)
					got := backUp(t, new, source.ImageOptions{}, parent)
					got.wantBase(t, parent)
					got.wantContent(t, old, new)
					if got.stats.MetadataBlocks == 0 && got.size > 0 {
						t.Error("stats say that no extents were looked at")
					}
					if m.encoded && e.name == "nothing" && got.data != 6*mib {
						t.Errorf("to be read: %d bytes, want all that is compressed", got.data)
					}
					if !m.coarse && (got.data > e.data || got.hole != e.hole) {
						t.Errorf("to be read: %d bytes, want at most %d; holes: %d, want %d: %v", got.data, e.data, got.hole, e.hole, got.extents)
					}
				})
			}
		})
	}
}

// A long row of random edits, each image the base of the next.
func TestImageReflinkedChain(t *testing.T) {
	for _, fstype := range []string{"xfs", "btrfs"} {
		t.Run(fstype, func(t *testing.T) {
			t.Parallel()
			dir := fstest.Mount(t, fstype, 400)
			old := filepath.Join(dir, "old.raw")
			makeImage(t, old, false)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			for range 15 {
				parent := parentOf(t, old)
				new := reflink(t, old)
				edit(t, new, func(t *testing.T, f *os.File) {
					for range 1 + rnd.IntN(20) {
						off, n := rnd.Int64N(9*mib), 1+rnd.Int64N(100_000)
						switch rnd.IntN(6) {
						case 0:
							fallocate(t, f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
						case 1:
							fallocate(t, f, 0, off, n)
						case 2:
							truncate(t, f, 7*mib+rnd.Int64N(2*mib))
						default:
							write(t, f, off, noise(rnd.Uint64(), int(n)))
						}
					}
				})
				got := backUp(t, new, source.ImageOptions{}, parent)
				got.wantBase(t, parent)
				got.wantContent(t, old, new)
				old = new
			}
		})
	}
}

// Subvolumes have inode numbers and device numbers of their own, and share extents.
func TestImageSubvolumes(t *testing.T) {
	dir := fstest.Mount(t, "btrfs", 400)
	btrfs := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("btrfs", args...).CombinedOutput(); err != nil {
			t.Fatalf("btrfs %v: %v: %s", args, err, out)
		}
	}
	live := filepath.Join(dir, "live")
	btrfs("subvolume", "create", live)
	img := filepath.Join(live, "a.raw")
	makeImage(t, img, false)
	btrfs("subvolume", "snapshot", "-r", live, filepath.Join(dir, "monday"))
	edit(t, img, func(t *testing.T, f *os.File) { write(t, f, mib, noise(3, 8192)) })
	btrfs("subvolume", "snapshot", "-r", live, filepath.Join(dir, "tuesday"))

	monday, tuesday := filepath.Join(dir, "monday", "a.raw"), filepath.Join(dir, "tuesday", "a.raw")
	parent := parentOf(t, monday)
	got := backUp(t, tuesday, source.ImageOptions{}, parent)
	got.wantBase(t, parent)
	got.wantContent(t, monday, tuesday)
	if got.data != 8192 || got.hole != 0 {
		t.Errorf("to be read: %v, want the 8192 bytes that were written", got.extents)
	}
	// The snapshot of another subvolume at the base's place: same inode number, same times.
	btrfs("subvolume", "delete", filepath.Join(dir, "monday"))
	btrfs("subvolume", "snapshot", "-r", filepath.Join(dir, "tuesday"), filepath.Join(dir, "monday"))
	got = backUp(t, tuesday, source.ImageOptions{}, parent)
	if got.base.Parent != nil || !strings.Contains(got.base.Reason, "is another file now") {
		t.Errorf("base %+v, want none, as the file is another", got.base)
	}
}

func TestImageBaseRefused(t *testing.T) {
	dir, other := fstest.Mount(t, "xfs", 400), fstest.Mount(t, "xfs", 400)
	old := filepath.Join(dir, "old.raw")
	moved := filepath.Join(dir, "moved.raw")

	tests := []struct {
		name   string
		do     func(t *testing.T)
		opts   source.ImageOptions
		new    string // what to back up; a reflinked copy of old when empty
		reason string // empty: the base serves
	}{
		{name: "as it was", do: func(*testing.T) {}},
		{name: "gone", do: func(t *testing.T) { remove(t, old) }, reason: "old.raw is gone"},
		{name: "written", do: func(t *testing.T) {
			edit(t, old, func(t *testing.T, f *os.File) { write(t, f, mib, []byte("x")) })
		}, reason: "old.raw was written on 20"},
		{name: "written through a mapping", do: func(t *testing.T) {
			edit(t, old, edits[len(edits)-1].do)
		}, reason: "old.raw was written on 20"},
		{name: "written, its time set back", do: func(t *testing.T) {
			st, err := os.Stat(old)
			if err != nil {
				t.Fatal(err)
			}
			edit(t, old, func(t *testing.T, f *os.File) { write(t, f, mib, []byte("x")) })
			if err := os.Chtimes(old, st.ModTime(), st.ModTime()); err != nil {
				t.Fatal(err)
			}
		}, reason: "old.raw was changed (content, name or mode) on 20"},
		{name: "grown", do: func(t *testing.T) {
			edit(t, old, func(t *testing.T, f *os.File) { truncate(t, f, 9*mib) })
		}, reason: "old.raw had 8388608 bytes then and has 9437184 now"},
		{name: "replaced by a copy", do: func(t *testing.T) {
			c := reflink(t, old)
			if err := os.Rename(c, old); err != nil {
				t.Fatal(err)
			}
		}, reason: "old.raw is another file now"},
		{name: "a folder now", do: func(t *testing.T) {
			remove(t, old)
			if err := os.Mkdir(old, 0o700); err != nil {
				t.Fatal(err)
			}
		}, reason: "old.raw is not a regular file"},
		{name: "a pipe now", do: func(t *testing.T) {
			remove(t, old)
			if err := unix.Mkfifo(old, 0o600); err != nil {
				t.Fatal(err)
			}
		}, reason: "old.raw is not a regular file"},
		{name: "moved, not told where", do: func(t *testing.T) { rename(t, old, moved) }, reason: "old.raw is gone"},
		{name: "moved", do: func(t *testing.T) { rename(t, old, moved) }, opts: source.ImageOptions{BaseImage: moved}},
		{name: "not moved, though told so", do: func(*testing.T) {}, opts: source.ImageOptions{BaseImage: moved}},
		{name: "told the wrong file", do: func(t *testing.T) {
			rename(t, old, moved)
			makeImage(t, filepath.Join(dir, "wrong.raw"), false)
		}, opts: source.ImageOptions{BaseImage: filepath.Join(dir, "wrong.raw")}, reason: "wrong.raw is another file now"},
		{name: "image on another file system", do: func(t *testing.T) {
			makeImage(t, filepath.Join(other, "new.raw"), false)
		}, new: filepath.Join(other, "new.raw"), reason: "old.raw is not on the same file system as"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, p := range []string{old, moved} {
				if err := os.RemoveAll(p); err != nil {
					t.Fatal(err)
				}
			}
			makeImage(t, old, false)
			parent := parentOf(t, old)
			new := tt.new
			if new == "" {
				new = reflink(t, old)
			}
			tt.do(t)
			got := backUp(t, new, tt.opts, parent)
			if tt.reason == "" {
				got.wantBase(t, parent)
				if got.data+got.hole != 0 {
					t.Errorf("to be read: %v, want nothing", got.extents)
				}
				return
			}
			if got.base.Parent != nil || !strings.Contains(got.base.Reason, tt.reason) || !strings.Contains(got.base.Reason, parent.ID) {
				t.Errorf("base %+v, want none with a reason that says %q and names the backup", got.base, tt.reason)
			}
			got.wantContent(t, "", new)
		})
	}
}

// Two mounted copies of one XFS have one UUID, and places in one say nothing about the other.
func TestImageCopiedFileSystem(t *testing.T) {
	mkfs := []string{"-m", "uuid=0c9a4f43-5d2a-4b7c-9f3e-2f4f3f5f6f70"}
	old := filepath.Join(fstest.MountWith(t, "xfs", 300, mkfs, "nouuid"), "old.raw")
	new := filepath.Join(fstest.MountWith(t, "xfs", 300, mkfs, "nouuid"), "new.raw")
	makeImage(t, old, false)
	makeImage(t, new, true)
	got := backUp(t, new, source.ImageOptions{}, parentOf(t, old))
	if got.base.Parent != nil || !strings.Contains(got.base.Reason, "is not on the same file system") {
		t.Errorf("base %+v, want none on another file system of the same UUID", got.base)
	}
	got.wantContent(t, "", new)
}

// A page that is dirty through a mapping is written without a new time, until the file is written out.
func TestImageMapped(t *testing.T) {
	for _, fstype := range []string{"xfs", "btrfs", "ext4"} {
		t.Run(fstype, func(t *testing.T) {
			img := image(t, fstest.Mount(t, fstype, 300), mib, map[int64]int{0: mib})
			edit(t, img, func(t *testing.T, f *os.File) {
				page, err := unix.Mmap(int(f.Fd()), 0, mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
				if err != nil {
					t.Fatal(err)
				}
				page[0]++
				src, _ := open(t, img, source.ImageOptions{})
				page[0]++
				if err := src.ReadAt(t.Context(), make([]byte, 4096), 0); !errors.Is(err, source.ErrChanged) {
					t.Errorf("read after a write through a mapping: got %v, want ErrChanged", err)
				}
				if err := unix.Munmap(page); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// Of several candidates, the first that serves is taken, and no further one asked for.
func TestImageCandidates(t *testing.T) {
	dir := fstest.Mount(t, "btrfs", 400)
	var parents []source.Parent
	var images []string
	for i := range 3 {
		img := filepath.Join(dir, string(rune('a'+i)))
		if i == 0 {
			makeImage(t, img, false)
		} else {
			rename(t, reflink(t, images[i-1]), img)
			edit(t, img, func(t *testing.T, f *os.File) { write(t, f, mib, noise(uint64(i), 4096)) })
		}
		images = append(images, img)
		parents = append(parents, parentOf(t, img))
	}
	new := reflink(t, images[2])
	remove(t, images[2])
	got := backUp(t, new, source.ImageOptions{}, parents[2], parents[1], parents[0])
	got.wantBase(t, parents[1])
	got.wantContent(t, images[1], new)
	if got.asked != 2 {
		t.Errorf("asked for %d candidates, want 2", got.asked)
	}
	remove(t, images[1])
	remove(t, images[0])
	got = backUp(t, new, source.ImageOptions{}, parents[2], parents[1], parents[0])
	if got.base.Parent != nil || !strings.Contains(got.base.Reason, "backup "+parents[2].ID+" is no base") {
		t.Errorf("base %+v, want none, and the newest candidate's reason", got.base)
	}
}

func TestImageItsOwnBase(t *testing.T) {
	dir := fstest.Mount(t, "xfs", 400)
	img := filepath.Join(dir, "a.raw")
	makeImage(t, img, false)

	t.Run("untouched", func(t *testing.T) {
		parent := parentOf(t, img)
		got := backUp(t, img, source.ImageOptions{}, parent)
		got.wantBase(t, parent)
		if len(got.extents) != 0 || got.stats.BytesRead != 0 {
			t.Errorf("extents %v, read %d bytes, want none", got.extents, got.stats.BytesRead)
		}
	})
	t.Run("written", func(t *testing.T) {
		parent := parentOf(t, img)
		edit(t, img, func(t *testing.T, f *os.File) { write(t, f, mib, []byte{1}) })
		got := backUp(t, img, source.ImageOptions{}, parent)
		if got.base.Parent != nil || !strings.Contains(got.base.Reason, "its image is this one") || !strings.Contains(got.base.Reason, "--reflink") {
			t.Errorf("base %+v, want none, and advice", got.base)
		}
	})
	t.Run("open for writing then", func(t *testing.T) {
		f, err := os.OpenFile(img, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		parent := parentOf(t, img)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		got := backUp(t, img, source.ImageOptions{}, parent)
		if got.base.Parent != nil || !strings.Contains(got.base.Reason, "was open for writing then") {
			t.Errorf("base %+v, want none, as it was open for writing", got.base)
		}
	})
	t.Run("before a restart", func(t *testing.T) {
		parent := parentOf(t, img)
		boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			t.Fatal(err)
		}
		state := bytes.Replace(parent.State, bytes.TrimSpace(boot), []byte("another"), 1)
		if bytes.Equal(state, parent.State) {
			t.Fatalf("no boot ID in state %s", state)
		}
		parent.State = state
		got := backUp(t, img, source.ImageOptions{}, parent)
		if got.base.Parent != nil || !strings.Contains(got.base.Reason, "this host was restarted since") {
			t.Errorf("base %+v, want none, as the host was restarted", got.base)
		}
	})
	t.Run("by a hard link", func(t *testing.T) {
		link := filepath.Join(dir, "link.raw")
		if err := os.Link(img, link); err != nil {
			t.Fatal(err)
		}
		parent := parentOf(t, img)
		got := backUp(t, link, source.ImageOptions{}, parent)
		got.wantBase(t, parent)
		if len(got.extents) != 0 {
			t.Errorf("extents %v, want none", got.extents)
		}
	})
}

// Whichever of the two is written while they are compared, the backup fails.
func TestImageComparedWhileWritten(t *testing.T) {
	dir := fstest.Mount(t, "xfs", 400)
	old := filepath.Join(dir, "old.raw")
	for _, victim := range []string{"base", "image"} {
		t.Run(victim, func(t *testing.T) {
			makeImage(t, old, false)
			parent := parentOf(t, old)
			new := reflink(t, old)
			edit(t, new, func(t *testing.T, f *os.File) { write(t, f, mib, noise(9, 4096)) })
			src, base := open(t, new, source.ImageOptions{}, parent)
			if base.Parent == nil {
				t.Fatal(base.Reason)
			}
			written := map[string]string{"base": old, "image": new}[victim]
			edit(t, written, func(t *testing.T, f *os.File) { write(t, f, 0, []byte("x")) })
			var err error
			for _, err = range src.Extents(t.Context()) {
				if err != nil {
					break
				}
			}
			if !errors.Is(err, source.ErrChanged) || !strings.Contains(err.Error(), written) {
				t.Errorf("extents end with %v, want ErrChanged and %s", err, written)
			}
		})
	}
}
