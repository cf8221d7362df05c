package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend/meter"
)

// transfer is what a command moved, in JSON.
type transfer struct {
	Requests     requests `json:"requests"`
	Uploaded     int64    `json:"uploaded"`    // bytes, to repositories
	Downloaded   int64    `json:"downloaded"`  // bytes, from repositories
	SourceRead   int64    `json:"source_read"` // bytes, of a backup's source
	Seconds      float64  `json:"seconds"`
	UploadRate   int64    `json:"upload_rate"` // bytes per second, on average
	DownloadRate int64    `json:"download_rate"`
	ReadRate     int64    `json:"source_read_rate"`
}

// requests counts calls of the backend.
type requests struct {
	Put         int64 `json:"put"`
	PutIfAbsent int64 `json:"put_if_absent"`
	Read        int64 `json:"read"`
	List        int64 `json:"list"`
	Stat        int64 `json:"stat"`
	Delete      int64 `json:"delete"`
}

// transferred sums up the command so far. sourceRead is the bytes read of a backup's source.
func (a *app) transferred(sourceRead int64) transfer {
	t := transfer{SourceRead: sourceRead, Seconds: time.Since(a.begun).Seconds()}
	for _, m := range a.traffic.meters {
		t.Requests.Put += m.Calls(meter.Put)
		t.Requests.PutIfAbsent += m.Calls(meter.PutIfAbsent)
		t.Requests.Read += m.Calls(meter.ReadAt)
		t.Requests.List += m.Calls(meter.List)
		t.Requests.Stat += m.Calls(meter.Stat)
		t.Requests.Delete += m.Calls(meter.Delete)
		t.Uploaded += m.Bytes(meter.Put) + m.Bytes(meter.PutIfAbsent)
		t.Downloaded += m.Bytes(meter.ReadAt)
	}
	rate := func(n int64) int64 { return int64(float64(n) / max(t.Seconds, 1e-9)) }
	t.UploadRate, t.DownloadRate, t.ReadRate = rate(t.Uploaded), rate(t.Downloaded), rate(t.SourceRead)
	return t
}

// String is the line that a command ends with on stderr.
func (t transfer) String() string {
	moved := fmt.Sprintf("up %s (%s/s), down %s (%s/s)", size(t.Uploaded), size(t.UploadRate), size(t.Downloaded), size(t.DownloadRate))
	if t.SourceRead > 0 {
		moved += fmt.Sprintf(", source %s (%s/s)", size(t.SourceRead), size(t.ReadRate))
	}
	var kinds []string
	for _, k := range []struct {
		n    int64
		what string
	}{
		{t.Requests.Put, "put"}, {t.Requests.PutIfAbsent, "put if absent"}, {t.Requests.Read, "read"}, {t.Requests.List, "list"},
		{t.Requests.Stat, "stat"}, {t.Requests.Delete, "delete"},
	} {
		if k.n > 0 {
			kinds = append(kinds, fmt.Sprintf("%d %s", k.n, k.what))
		}
	}
	return fmt.Sprintf("transfer: %s in %.1f s; requests: %s", moved, t.Seconds, strings.Join(kinds, ", "))
}
