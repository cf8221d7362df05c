package backendtest

import "github.com/shalebackup/shale/chunkstore/backend/meter"

// Method names a method of backend.Backend.
type Method = meter.Method

// The methods that faults and counters speak of.
const (
	Put         = meter.Put
	PutIfAbsent = meter.PutIfAbsent
	ReadAt      = meter.ReadAt
	List        = meter.List
	Stat        = meter.Stat
	Delete      = meter.Delete
)
