package meter_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
	"github.com/shalebackup/shale/chunkstore/backend/meter"
)

func TestContract(t *testing.T) {
	backendtest.Run(t, func(*testing.T) backend.Backend { return meter.New(mem.New()) })
}

func TestCounts(t *testing.T) {
	be := meter.New(mem.New())
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 25 {
				name := fmt.Sprintf("%d/%d", w, i)
				if err := be.Put(t.Context(), name, bytes.Repeat([]byte("x"), 10)); err != nil {
					t.Error(err)
				}
				if err := be.ReadAt(t.Context(), name, make([]byte, 4), 0); err != nil {
					t.Error(err)
				}
				if err := be.ReadAt(t.Context(), name, make([]byte, 40), 0); !errors.Is(err, backend.ErrShort) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for range 2 {
		if err := be.List(t.Context(), "3/", func(backend.Object) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := counts(be), "Put 100/1000 PutIfAbsent 0/0 ReadAt 200/400 List 2/0 Stat 0/0 Delete 0/0 listed 50"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	be.Reset()
	if err := be.PutIfAbsent(t.Context(), "a", []byte("newer!")); err != nil {
		t.Fatal(err)
	}
	if _, err := be.Stat(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := be.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got, want := counts(be), "Put 0/0 PutIfAbsent 1/6 ReadAt 0/0 List 0/0 Stat 1/0 Delete 1/0 listed 0"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func counts(c *meter.Backend) string {
	s := ""
	for m := meter.Put; m < meter.Methods; m++ {
		s += fmt.Sprintf("%s %d/%d ", m, c.Calls(m), c.Bytes(m))
	}
	return s + fmt.Sprintf("listed %d", c.Listed())
}
