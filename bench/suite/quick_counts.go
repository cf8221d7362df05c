package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
)

// count is one number of one row. What is smaller is better.
type count struct {
	Row   string `json:"row"`
	Name  string `json:"name"`
	Value int64  `json:"value"`
	slack slack
}

// slack is by how much a count may rise without being a regression.
type slack struct {
	part float64 // of the baseline
	more int64
}

// exact is for counts that nothing but the code decides.
var exact = slack{}

// within is for counts that chance moves a little: names and times in records, pools emptied by the garbage collector.
func within(part float64, more int64) slack { return slack{part, more} }

func (s slack) limit(base int64) int64 { return base + int64(math.Ceil(float64(base)*s.part)) + s.more }

func (q *quick) add(row, name string, value int64, s slack) {
	q.counts = append(q.counts, count{row, name, value, s})
}

//go:embed testdata/quick.json
var baselineJSON []byte

func readBaseline() ([]count, error) {
	var base []count
	dec := json.NewDecoder(bytes.NewReader(baselineJSON))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&base); err != nil {
		return nil, fmt.Errorf("testdata/quick.json: %w", err)
	}
	return base, nil
}

func writeBaseline(path string, counts []count) error {
	var b bytes.Buffer
	b.WriteString("[\n")
	for i, c := range counts {
		line, err := json.Marshal(c)
		if err != nil {
			return err
		}
		if i > 0 {
			b.WriteString(",\n")
		}
		b.Write(line)
	}
	b.WriteString("\n]\n")
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// compareCounts prints the counts beside the baseline as a Markdown table and returns how many are worse. A count without a baseline,
// and a baseline without a count, are worse too: nothing may slip out of the comparison unseen.
func compareCounts(out io.Writer, counts, base []count) (worse int) {
	type key struct{ row, name string }
	left := map[key]int64{}
	for _, c := range base {
		left[key{c.Row, c.Name}] = c.Value
	}
	fmt.Fprintln(out, "| row | count | now | baseline | |\n|---|---|---|---|---|")
	for _, c := range counts {
		k := key{c.Row, c.Name}
		want, known := left[k]
		delete(left, k)
		mark := ""
		switch {
		case !known:
			mark = "WORSE: no baseline"
			worse++
		case c.Value > c.slack.limit(want):
			mark = fmt.Sprintf("WORSE: the limit is %d", c.slack.limit(want))
			worse++
		case c.Value < want-(c.slack.limit(want)-want):
			mark = "better"
		}
		fmt.Fprintf(out, "| %s | %s | %d | %d | %s |\n", c.Row, c.Name, c.Value, want, mark)
	}
	for _, c := range base {
		if _, missing := left[key{c.Row, c.Name}]; missing {
			fmt.Fprintf(out, "| %s | %s | | %d | WORSE: not counted any more |\n", c.Row, c.Name, c.Value)
			worse++
		}
	}
	return worse
}
