package pool

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// claim is a file that says what this process has made and must undo. It is locked as long as the process lives, however
// that ends, in whatever container: so one that can be locked belongs to nobody alive.
type claim struct {
	f    *os.File
	left []byte // what a dead owner had written; empty when there was none
}

// Kinds of claims: the first part of their file names.
const (
	claimFreeze   = "freeze"
	claimReserve  = "reserve"
	claimActive   = "active"
	claimSnapshot = "snapshot"
)

// claimPoll is how often a claim that another process holds is tried again.
const claimPoll = 100 * time.Millisecond

var errClaimed = errors.New("in use by another shale")

// takeClaim locks the claim file of one kind and key. It waits for a living owner when wait is set, as long as ctx lets it;
// else it gives errClaimed.
func (h *Host) takeClaim(ctx context.Context, kind, key string, wait bool) (*claim, error) {
	dir, err := h.stateDir()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, kind+"-"+url.PathEscape(key))
	for {
		c, err := tryClaim(path)
		if err == nil || !errors.Is(err, errClaimed) || !wait {
			return c, err
		}
		if serr := sleep(ctx, claimPoll); serr != nil {
			return nil, fmt.Errorf("%w: %w", err, serr)
		}
	}
}

func tryClaim(path string) (*claim, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	}
	c, err := lockClaim(f)
	if err != nil {
		_ = f.Close() // nothing was written through it
		return nil, err
	}
	return c, nil
}

func lockClaim(f *os.File) (*claim, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errClaimed
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	// Owners remove the file before they unlock it: what was locked may be the removed one.
	mine, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	}
	if now, err := os.Stat(f.Name()); err != nil || !os.SameFile(mine, now) {
		return nil, errClaimed
	}
	left, err := io.ReadAll(io.LimitReader(f, 1<<16))
	if err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	}
	return &claim{f: f, left: left}, nil
}

// record is the content of every claim: what was made, or is about to be.
type record struct {
	Pool     Pool      `json:"pool"`
	Device   string    `json:"device,omitempty"`    // device-mapper's name: frozen, or activated
	DeviceID uint32    `json:"device_id,omitempty"` // of a snapshot
	LV       string    `json:"lv,omitempty"`        // of a snapshot made by LVM
	Made     bool      `json:"made,omitempty"`      // the snapshot exists; before, it only may
	Root     uint64    `json:"root,omitempty"`      // held root of a metadata snapshot; 0: may be reserved
	PID      int       `json:"pid"`                 // for people who look
	Since    time.Time `json:"since"`
}

// write replaces the claim's content. It is on disk when write returns: a metadata snapshot outlives a reboot, so must its claim.
func (c *claim) write(r record) error {
	r.PID, r.Since = os.Getpid(), time.Now().UTC().Truncate(time.Second)
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("claim: %w", err)
	}
	if _, err := c.f.WriteAt(b, 0); err != nil { // over the old content: the file is at no moment empty
		return fmt.Errorf("claim: %w", err)
	}
	if err := c.f.Truncate(int64(len(b))); err != nil {
		return fmt.Errorf("claim: %w", err)
	}
	if err := c.f.Sync(); err != nil {
		return fmt.Errorf("claim: %w", err)
	}
	return syncDir(filepath.Dir(c.f.Name()))
}

// leftRecord reads what a dead owner left; ok is false when it died before it wrote, and so before it made anything.
func (c *claim) leftRecord() (r record, ok bool, err error) {
	if len(c.left) == 0 {
		return record{}, false, nil
	}
	if err := json.NewDecoder(bytes.NewReader(c.left)).Decode(&r); err != nil {
		return record{}, false, fmt.Errorf("claim %s: %w", c.f.Name(), err)
	}
	return r, true, nil
}

// clear says that nothing is left to undo, and goes on holding the claim.
func (c *claim) clear() error {
	c.left = nil
	if err := c.f.Truncate(0); err != nil {
		return fmt.Errorf("claim: %w", err)
	}
	return nil
}

// drop says that nothing is left to undo.
func (c *claim) drop() error {
	if c.f == nil {
		return nil
	}
	err := os.Remove(c.f.Name())
	return errors.Join(err, c.abandon())
}

// abandon leaves the claim to Recover. After drop or abandon both do nothing.
func (c *claim) abandon() error {
	if c.f == nil {
		return nil
	}
	err := c.f.Close()
	c.f = nil
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("claim: %w", err)
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}
