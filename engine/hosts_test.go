package engine_test

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
	"github.com/shalebackup/shale/chunkstore/backend/file"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
	"github.com/shalebackup/shale/engine"
)

// Hosts that back up at once, the same volume or their own, into one repository do not disturb each other.
func TestManyHosts(t *testing.T) {
	backends := map[string]func(t *testing.T) backend.Backend{
		"mem": func(*testing.T) backend.Backend { return mem.New() },
		"file": func(t *testing.T) backend.Backend {
			be, err := file.Create(filepath.Join(t.TempDir(), "repository"))
			if err != nil {
				t.Fatal(err)
			}
			return be
		},
	}
	for name, make := range backends {
		t.Run(name, func(t *testing.T) {
			be := make(t)
			checked := openRepo(t, be) // down to the data, in the end
			const hosts, rounds = 3, 2
			images := map[string][]byte{} // by backup ID
			var mu sync.Mutex             // guards images
			var all sync.WaitGroup
			for h := range hosts {
				all.Go(func() {
					r, err := chunkstore.Open(t.Context(), be, chunkstore.Options{CacheDir: filepath.Join(t.TempDir(), "cache")})
					if err != nil {
						t.Error(err)
						return
					}
					defer r.Close()
					for n := range rounds {
						for _, volume := range []string{"shared", fmt.Sprintf("own%d", h)} {
							image := append(randomImage(uint64(n), mib), randomImage(uint64(100*h+n), mib/2)...) // 1 MiB that all have
							res, err := engine.Backup(t.Context(), r, plainVolume(image), engine.BackupOptions{Volume: volume})
							if err != nil {
								t.Errorf("host %d: %v", h, err)
								return
							}
							mu.Lock()
							images[res.Backup.ID] = image
							mu.Unlock()
						}
					}
				})
			}
			all.Wait()
			list := mustHaveBackups(t, checked, hosts*rounds*2)
			shared := 0
			for _, b := range list {
				if b.Volume == "shared" {
					shared++
				}
				target := filepath.Join(t.TempDir(), "target")
				restored(t, checked, b, images[b.ID], target, engine.RestoreOptions{})
			}
			if shared != hosts*rounds {
				t.Errorf("%d backups of the shared volume, want %d", shared, hosts*rounds)
			}
		})
	}
}
