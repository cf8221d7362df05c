package engine

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend/s3"
)

// ErrURL: a URL that names no repository or no backup.
var ErrURL = errors.New("invalid URL")

// Location is a parsed URL: of a repository, or of a backup in one.
//
//	/path, vfs:///path             a directory, local or on NFS
//	s3://bucket@region/prefix      a bucket; region and prefix may be left out
//	REPOSITORY?backup=ID&volume=V  a backup; the order of the two does not matter
type Location struct {
	Bucket string // empty: a directory
	Region string // of the bucket, if the URL names it
	Path   string // of a directory: absolute; in a bucket: the prefix, without slashes at its ends, which may be empty
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
		switch {
		case scheme == "s3":
			return parseBucket(s, rest)
		case scheme != "vfs":
			return l, fmt.Errorf("%w: %s: scheme %q is not known; s3://, vfs:// and plain paths are", ErrURL, s, scheme)
		case !strings.HasPrefix(rest, "/"):
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

var regionName = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// parseBucket reads what comes after s3:// in the URL s.
func parseBucket(s, rest string) (l Location, err error) {
	host, path, _ := strings.Cut(rest, "/")
	bucket, region, named := strings.Cut(host, "@")
	path = strings.TrimSuffix(path, "/")
	switch {
	case strings.Contains(host, ":"): // perhaps a secret: not repeated
		return l, fmt.Errorf("%w: s3://BUCKET@REGION/PREFIX has no place for credentials, which come from the environment, nor for a port, "+
			"which belongs to the endpoint", ErrURL)
	case !s3.ValidBucket(bucket):
		return l, fmt.Errorf("%w: %q: %q is no bucket's name: 3 to 63 lower-case letters, digits, '-' and '.'", ErrURL, s, bucket)
	case named && !regionName.MatchString(region):
		return l, fmt.Errorf("%w: %q: %q is no region; s3://BUCKET@REGION/PREFIX is expected", ErrURL, s, region)
	case strings.Contains(path, "?") || !s3.ValidPrefix(path):
		return l, fmt.Errorf("%w: %q: a prefix has no '?', no control characters, no empty segments, and neither '.' nor '..' as one", ErrURL, s)
	}
	return Location{Bucket: bucket, Region: region, Path: path}, nil
}

// String is the URL of what l names.
func (l Location) String() string {
	s := "vfs://" + l.Path
	if l.Bucket != "" {
		s = "s3://" + l.Bucket
		if l.Region != "" {
			s += "@" + l.Region
		}
		if l.Path != "" {
			s += "/" + l.Path
		}
	}
	if l.Backup != "" {
		s += "?backup=" + url.QueryEscape(l.Backup) + "&volume=" + url.QueryEscape(l.Volume)
	}
	return s
}

// IsZero reports whether l names nothing.
func (l Location) IsZero() bool { return l == Location{} }

// Repository names the repository that l is, or is in.
func (l Location) Repository() Location {
	l.Volume, l.Backup = "", ""
	return l
}

// SameRepository reports whether both are, or are in, one repository. Buckets have one name in all regions.
func (l Location) SameRepository(m Location) bool { return l.Bucket == m.Bucket && l.Path == m.Path }

// Of names a backup in l's repository.
func (l Location) Of(b *chunkstore.Backup) Location {
	l.Volume, l.Backup = b.Volume, b.ID
	return l
}
