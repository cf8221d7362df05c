//go:build !linux

package thin

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Open opens the metadata in a file, read-only. Live devices exist on Linux only.
func Open(path string, opts Options) (*Reader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("find the size of %s: %w", path, err), f.Close())
	}
	r, err := NewReader(f, size, opts)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	r.closer = f
	return r, nil
}
