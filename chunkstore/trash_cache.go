package chunkstore

import (
	"context"
	"os"
	"path/filepath"
	"strings"
)

// Each process that looks at the trash needs all lists, of which there may be one for each day of a month: copies of their objects are kept
// in the cache folder. Their names say what they are.

// trashCache is the folder of the copies; empty: there is none.
func (r *Repository) trashCache() string {
	if r.opts.CacheDir == "" {
		return ""
	}
	return filepath.Join(r.opts.CacheDir, r.cfg.ID, "trash")
}

// trashObject returns the content of a trash list's object, from its copy if there is a sound one.
func (r *Repository) trashObject(ctx context.Context, name string) ([]byte, error) {
	dir := r.trashCache()
	if dir == "" {
		return r.readObject(ctx, name, kindTrash)
	}
	path := filepath.Join(dir, strings.TrimPrefix(name, prefixTrash))
	if b, err := os.ReadFile(path); err == nil && isHex(filepath.Base(path), len(packID{})) {
		if data, err := r.decodeObject(ctx, name, kindTrash, b); err == nil {
			return data, nil
		}
	}
	b, err := r.readAll(ctx, name)
	if err != nil {
		return nil, err
	}
	data, err := r.decodeObject(ctx, name, kindTrash, b)
	if err == nil && os.MkdirAll(dir, 0o700) == nil { // what cannot be kept is read again
		_ = writeFileSync(path, b)
	}
	return data, err
}

// forgetTrashCopies removes the copies of lists that are gone.
func (r *Repository) forgetTrashCopies(listed map[string]*trashList) {
	dir := r.trashCache()
	entries, err := os.ReadDir(dir)
	if dir == "" || err != nil {
		return
	}
	for _, e := range entries {
		if listed[prefixTrash+e.Name()] == nil && isHex(e.Name(), len(packID{})) {
			_ = os.Remove(filepath.Join(dir, e.Name())) // next time, then
		}
	}
}
