package chunkstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// lockObject is the JSON in prune/lock. The lock saves two prunes from doing the same work; nothing is lost when two run at once.
type lockObject struct {
	Host  string `json:"host"`
	PID   int    `json:"pid"`
	Token string `json:"token"` // random: whose the lock is
}

const (
	lockRenew = 5 * time.Minute
	// lockStale: a holder that has not renewed its lock for so long, by the store's clock, is dead.
	lockStale = time.Hour
)

// pruneLock is a lock that is held. A goroutine renews it.
type pruneLock struct {
	r     *Repository
	data  []byte
	taken time.Time // by the store's clock
	stop  context.CancelFunc
	done  chan struct{}
}

// LockedError says who prunes.
type LockedError struct {
	Host  string
	PID   int
	Since time.Time // of the last sign of life, by the store's clock
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("%v: on host %s, process %d, last heard of at %s; it is taken for dead an hour after that",
		ErrLocked, e.Host, e.PID, e.Since.UTC().Format(time.RFC3339))
}
func (e *LockedError) Unwrap() error { return ErrLocked }

func (r *Repository) lockPrune(ctx context.Context, force bool) (*pruneLock, error) {
	var token [16]byte
	if _, err := rand.Read(token[:]); err != nil {
		return nil, err
	}
	host, _ := os.Hostname() // for people
	data, err := json.Marshal(lockObject{Host: host, PID: os.Getpid(), Token: hex.EncodeToString(token[:])})
	if err != nil {
		return nil, err
	}
	_, data, err = r.buildObject(kindLock, data)
	if err != nil {
		return nil, err
	}
	err = r.be.PutIfAbsent(ctx, objectLock, data)
	if errors.Is(err, backend.ErrExist) {
		if err := r.breakLock(ctx, force); err != nil {
			return nil, err
		}
		err = r.be.PutIfAbsent(ctx, objectLock, data)
	}
	if err != nil {
		return nil, fmt.Errorf("take the lock of prunes: %w", err)
	}
	o, err := r.be.Stat(ctx, objectLock)
	if err != nil {
		return nil, fmt.Errorf("take the lock of prunes: %w", err)
	}
	l := &pruneLock{r: r, data: data, taken: o.ModTime, done: make(chan struct{})}
	renewing, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	go l.renew(renewing)
	return l, nil
}

// breakLock removes the lock if its holder is dead or force is set, else says whose it is.
func (r *Repository) breakLock(ctx context.Context, force bool) error {
	o, err := r.be.Stat(ctx, objectLock)
	if errors.Is(err, backend.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the lock of prunes: %w", err)
	}
	now, err := r.storeTime(ctx)
	if err != nil {
		return err
	}
	if !force && now.Sub(o.ModTime) < lockStale {
		held := &LockedError{Host: "unknown", Since: o.ModTime}
		if data, err := r.readObject(ctx, objectLock, kindLock); err == nil {
			var l lockObject
			if json.Unmarshal(data, &l) == nil {
				held.Host, held.PID = l.Host, l.PID
			}
		}
		return held
	}
	if err := r.be.Delete(ctx, objectLock); err != nil {
		return fmt.Errorf("remove the lock of a prune that died: %w", err)
	}
	return nil
}

// storeTime asks the store what time it is.
func (r *Repository) storeTime(ctx context.Context) (time.Time, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return time.Time{}, err
	}
	name := prefixProbe + hex.EncodeToString(b[:])
	err := r.be.Put(ctx, name, nil)
	var o backend.Object
	if err == nil {
		o, err = r.be.Stat(ctx, name)
		err = errors.Join(err, r.be.Delete(ctx, name))
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("ask the store for its time: %w", err)
	}
	return o.ModTime, nil
}

// removeProbes removes what storeTime left behind where it was killed.
func (r *Repository) removeProbes(ctx context.Context, now time.Time) error {
	var old []string
	err := r.be.List(ctx, prefixProbe, func(o backend.Object) error {
		if now.Sub(o.ModTime) > lockStale {
			old = append(old, o.Name)
		}
		return nil
	})
	for _, name := range old {
		if err == nil {
			err = r.be.Delete(ctx, name)
		}
	}
	if err != nil {
		return fmt.Errorf("remove what tells the store's time: %w", err)
	}
	return nil
}

// renew shows that we live.
func (l *pruneLock) renew(ctx context.Context) {
	defer close(l.done)
	t := time.NewTicker(lockRenew)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			_ = l.r.be.Put(ctx, objectLock, l.data) // a lock that is lost costs double work
		case <-ctx.Done():
			return
		}
	}
}

// release gives the lock back.
func (l *pruneLock) release() error {
	l.stop()
	<-l.done
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	held, err := l.r.readAll(ctx, objectLock)
	if errors.Is(err, backend.ErrNotExist) || (err == nil && !bytes.Equal(held, l.data)) {
		return nil // somebody took us for dead
	}
	if err == nil {
		err = l.r.be.Delete(ctx, objectLock)
	}
	if err != nil {
		return fmt.Errorf("give back the lock of prunes: %w", err)
	}
	return nil
}
