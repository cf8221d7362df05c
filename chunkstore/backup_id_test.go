package chunkstore

import (
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// TestBackupsOfOneMillisecond: what one process records in one millisecond is listed in the order of recording.
func TestBackupsOfOneMillisecond(t *testing.T) {
	r := openTest(t, mem.New(), Options{})
	now := time.Now()
	var ids []string
	for range 40 {
		w := newTestWriter(t, r)
		b := &Backup{Volume: "v", Time: now, Blob: putImage(t, r, w, nil, nil)}
		if err := w.PutBackup(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if n := len(ids); n > 0 && b.ID <= ids[n-1] || !BackupTime(b.ID).Equal(now.Truncate(time.Millisecond)) {
			t.Fatalf("%s after %v", b.ID, ids)
		}
		ids = append(ids, b.ID)
	}
	r.lastID = backupPrefix + ids[0][len(backupPrefix):][:11] + "fffff" // no more of this millisecond: any will do
	if id, err := r.newBackupID(now); err != nil || !BackupTime(id).Equal(BackupTime(ids[0])) {
		t.Errorf("%s, %v", id, err)
	}
	if id, err := r.newBackupID(now.Add(time.Millisecond)); err != nil || id <= ids[len(ids)-1] {
		t.Errorf("%s, %v", id, err)
	}
}
