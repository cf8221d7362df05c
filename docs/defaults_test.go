package docs_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend/mem"
)

// The defaults and fixed values that format.md gives for the configuration are those of a new repository.
func TestConfigDefaults(t *testing.T) {
	c, err := chunkstore.Init(t.Context(), mem.New(), chunkstore.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("format.md")
	if err != nil {
		t.Fatal(err)
	}
	for field, ends := range map[string]string{
		"format":          fmt.Sprintf("`%q`", c.Format),
		"version":         fmt.Sprint(c.Version),
		"hash":            fmt.Sprintf("`%q`", c.Hash),
		"span_bytes":      fmt.Sprintf("default %d MiB", c.SpanBytes>>20),
		"cut_bits":        fmt.Sprintf("default %d", c.CutBits),
		"max_chunk_bytes": fmt.Sprintf("default %d KiB", c.MaxChunk>>10),
		"pack_bytes":      fmt.Sprintf("default %d MiB", c.PackBytes>>20),
	} {
		row := tableRow(string(page), field)
		if !strings.HasSuffix(row, ends+" |") {
			t.Errorf("format.md says %q, want it to end with %q", row, ends)
		}
	}
}

// tableRow returns the first row of a table whose first cell is the field.
func tableRow(page, field string) string {
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, "| `"+field+"` |") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
