package mem_test

import (
	"errors"
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

func TestContract(t *testing.T) {
	backendtest.Run(t, func(*testing.T) backend.Backend { return mem.New() })
}

// Tests on mem must fail where the file backend would.
func TestNameAndFolderClash(t *testing.T) {
	be := mem.New()
	if err := be.Put(t.Context(), "a/b", nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "a/b/c"} {
		if err := be.Put(t.Context(), name, nil); !errors.Is(err, backend.ErrName) {
			t.Errorf("put %s beside a/b: got %v, want ErrName", name, err)
		}
	}
}
