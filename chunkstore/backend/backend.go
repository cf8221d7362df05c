package backend

import (
	"context"
	"errors"
	"time"
)

// Errors that callers decide on. Implementations wrap them with the object's name.
var (
	// ErrNotExist: there is no object of that name.
	ErrNotExist = errors.New("object does not exist")
	// ErrExist: PutIfAbsent found an object of that name.
	ErrExist = errors.New("object exists already")
	// ErrShort: a read reached past the end of the object.
	ErrShort = errors.New("object is shorter than the range asked for")
	// ErrName: the name breaks the rules of ValidName.
	ErrName = errors.New("invalid object name")
)

// Object describes a stored object.
type Object struct {
	Name    string
	Size    int64     // bytes
	ModTime time.Time // the store's clock, not this host's, where the two differ
}

// Backend is a place that holds named, immutable byte strings.
//
// All methods may be called from many goroutines and from many hosts at once. They return the context's error soon after
// it is cancelled. Names follow ValidName.
type Backend interface {
	// Put stores data under name, whole or not at all, and returns when it is durable. An object of that name is replaced:
	// a reader sees the old bytes or the new ones, never a mixture. data is not kept after the call.
	Put(ctx context.Context, name string, data []byte) error

	// PutIfAbsent is Put, except that it fails with ErrExist when the name is taken; of several racing callers one succeeds.
	PutIfAbsent(ctx context.Context, name string, data []byte) error

	// ReadAt fills p with the object's bytes from off on. Fewer bytes than len(p) are ErrShort.
	ReadAt(ctx context.Context, name string, p []byte, off int64) error

	// List calls fn for every object whose name begins with prefix, in ascending byte order of the names.
	// An error of fn ends the listing and is returned. What is written or deleted meanwhile may or may not be seen.
	List(ctx context.Context, prefix string, fn func(Object) error) error

	// Stat describes one object.
	Stat(ctx context.Context, name string) (Object, error)

	// Delete removes an object. A missing object is no error, so that a repeated delete succeeds.
	Delete(ctx context.Context, name string) error

	// Location names the place for messages, without secrets.
	Location() string
}

// ReadAll returns the whole object.
func ReadAll(ctx context.Context, be Backend, name string) ([]byte, error) {
	obj, err := be.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	p := make([]byte, obj.Size)
	if err := be.ReadAt(ctx, name, p, 0); err != nil {
		return nil, err
	}
	return p, nil
}

// ValidName reports whether name may name an object: 1 to 512 bytes of lower-case letters, digits, '.', '_' and '-' in
// segments separated by single slashes, no segment "." or "..", none that begins with a dot (those are the backend's own).
func ValidName(name string) bool {
	if name == "" || len(name) > 512 {
		return false
	}
	start := true
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '_', c == '-':
			start = false
		case c == '.':
			if start {
				return false
			}
		case c == '/':
			if start {
				return false
			}
			start = true
		default:
			return false
		}
	}
	return !start
}
