package backend

import (
	"context"
	"errors"
	"fmt"
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
	// ErrRetained: a lock keeps the object from being deleted or replaced. A RetainedError says until when.
	ErrRetained = errors.New("object is locked")
	// ErrNoLock: the place has no object locks, or not for these objects.
	ErrNoLock = errors.New("no object lock")
	// ErrNoPutIfAbsent: the place cannot tell the first of several writers of a name, so it can hold no repository.
	ErrNoPutIfAbsent = errors.New("the store does not keep two writers from creating one object: it lacks conditional writes")
)

// RetainedError says until when an object is locked.
type RetainedError struct {
	Name  string
	Until time.Time // zero: not known
	Err   error     // what the place said; nil when it was not tried
}

func (e *RetainedError) Error() string {
	s := fmt.Sprintf("%s: %v", e.Name, ErrRetained)
	if !e.Until.IsZero() {
		s += " until " + e.Until.UTC().Format(time.RFC3339)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *RetainedError) Unwrap() []error { return []error{ErrRetained, e.Err} }

// Object describes a stored object.
type Object struct {
	Name    string
	Size    int64     // bytes
	ModTime time.Time // the store's clock, not this host's, where the two differ
}

// Backend is a place that holds named, immutable byte strings.
//
// All methods may be called from many goroutines and from many hosts at once. They return the context's error soon after
// it is cancelled; a single system call or request that hangs may delay that. Names follow ValidName: another name is
// ErrName to every method but List. A name and a folder of that name ("a" and "a/b") cannot both hold data: a backend
// made of files refuses the second with ErrName, others may.
//
// After an error of Put, PutIfAbsent or Delete (ErrExist, ErrName apart) the call may or may not have taken effect, as when an
// answer is lost on the way; but an object that can be seen is always whole.
type Backend interface {
	// Put stores data under name, whole or not at all, and returns when it is durable. An object of that name is replaced:
	// a reader sees the old bytes or the new ones, never a mixture within one ReadAt. data is not kept after the call.
	// Readers on other hosts may see the old bytes for a while: objects whose newest state matters are written once, under
	// names of their own.
	Put(ctx context.Context, name string, data []byte) error

	// PutIfAbsent is Put, except that it fails with ErrExist when the name is taken; of several racing callers one succeeds.
	// ErrExist promises that the object there is durable too. A caller whose call failed otherwise, and who must know
	// whether it won, reads the object back.
	PutIfAbsent(ctx context.Context, name string, data []byte) error

	// ReadAt fills p with the object's bytes from off on. Fewer bytes than len(p) are ErrShort, and p then holds anything;
	// so is an off past the end with an empty p. A negative off is an error.
	ReadAt(ctx context.Context, name string, p []byte, off int64) error

	// List calls fn for every object whose name begins with prefix, in ascending byte order of the names, each once.
	// prefix is any string: it need not end at a slash, and one that no name can begin with lists nothing. fn is called
	// from List's own goroutine, may block and may call the backend. An error of fn ends the listing and is returned.
	// What is written or deleted meanwhile may or may not be seen; what is not touched meanwhile is.
	List(ctx context.Context, prefix string, fn func(Object) error) error

	// Stat describes one object.
	Stat(ctx context.Context, name string) (Object, error)

	// Delete removes an object and returns when that is durable. A missing object is no error, so that a repeated delete
	// succeeds.
	Delete(ctx context.Context, name string) error

	// Location names the place for messages, without secrets.
	Location() string
}

// As returns the first of be and the backends behind it, as their Unwrap tells, that is a T. So abilities are asked for that not
// all backends have: a wrapper hides none.
func As[T any](be Backend) (T, bool) {
	for {
		if t, ok := be.(T); ok {
			return t, true
		}
		w, ok := be.(interface{ Unwrap() Backend })
		if !ok {
			var none T
			return none, false
		}
		be = w.Unwrap()
	}
}

// StaleRemover is asked for by As: it is there on backends where a writer that died can leave remains that take
// space but are no objects (temporary files, unfinished uploads). Prune calls it.
type StaleRemover interface {
	// RemoveStale removes remains last written longer than age ago, and returns their number and size in bytes. An age
	// shorter than the longest Put of any host breaks that Put: it fails, but no object is harmed. Use StaleAge.
	RemoveStale(ctx context.Context, age time.Duration) (removed int, bytes int64, err error)
}

// Pace returns when n more bytes may be moved, or the context's error.
type Pace func(ctx context.Context, n int) error

// Pacer is asked for by As: it is there on backends that move an object's bytes in pieces, and can wait between them. Without it
// a limit can only delay the whole object, which then goes at full speed.
type Pacer interface {
	// SetPace has up called before each piece that is written to the place, and down before each that is read from it; nil: not
	// called. It comes before the first use of the backend. A piece is at most PaceBytes.
	SetPace(up, down Pace)
}

// PaceBytes is the longest piece that a Pacer moves at once.
const PaceBytes = 256 << 10

// LockMode says who can end a lock before its time.
type LockMode string

const (
	// Governance: whoever has a special right can end the lock.
	Governance LockMode = "governance"
	// Compliance: nobody can, not even who pays for the place.
	Compliance LockMode = "compliance"
)

// ObjectLocker is asked for by As: it is there on backends that can keep objects from being deleted, by anyone, for a time.
type ObjectLocker interface {
	// CanRetain returns nil where Retain works, and else says why it does not.
	CanRetain(ctx context.Context) error

	// Retain locks the object until then. A lock that lasts as long stays as it is; none is ever shortened. longer says that it
	// was made or extended.
	Retain(ctx context.Context, name string, mode LockMode, until time.Time) (longer bool, err error)

	// Retained returns until when the object is locked; zero when it is not. A Delete may hide a locked object in spite of
	// that, where the place keeps versions: who deletes what a lock is to protect asks first.
	Retained(ctx context.Context, name string) (time.Time, error)
}

// Distant is asked for by As: it is there on backends where a request takes long however little it moves. Who reads there does well to
// have several requests under way, and to read some bytes that nobody asked for rather than to ask twice.
type Distant interface {
	// AtOnce is how many requests should be under way.
	AtOnce() int
}

// StaleAge is long enough to be sure that the writer of a temporary is gone, also with clocks that disagree by hours.
const StaleAge = 24 * time.Hour

// ReadAll returns the whole object. An object that shrinks between the two calls (a Put of fewer bytes) is ErrShort.
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

// maxName and maxSegment are in bytes. A segment is a file's name on backends made of files, which take 255 bytes; the rest is
// left to what such a backend puts around it.
const (
	maxName    = 512
	maxSegment = 200
)

// Begin refuses what no method of a backend takes: a cancelled context, an invalid name. verb says for the message what was asked for.
func Begin(ctx context.Context, verb, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !ValidName(name) {
		return fmt.Errorf("%s %q: %w", verb, name, ErrName)
	}
	return nil
}

// ValidName reports whether name may name an object: 1 to 512 bytes of lower-case letters, digits, '.', '_' and '-' in
// segments of at most 200 bytes separated by single slashes, none that begins with a dot (those are the backend's own).
func ValidName(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	segment := 0 // bytes of the current segment so far
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '_', c == '-':
		case c == '.' && segment > 0:
		case c == '/' && segment > 0:
			segment = 0
			continue
		default:
			return false
		}
		if segment++; segment > maxSegment {
			return false
		}
	}
	return segment > 0
}
