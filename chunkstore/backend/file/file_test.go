package file

import (
	"testing"

	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/backendtest"
)

// create returns a new empty backend in a folder of its own.
func create(t testing.TB, o Options) *Backend {
	t.Helper()
	b, err := o.Create(t.TempDir() + "/repo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func TestContract(t *testing.T) {
	for name, o := range map[string]Options{
		"NoSync":      {NoSync: true},
		"OneOpenFile": {NoSync: true, OpenFiles: 1},
		"Sync":        {},
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backend.Backend { return create(t, o) })
		})
	}
}
