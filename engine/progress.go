package engine

// Progress is told how far long work has come. Its methods are called from several goroutines, and must not block.
type Progress interface {
	// Total says how many bytes there are to do, as far as it is known; it may grow.
	Total(bytes int64)
	// Add says that so many more bytes are done.
	Add(bytes int64)
}

// noProgress is what a nil Progress stands for.
type noProgress struct{}

func (noProgress) Total(int64) {}
func (noProgress) Add(int64)   {}

func progressOr(p Progress) Progress {
	if p == nil {
		return noProgress{}
	}
	return p
}
