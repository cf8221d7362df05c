package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// lockability is what CanRetain has found out.
type lockability struct{ err error }

// CanRetain implements backend.ObjectLocker.
func (b *Backend) CanRetain(ctx context.Context) error {
	if known := b.lockable.Load(); known != nil {
		return known.err
	}
	var enabled string
	err := b.try(ctx, func() (err error) {
		enabled, _, _, _, err = b.core.GetObjectLockConfig(ctx, b.bucket)
		return err
	})
	switch {
	case err == nil && enabled != "Enabled", status(err) == http.StatusNotImplemented, errors.Is(err, backend.ErrNoLock):
		known := &lockability{fmt.Errorf("bucket %s: %w", b.bucket, backend.ErrNoLock)}
		b.lockable.Store(known)
		return known.err
	case errors.Is(err, ErrDenied): // to look; a lock may all the same be allowed
		return nil
	case err == nil:
		b.lockable.Store(&lockability{})
	default:
		return fmt.Errorf("bucket %s: look for its object lock: %w", b.bucket, err)
	}
	return nil
}

// Retain implements backend.ObjectLocker, for the object's current version.
func (b *Backend) Retain(ctx context.Context, name string, mode backend.LockMode, until time.Time) (longer bool, err error) {
	if err := backend.Begin(ctx, "lock", name); err != nil {
		return false, err
	}
	now, err := b.head(ctx, name)
	if err != nil {
		return false, failure("lock", name, err)
	}
	held, holds := retention(now)
	// S3 keeps whole seconds, so that what was set is never later than what is asked for again.
	until = until.Truncate(time.Second)
	if !holds.Before(until) {
		return false, nil
	}
	want := minio.Governance
	switch mode {
	case backend.Compliance:
		want = minio.Compliance
	case backend.Governance:
		if held == minio.Compliance && holds.After(time.Now()) {
			want = held // which nobody can soften
		}
	default:
		return false, fmt.Errorf("lock %s: mode is %q, not %s or %s", name, mode, backend.Governance, backend.Compliance)
	}
	err = b.try(ctx, func() error {
		return b.core.PutObjectRetention(ctx, b.bucket, b.key(name), minio.PutObjectRetentionOptions{
			Mode: &want, RetainUntilDate: &until, VersionID: now.VersionID,
			// To make governance compliance is to change the mode, which takes the right to end the lock.
			GovernanceBypass: want == minio.Compliance && held == minio.Governance,
		})
	})
	return err == nil, failure("lock", name, err)
}

// Retained implements backend.ObjectLocker.
func (b *Backend) Retained(ctx context.Context, name string) (time.Time, error) {
	if err := backend.Begin(ctx, "look for a lock of", name); err != nil {
		return time.Time{}, err
	}
	info, err := b.head(ctx, name)
	if err != nil {
		return time.Time{}, failure("look for a lock of", name, err)
	}
	if _, until := retention(info); until.After(time.Now()) {
		return until, nil
	}
	return time.Time{}, nil
}

// retention reads what the description of an object says about its lock.
func retention(info minio.ObjectInfo) (minio.RetentionMode, time.Time) {
	until, err := time.Parse(time.RFC3339, info.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date"))
	if err != nil {
		return "", time.Time{}
	}
	return minio.RetentionMode(info.Metadata.Get("X-Amz-Object-Lock-Mode")), until
}

// locked makes the refusal to delete or replace an object a RetainedError, if a lock is the reason. Servers have no word of their own
// for that, but "access denied" or "invalid request".
func (b *Backend) locked(ctx context.Context, name string, err error) error {
	if s := status(err); s < 400 || s >= 500 || errors.Is(err, backend.ErrExist) {
		return err
	}
	info, lookErr := b.headOnce(ctx, name)
	if lookErr != nil {
		return err
	}
	_, until := retention(info)
	hold := info.Metadata.Get("X-Amz-Object-Lock-Legal-Hold") == "ON"
	if !until.After(time.Now()) && !hold && !errors.Is(err, backend.ErrRetained) {
		return err
	}
	return &backend.RetainedError{Name: name, Until: until, Err: err}
}
