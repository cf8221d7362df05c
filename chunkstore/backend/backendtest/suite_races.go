package backendtest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// testReplaceUnderReaders has readers look at one object, of constant size and one byte value throughout, while it is replaced: a
// mixture shows as two values, a gap as an error.
func (s Suite) testReplaceUnderReaders(t *testing.T, be backend.Backend) {
	const size, readers = 100_000, 3
	rounds := s.times(40)
	mustPut(t, be, "hot/object", bytes.Repeat([]byte{0}, size))
	var stop atomic.Bool
	errs := make(chan error, readers)
	read := make(chan struct{}, 1) // holds a token when there was a read since it was emptied
	for range readers {
		go func() {
			p := make([]byte, size)
			last := byte(0)
			for !stop.Load() {
				if err := be.ReadAt(t.Context(), "hot/object", p, 0); err != nil {
					errs <- err
					return
				}
				if p[0] < last || !bytes.Equal(p, bytes.Repeat(p[:1], size)) {
					errs <- fmt.Errorf("read a mixture, or version %d after %d", p[0], last)
					return
				}
				last = p[0]
				select {
				case read <- struct{}{}:
				default:
				}
			}
			errs <- nil
		}()
	}
	for i := 1; i <= rounds; i++ {
		mustPut(t, be, "hot/object", bytes.Repeat([]byte{byte(i)}, size))
		p := make([]byte, 1)
		if err := be.ReadAt(t.Context(), "hot/object", p, size-1); err != nil || p[0] != byte(i) {
			t.Errorf("after Put %d: read %d, %v", i, p[0], err)
		}
		select { // a fast writer waits for the readers; they do not wait for it
		case <-read:
		case err := <-errs:
			t.Fatal(err)
		}
	}
	stop.Store(true)
	for range readers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func (s Suite) testPutIfAbsentRace(t *testing.T, be backend.Backend) {
	const racers = 8
	rounds := s.times(20)
	for round := range rounds {
		name := fmt.Sprintf("race/%d", round)
		var wg sync.WaitGroup
		start := make(chan struct{})
		results := make([]error, racers)
		for i := range racers {
			wg.Go(func() {
				<-start
				results[i] = be.PutIfAbsent(t.Context(), name, Content(fmt.Sprint(i), 1000))
			})
		}
		close(start)
		wg.Wait()
		winner := -1
		for i, err := range results {
			switch {
			case err == nil && winner >= 0:
				t.Fatalf("%s: %d and %d both won", name, winner, i)
			case err == nil:
				winner = i
			case !errors.Is(err, backend.ErrExist):
				t.Fatalf("%s: %d got %v, want nil or ErrExist", name, i, err)
			}
		}
		if winner < 0 {
			t.Fatalf("%s: nobody won", name)
		}
		mustHold(t, be, name, Content(fmt.Sprint(winner), 1000))
	}
	if got := len(list(t, be, "")); got != rounds {
		t.Fatalf("%d objects listed, want %d", got, rounds)
	}
}

// testListUnderWrites: what is not touched during a listing is in it, once and in order.
func testListUnderWrites(t *testing.T, be backend.Backend) {
	var still []string
	for i := range 50 {
		name := fmt.Sprintf("l/%02d-still", i)
		mustPut(t, be, name, nil)
		still = append(still, name)
	}
	var stop atomic.Bool
	done := make(chan error)
	go func() {
		for i := 0; !stop.Load(); i = (i + 1) % 50 {
			name := fmt.Sprintf("l/%02d-moving", i)
			err := be.Put(t.Context(), name, []byte("whole"))
			if err == nil {
				err = be.Delete(t.Context(), name)
			}
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for range 10 {
		var names, got []string
		for _, o := range list(t, be, "l/") {
			names = append(names, o.Name)
			if strings.HasSuffix(o.Name, "-still") {
				got = append(got, o.Name)
			} else if o.Size != int64(len("whole")) {
				t.Errorf("listed half an object: %+v", o)
			}
		}
		if !slices.Equal(got, still) {
			t.Errorf("got %q, want %q among others", got, still)
		}
		if !slices.IsSorted(names) || len(slices.Compact(names)) != len(names) {
			t.Errorf("out of order or twice: %q", names)
		}
	}
	stop.Store(true)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// testConcurrentMix has every method at work at once on names of each goroutine's own: nobody disturbs another.
func (s Suite) testConcurrentMix(t *testing.T, be backend.Backend) {
	const workers = 6
	rounds := s.times(15)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range rounds {
				name := fmt.Sprintf("mix/%d/%d", i%3, w)
				want := Content(name, 2000+i)
				if err := be.Put(t.Context(), name, want); err != nil {
					t.Error(err)
					return
				}
				if got, err := backend.ReadAll(t.Context(), be, name); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %v, or other bytes", name, err)
				}
				if err := be.List(t.Context(), "mix/", func(backend.Object) error { return nil }); err != nil {
					t.Error(err)
				}
				if err := be.Delete(t.Context(), name); err != nil {
					t.Error(err)
				}
				if _, err := be.Stat(t.Context(), name); !errors.Is(err, backend.ErrNotExist) {
					t.Errorf("%s after Delete: got %v, want ErrNotExist", name, err)
				}
			}
		})
	}
	wg.Wait()
	mustList(t, be, "", nil)
}
