package engine_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
	"github.com/shalebackup/shale/engine"
)

// putBackups writes n records of a volume, a day apart, the newest now; none has data.
func putBackups(t *testing.T, r *chunkstore.Repository, volume string, n int, labels map[string]string) (ids []string) {
	t.Helper()
	w, err := r.NewWriter(t.Context(), chunkstore.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := range n {
		b := &chunkstore.Backup{Volume: volume, Time: time.Now().UTC().Add(time.Duration(i+1-n) * 24 * time.Hour), Labels: labels}
		if err := w.PutBackup(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, b.ID)
	}
	return ids
}

// left says how many backups each volume has.
func left(t *testing.T, r *chunkstore.Repository) map[string]int {
	t.Helper()
	list, err := r.ListBackups(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	n := map[string]int{}
	for _, b := range list {
		n[b.Volume]++
	}
	return n
}

func TestForget(t *testing.T) {
	r := memRepo(t)
	putBackups(t, r, "a", 5, nil)
	putBackups(t, r, "b", 4, map[string]string{"kind": "hand"})
	putBackups(t, r, "b", 4, nil)
	last2 := engine.Retention{Last: 2}
	forget := func(o engine.ForgetOptions, forgotten int, want map[string]int) {
		t.Helper()
		rep, err := engine.Forget(t.Context(), r, o)
		if err != nil {
			t.Fatal(err)
		}
		if got := left(t, r); rep.Forgotten != forgotten || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%d forgotten, %v left; want %d, %v", rep.Forgotten, got, forgotten, want)
		}
	}
	forget(engine.ForgetOptions{Retention: last2, DryRun: true}, 9, map[string]int{"a": 5, "b": 8})
	forget(engine.ForgetOptions{Retention: last2, Volume: "a"}, 3, map[string]int{"a": 2, "b": 8})
	forget(engine.ForgetOptions{Retention: last2, Labels: []engine.Label{{Key: "kind", Value: "hand"}, {Key: "none"}}}, 0, map[string]int{"a": 2, "b": 8})
	forget(engine.ForgetOptions{Retention: last2, Labels: []engine.Label{{Key: "kind", Value: "hand"}}}, 2, map[string]int{"a": 2, "b": 6})
	forget(engine.ForgetOptions{Retention: engine.Retention{Last: 1, Labels: []engine.Label{{Key: "kind", Any: true}}}}, 4, map[string]int{"a": 1, "b": 3})
	forget(engine.ForgetOptions{Retention: last2, Now: time.Now().Add(-1000 * time.Hour)}, 0, map[string]int{"a": 1, "b": 3}) // all are of the future
	forget(engine.ForgetOptions{Retention: last2}, 1, map[string]int{"a": 1, "b": 2})

	var missing *chunkstore.NotFoundError
	if _, err := engine.Forget(t.Context(), r, engine.ForgetOptions{Retention: last2, Volume: "bb"}); !errors.As(err, &missing) || missing.What != "volume" {
		t.Errorf("a volume that is not there: %v", err)
	}
	if _, err := engine.Forget(t.Context(), r, engine.ForgetOptions{}); !errors.Is(err, engine.ErrNoRetention) {
		t.Errorf("no policy: %v", err)
	}
}

// A record that cannot be read stays, is told of, and counts for no rule; when the backend fails, nothing is deleted.
func TestForgetUnreadable(t *testing.T) {
	be := mem.New()
	r, err := openUnchecked(t, be)
	if err != nil {
		t.Fatal(err)
	}
	putBackups(t, r, "v", 6, nil)
	for _, tt := range []struct {
		kind backendtest.Kind
		ok   bool
		left int
	}{{backendtest.Fail, false, 6}, {backendtest.FlipBit, true, 3}} { // two of five and the unreadable one
		faulty := backendtest.NewFaulty(t, be, backendtest.Fault{Method: backendtest.ReadAt, Prefix: "backups/", N: 3, Kind: tt.kind, Bit: 8*40 + 1})
		bad, err := chunkstore.Open(t.Context(), faulty, chunkstore.Options{Parallel: 1})
		if err != nil {
			t.Fatal(err)
		}
		rep, err := engine.Forget(t.Context(), bad, engine.ForgetOptions{Retention: engine.Retention{Last: 2}})
		if (err == nil) != tt.ok || (err == nil && (len(rep.Damage) != 1 || rep.Forgotten != 3)) {
			t.Errorf("%v: %+v, %v", tt.kind, rep, err)
		}
		if got := left(t, r)["v"]; got != tt.left {
			t.Errorf("%v: %d backups left, want %d", tt.kind, got, tt.left)
		}
		if err := bad.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A delete that fails is told, with how many went before; the next run goes on. One that somebody else was quicker with is none.
func TestForgetDeleteFails(t *testing.T) {
	be := mem.New()
	putBackups(t, openRepo(t, be), "v", 20, nil)
	faulty := backendtest.NewFaulty(t, be, backendtest.Fault{Method: backendtest.Delete, Prefix: "backups/", N: 12})
	r, err := openUnchecked(t, faulty)
	if err != nil {
		t.Fatal(err)
	}
	o := engine.ForgetOptions{Retention: engine.Retention{Daily: 1}}
	rep, err := engine.Forget(t.Context(), r, o)
	if !errors.Is(err, backendtest.ErrInjected) || rep.Forgotten < 4 || rep.Forgotten > 18 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if got := left(t, r)["v"]; got != 20-rep.Forgotten {
		t.Errorf("%d forgotten, %d left", rep.Forgotten, got)
	}
	if rep, err = engine.Forget(t.Context(), r, o); err != nil || left(t, r)["v"] != 1 {
		t.Errorf("again: %+v, %v, %v left", rep, err, left(t, r))
	}
}

// openUnchecked opens the repository at be, which it makes if need be; unlike openRepo it does not check it in the end.
func openUnchecked(t *testing.T, be backend.Backend) (*chunkstore.Repository, error) {
	t.Helper()
	_, err := chunkstore.Init(t.Context(), be, chunkstore.InitOptions{PackBytes: 1 << 20})
	if err != nil && !errors.Is(err, chunkstore.ErrRepositoryExists) {
		return nil, err
	}
	r, err := chunkstore.Open(t.Context(), be, chunkstore.Options{})
	if err == nil {
		t.Cleanup(func() { _ = r.Close() })
	}
	return r, err
}
