package file

import (
	"fmt"
	"os"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
)

func BenchmarkReadAt(b *testing.B) {
	be := create(b, Options{NoSync: true})
	name := "packs/data/ab/abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789"
	if err := be.Put(b.Context(), name, make([]byte, 16<<20)); err != nil {
		b.Fatal(err)
	}
	for _, size := range []int{1, 4 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			p := make([]byte, size)
			off := int64(0)
			for b.Loop() {
				if err := be.ReadAt(b.Context(), name, p, off); err != nil {
					b.Fatal(err)
				}
				off = (off + int64(size)) % (16<<20 - int64(size))
			}
		})
	}
	b.Run("parallel/4096", func(b *testing.B) {
		b.SetBytes(4096)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			p := make([]byte, 4096)
			for pb.Next() {
				if err := be.ReadAt(b.Context(), name, p, 8192); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
	b.Run("opening/4096", func(b *testing.B) {
		b.ReportAllocs()
		p := make([]byte, 4096)
		for b.Loop() {
			be.open.drop(name)
			if err := be.ReadAt(b.Context(), name, p, 8192); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkPut(b *testing.B) {
	for _, noSync := range []bool{false, true} {
		for _, size := range []int{4 << 10, 64 << 10, 16 << 20} {
			b.Run(fmt.Sprintf("nosync=%t/%d", noSync, size), func(b *testing.B) {
				be := create(b, Options{NoSync: noSync})
				data := make([]byte, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					if err := be.Put(b.Context(), fmt.Sprintf("packs/%d", i), data); err != nil {
						b.Fatal(err)
					}
					if i++; i%32 == 0 { // so that the disk does not fill
						b.StopTimer()
						if err := os.RemoveAll(be.root + "/packs"); err != nil {
							b.Fatal(err)
						}
						b.StartTimer()
					}
				}
			})
		}
	}
}

func BenchmarkList(b *testing.B) {
	be := create(b, Options{NoSync: true})
	for i := range 10_000 {
		if err := be.Put(b.Context(), fmt.Sprintf("packs/%02x/%d", i%256, i), nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		if err := be.List(b.Context(), "", func(_ backend.Object) error { n++; return nil }); err != nil || n != 10_000 {
			b.Fatalf("%d objects, %v", n, err)
		}
	}
}
