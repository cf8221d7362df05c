package engine

import (
	"context"

	"github.com/shalebackup/shale/chunkstore"
)

// RepairRepository repairs the repository at l.
func RepairRepository(ctx context.Context, l Location, b BackendOptions, o chunkstore.Options, ro chunkstore.RepairOptions) (*chunkstore.RepairReport, error) {
	be, err := OpenBackend(l, b)
	if err != nil {
		return nil, err
	}
	return chunkstore.Repair(ctx, be, o, ro)
}
