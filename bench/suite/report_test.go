package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

// someResults have two tools and what a report reads of them.
func someResults() *results {
	r := &results{}
	for id, runs := range map[string]map[string][]float64{
		"first":      {"shale": {2, 1, 4}, "borg-zstd3": {2, 3}, "restic": {5}, "restic-new": {4}},
		"thin-again": {"shale": {0.1}},
		"again":      {"shale": {1}, "restic": {2}, "desync": {0.5}},
	} {
		x := r.row(id)
		x.metrics = []metric{mCPU, mStored}
		for _, tool := range []string{"shale", "borg-zstd3", "restic", "restic-new", "desync"} {
			for _, v := range runs[tool] {
				x.add(tool, sample{mCPU: v, mStored: 100 * v, mPeak: 10 * v})
			}
		}
	}
	return r
}

func TestBestAndMedian(t *testing.T) {
	r := someResults()
	x := r.row("first")
	if best, median := x.best("shale", mCPU), x.median("shale", mCPU); best != 1 || median != 2 {
		t.Errorf("best %v, median %v", best, median)
	}
	if median := x.median("borg-zstd3", mCPU); median != 2.5 {
		t.Errorf("median of two %v", median)
	}
	if v := x.best("kopia", mCPU); !math.IsNaN(v) {
		t.Errorf("best of a tool that did not run: %v", v)
	}
	x.add("shale", sample{mSeq: 100})
	x.add("shale", sample{mSeq: 300})
	if v := x.best("shale", mSeq); v != 300 {
		t.Errorf("best speed %v", v)
	}
	if name, v := r.bestPeer("first", mCPU, anyPeer); name != "borg-zstd3" || v != 2 {
		t.Errorf("best peer %s %v", name, v)
	}
	if name, v := r.bestPeer("first", mCPU, begins("restic")); name != "restic-new" || v != 4 {
		t.Errorf("best restic %s %v", name, v)
	}
}

func TestTargets(t *testing.T) {
	s := &suite{o: options{backups: 1000}, res: *someResults(), ratio: 80}
	s.res.row("many").add("shale", sample{mFirst: 50.1})
	verdicts := map[string]string{}
	for _, x := range s.targets() {
		verdicts[x.what] = x.verdict()
	}
	for what, want := range map[string]string{
		"first backup: CPU, to borg zstd,3":                         "PASS", // 0.5 of 0.65
		"first backup: CPU, to restic":                              "PASS", // 0.25 of 0.3
		"first backup: CPU, to kopia":                               "not measured",
		"change, nothing known: CPU, to the best peer":              "FAIL", // 2 of 0.6
		"change, thin base: CPU, to the best peer's scan":           "FAIL", // 0.2 of 0.15
		"change: stored, to desync":                                 "FAIL",
		"first byte with 1000 backups, median ms":                   "FAIL",
		"thin difference, 16 M mappings: thin_delta's CPU, to ours": "PASS", // exactly
		"peak memory in every row, MiB":                             "PASS",
		"mount, sequential: to the best peer":                       "not measured",
	} {
		if verdicts[what] != want {
			t.Errorf("%s: %q, want %q", what, verdicts[what], want)
		}
	}
}

func TestCompareCounts(t *testing.T) {
	base := []count{{Row: "a", Name: "x", Value: 100}, {Row: "a", Name: "y", Value: 100}}
	for _, c := range []struct {
		name   string
		counts []count
		worse  int
	}{
		{"equal", []count{{"a", "x", 100, exact}, {"a", "y", 100, exact}}, 0},
		{"better", []count{{"a", "x", 1, exact}, {"a", "y", 100, exact}}, 0},
		{"one more", []count{{"a", "x", 101, exact}, {"a", "y", 100, exact}}, 1},
		{"within its slack", []count{{"a", "x", 112, within(0.1, 2)}, {"a", "y", 100, exact}}, 0},
		{"beyond its slack", []count{{"a", "x", 113, within(0.1, 2)}, {"a", "y", 100, exact}}, 1},
		{"new", []count{{"a", "x", 100, exact}, {"a", "y", 100, exact}, {"b", "x", 0, exact}}, 1},
		{"gone", []count{{"a", "x", 100, exact}}, 1},
	} {
		var out strings.Builder
		if got := compareCounts(&out, c.counts, base); got != c.worse {
			t.Errorf("%s: %d worse, want %d:\n%s", c.name, got, c.worse, out.String())
		}
		if strings.Count(out.String(), "WORSE") != c.worse {
			t.Errorf("%s: not said: %s", c.name, out.String())
		}
	}
	if counts, err := readBaseline(); err != nil || len(counts) < 50 {
		t.Errorf("the baseline has %d counts: %v", len(counts), err)
	}
}

// TestPlot: the plot is well-formed, and ours stand out in it.
func TestPlot(t *testing.T) {
	s := plot(panels(someResults()))
	dec := xml.NewDecoder(strings.NewReader(s))
	texts := 0
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in %s", err, s)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "text" {
			texts++
		}
	}
	if want := 4 + 2*(4+4+4+3); texts != want { // titles; names and values of four panels, one with an added bar
		t.Errorf("%d texts, want %d", texts, want)
	}
	if strings.Count(s, "#2f6f8f") != 5 {
		t.Errorf("ours are not coloured: %s", s)
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	writeRow(&b, someResults().row("first"))
	for _, want := range []string{"## first\n", "| | CPU s | stored MiB |\n|---|---|---|\n", "| shale | 1 / 2 | 100 / 200 |\n", "| restic | 5 | 500 |\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestMetadataRatio(t *testing.T) {
	const table = "words\n\n| mappings | metadata MiB | CPU ratio |\n|---|---|---|\n| 1048576 | 22 | 11x |\n| 16777216 | 274 | 118x |\n"
	if v, err := metadataRatio(table); err != nil || v != 118 {
		t.Errorf("%v, %v", v, err)
	}
	if _, err := metadataRatio("| mappings | CPU ratio |\n"); err == nil {
		t.Error("a table without the row: no error")
	}
}

func TestParse(t *testing.T) {
	for _, bad := range [][]string{{"-size", "10"}, {"-size", "1M"}, {"-size", "xG"}, {"-parts", "image,nothing"}, {"-rounds", "0"}, {"-workload", "ntfs"}, {"more"}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	o, err := parse([]string{"-size", "128M", "-parts", "known", "-tools", "shale,borg"})
	if err != nil || o.size != 128<<20 || !o.parts["known"] || o.parts["image"] || len(o.tools) != 2 {
		t.Errorf("%+v, %v", o, err)
	}
	tools, _ := peerTools("/bin/shale", "commit", "")
	for _, x := range chosen(tools, []string{"shale"}) {
		if !isShale(x.name()) {
			t.Errorf("%s is chosen", x.name())
		}
	}
}
