package backendtest

import (
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/meter"
)

// Counting is a backend that counts what is asked of it.
type Counting = meter.Backend

// NewCounting wraps be.
func NewCounting(be backend.Backend) *Counting { return meter.New(be) }
