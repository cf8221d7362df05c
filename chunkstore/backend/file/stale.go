package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// RemoveStale implements backend.StaleRemover: it removes temporaries whose last write is longer than age ago, by the clock of
// this host, and what NFS clients that died have kept of deleted files. It reads every folder of the repository.
func (b *Backend) RemoveStale(ctx context.Context, age time.Duration) (removed int, bytes int64, err error) {
	s := sweep{b: b, before: time.Now().Add(-age)}
	err = s.folder(ctx, "")
	return s.removed, s.bytes, err
}

// sweep is one run of RemoveStale.
type sweep struct {
	b       *Backend
	before  time.Time
	removed int
	bytes   int64
}

func (s *sweep) folder(ctx context.Context, folder string) error {
	var below, temps []string
	err := retryStale(func() error {
		below, temps = nil, nil
		return readFolder(ctx, s.b.path(folder), func(e os.DirEntry) {
			switch {
			case e.IsDir():
				below = append(below, e.Name())
			case e.Type().IsRegular() && (strings.HasPrefix(e.Name(), tempPrefix) || isSilly(e.Name())):
				temps = append(temps, e.Name())
			}
		})
	})
	if folder != "" && isAbsent(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for stale temporaries: %w", err)
	}
	for _, name := range temps {
		if err := s.temporary(s.b.path(folder) + "/" + name); err != nil {
			return err
		}
	}
	for _, name := range below {
		if folder != "" {
			name = folder + "/" + name
		}
		if !backend.ValidName(name) {
			continue
		}
		if err := s.folder(ctx, name); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// sillyPrefix is what an NFS client names a file that is deleted while it is open there, with hex digits. The client removes it at
// the last close; when it dies before, nobody does.
const sillyPrefix = ".nfs"

func isSilly(name string) bool {
	digits, ok := strings.CutPrefix(name, sillyPrefix)
	return ok && len(digits) >= 8 && strings.Trim(digits, "0123456789abcdefABCDEF") == ""
}

// since is when a temporary was last written, or a silly one renamed, which its last write says nothing of.
func since(info os.FileInfo) time.Time {
	if isSilly(info.Name()) {
		return changeTime(info)
	}
	return info.ModTime()
}

// temporary removes one if it is stale. One that vanishes meanwhile was in use or another sweep's; one that is busy is open on this
// host.
func (s *sweep) temporary(path string) error {
	info, err := os.Lstat(path)
	if err == nil && since(info).Before(s.before) {
		if err = os.Remove(path); err == nil {
			s.removed++
			s.bytes += info.Size()
		}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("remove stale temporary: %w", err)
	}
	return nil
}
