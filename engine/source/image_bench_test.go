package source_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/shalebackup/shale/e2e/fstest"
	"github.com/shalebackup/shale/engine/source"
)

// The time to learn what changed in an image of 256 MiB, by how many scattered blocks of 4 KiB did.
func BenchmarkImageDelta(b *testing.B) {
	for _, fstype := range []string{"xfs", "btrfs"} {
		for _, changes := range []int{0, 100, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", fstype, changes), func(b *testing.B) {
				dir := fstest.Mount(b, fstype, 1024)
				old := filepath.Join(dir, "old.raw")
				f, err := os.Create(old)
				if err != nil {
					b.Fatal(err)
				}
				for off := int64(0); off < 256*mib; off += mib {
					write(b, f, off, noise(uint64(off/mib), mib))
				}
				if err := f.Close(); err != nil {
					b.Fatal(err)
				}
				parent := parentOf(b, old)
				new := reflink(b, old)
				if f, err = os.OpenFile(new, os.O_RDWR, 0); err != nil {
					b.Fatal(err)
				}
				for i := range int64(changes) {
					write(b, f, i*6*4096, noise(uint64(i), 4096))
				}
				if err := f.Close(); err != nil {
					b.Fatal(err)
				}
				src, base := open(b, new, source.ImageOptions{}, parent)
				if base.Parent == nil {
					b.Fatal(base.Reason)
				}
				for b.Loop() {
					n := 0
					for _, err := range src.Extents(b.Context()) {
						if err != nil {
							b.Fatal(err)
						}
						n++
					}
					if n != changes {
						b.Fatalf("%d extents, want %d", n, changes)
					}
				}
			})
		}
	}
}
