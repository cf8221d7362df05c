package main

import (
	"errors"
	"sync"

	"github.com/shalebackup/shale/chunkstore"
)

// damageNotes returns what tells the user, once for each object, that it is damaged and another copy was read instead.
func (a *app) damageNotes() func(error) {
	var mu sync.Mutex // guards told, and keeps notes apart
	told := map[string]bool{}
	return func(err error) {
		var c *chunkstore.CorruptError
		if !errors.As(err, &c) {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if !told[c.Object] {
			told[c.Object] = true
			a.note("damaged, another copy was read: %v; 'shale repo check --stored' says more", err)
		}
	}
}
