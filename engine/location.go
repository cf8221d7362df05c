package engine

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/file"
)

// ErrURL: a URL that names no repository or no backup.
var ErrURL = errors.New("invalid URL")

// Location is a parsed URL: of a repository, or of a backup in one.
//
//	/path, vfs:///path             a directory, local or on NFS
//	REPOSITORY?backup=ID&volume=V  a backup; the order of the two does not matter
type Location struct {
	Path   string // absolute
	Volume string // empty: the repository itself
	Backup string
}

// ParseLocation reads a URL. A relative path is taken from the working directory. The escaped forms of '&' that Convoy prints are
// understood. Paths are not escaped, so they have no '?', and no control characters.
func ParseLocation(s string) (Location, error) {
	repo, query := s, ""
	if i := strings.LastIndexByte(s, '?'); i >= 0 {
		repo, query = s[:i], s[i+1:]
	}
	l, err := parseRepository(repo)
	if err != nil || query == "" {
		return l, err
	}
	values, err := url.ParseQuery(unescapeAmpersand(query))
	if err != nil {
		return l, fmt.Errorf("%w: %s: %v", ErrURL, s, err)
	}
	l.Volume, l.Backup = values.Get("volume"), values.Get("backup")
	if len(values) != 2 || len(values["volume"]) != 1 || len(values["backup"]) != 1 || l.Volume == "" || l.Backup == "" {
		return l, fmt.Errorf("%w: %s: a backup is named by ?backup=ID&volume=NAME", ErrURL, s)
	}
	return l, nil
}

// unescapeAmpersand puts '&' between backup= and volume= where Convoy's JSON, or a shell that took the backslash, wrote it as
// \u0026. It leaves alone a name that only looks so.
func unescapeAmpersand(query string) string {
	if strings.Contains(query, "&") {
		return query
	}
	for _, escaped := range []string{`\u0026`, "u0026"} {
		for _, key := range []string{"backup=", "volume="} {
			if i := strings.LastIndex(query, escaped+key); i >= 0 {
				return query[:i] + "&" + query[i+len(escaped):]
			}
		}
	}
	return query
}

func parseRepository(s string) (l Location, err error) {
	path := s
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		if scheme != "vfs" {
			return l, fmt.Errorf("%w: %s: scheme %q is not known; vfs:// and plain paths are", ErrURL, s, scheme)
		}
		if !strings.HasPrefix(rest, "/") {
			return l, fmt.Errorf("%w: %s: a vfs URL has three slashes and an absolute path", ErrURL, s)
		}
		path = rest
	}
	if path == "" {
		return l, fmt.Errorf("%w: it is empty", ErrURL)
	}
	if strings.ContainsFunc(path, func(r rune) bool { return r == '?' || unicode.IsControl(r) }) {
		return l, fmt.Errorf("%w: %q: a repository's path has no '?' and no control characters", ErrURL, s)
	}
	l.Path, err = filepath.Abs(path)
	return l, err
}

// String is the URL of what l names.
func (l Location) String() string {
	s := "vfs://" + l.Path
	if l.Backup != "" {
		s += "?backup=" + url.QueryEscape(l.Backup) + "&volume=" + url.QueryEscape(l.Volume)
	}
	return s
}

// Of names a backup in l's repository.
func (l Location) Of(b *chunkstore.Backup) Location {
	l.Volume, l.Backup = b.Volume, b.ID
	return l
}

// Wrapper puts a backend before a repository's own: one that counts, or keeps to limits. It is called before the first use.
type Wrapper func(backend.Backend) backend.Backend

// InitRepository makes a repository at l. Its folder is made if need be.
func InitRepository(ctx context.Context, l Location, o chunkstore.InitOptions) (chunkstore.Config, error) {
	be, err := file.Create(l.Path)
	if err != nil {
		return chunkstore.Config{}, err
	}
	return chunkstore.Init(ctx, be, o)
}

// OpenRepository opens the repository at l.
func OpenRepository(ctx context.Context, l Location, o chunkstore.Options, wrap ...Wrapper) (*chunkstore.Repository, error) {
	be, err := openBackend(l, wrap)
	if err != nil {
		return nil, err
	}
	return chunkstore.Open(ctx, be, o)
}

// ReindexRepository makes the index of the repository at l anew and opens it.
func ReindexRepository(ctx context.Context, l Location, o chunkstore.Options, progress func(done, total int), wrap ...Wrapper) (*chunkstore.Repository, *chunkstore.ReindexReport, error) {
	be, err := openBackend(l, wrap)
	if err != nil {
		return nil, nil, err
	}
	return chunkstore.Reindex(ctx, be, o, progress)
}

func openBackend(l Location, wrap []Wrapper) (backend.Backend, error) {
	be, err := file.Open(l.Path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", l.Path, chunkstore.ErrNoRepository)
	}
	if err != nil {
		return nil, err
	}
	return wrapped(be, wrap), nil
}

func wrapped(be backend.Backend, wrap []Wrapper) backend.Backend {
	for _, w := range wrap {
		be = w(be)
	}
	return be
}
