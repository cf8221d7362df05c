package chunkstore

import (
	"context"
	"errors"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// careless is a place that passes over PutIfAbsent's condition, as some S3 servers do.
type careless struct{ backend.Backend }

func (c careless) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	return c.Put(ctx, name, data)
}

// No repository is made where PutIfAbsent does not keep its promise, and one that is there is not harmed.
func TestInitProvesPutIfAbsent(t *testing.T) {
	be := mem.New()
	for _, there := range []bool{false, true} {
		if there {
			if _, err := Init(t.Context(), be, InitOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		before, beforeErr := backend.ReadAll(t.Context(), be, objectConfig)
		if _, err := Init(t.Context(), careless{be}, InitOptions{}); !errors.Is(err, backend.ErrNoPutIfAbsent) {
			t.Errorf("got %v, want ErrNoPutIfAbsent", err)
		}
		after, afterErr := backend.ReadAll(t.Context(), be, objectConfig)
		if string(after) != string(before) || errors.Is(afterErr, backend.ErrNotExist) != errors.Is(beforeErr, backend.ErrNotExist) {
			t.Errorf("configuration was %q, %v, is %q, %v", before, beforeErr, after, afterErr)
		}
	}
	err := be.List(t.Context(), prefixProbe, func(o backend.Object) error {
		t.Errorf("%s was left", o.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
