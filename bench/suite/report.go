package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// report writes the Markdown and the plot, and says where.
func (s *suite) report(ctx context.Context) error {
	if err := os.MkdirAll(s.o.out, 0o755); err != nil {
		return err
	}
	name := filepath.Join(s.o.out, time.Now().UTC().Format("20060102-1504"))
	var b strings.Builder
	s.writeHead(ctx, &b)
	fmt.Fprintf(&b, "![plot](%s.svg)\n\n", filepath.Base(name))
	writeTargets(&b, s.targets())
	for _, r := range s.res.rows {
		if len(r.tools) > 0 {
			writeRow(&b, r)
		}
	}
	if s.meta != "" {
		fmt.Fprintf(&b, "## Difference of two thin snapshots\n\n%s\n\n", s.meta)
	}
	s.writeCommands(&b)
	if err := os.WriteFile(name+".md", []byte(b.String()), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(name+".svg", []byte(plot(panels(&s.res))), 0o644); err != nil {
		return err
	}
	fmt.Println(name + ".md")
	return nil
}

// writeHead says on what, with what and of what the figures are.
func (s *suite) writeHead(ctx context.Context, b *strings.Builder) {
	fmt.Fprintf(b, "# Benchmark of %s\n\n", time.Now().UTC().Format("2006-01-02 15:04 MST"))
	fmt.Fprintf(b, "- Machine: %s\n", machine())
	fmt.Fprintf(b, "- Data and repositories: %s\n", fileSystem(s.dir))
	if s.w != nil {
		w := s.w.stats
		fmt.Fprintf(b, "- Workload: %s, seed %d, %d MiB; %.0f MiB of data in 4 KiB blocks that are not zeros, %.0f MiB of them different; changed %.1f MiB at 4 KiB, %.1f MiB at 64 KiB; SHA-256 of the images %s, %s\n",
			s.w.kind, s.o.seed, s.w.size>>20, toMiB(w.data), toMiB(w.unique), toMiB(w.changed4K), toMiB(w.changed64), w.sum1, w.sum2)
	}
	fmt.Fprintf(b, "- Rounds: %d, each row by all tools before the next row\n", s.o.rounds)
	for _, t := range s.tools {
		v, err := t.version(context.WithoutCancel(ctx)) // also in the report of an interrupted run
		if err != nil {
			v = err.Error()
		}
		fmt.Fprintf(b, "- %s: %s\n", t.name(), v)
	}
	for _, n := range s.notes {
		fmt.Fprintf(b, "- Note: %s\n", n)
	}
	b.WriteString("\nEach cell is the best of the rounds and, behind the slash, their median. CPU is user and system time of the whole process tree. " +
		"Read is what read calls returned, from source and repository together; reads through mappings are not in it. Peak is the resident memory of the largest process. " +
		"Others' CPU is what the rest of the machine used meanwhile: compare wall times only where it is small.\n\n")
}

func writeTargets(b *strings.Builder, targets []target) {
	b.WriteString("## Targets\n\n| target | want | have | | measured |\n|---|---|---|---|---|\n")
	for _, t := range targets {
		fmt.Fprintf(b, "| %s | %s %g | %s | %s | %s |\n", t.what, t.sign(), t.want, ratioNumber(t.have), t.verdict(), t.with)
	}
	b.WriteString("\nLonghorn's backupstore, for which the target of a thin base was meant, is not measured here; the best peer that scans stands in its place.\n\n")
}

// writeRow writes the table of one row.
func writeRow(b *strings.Builder, r *row) {
	fmt.Fprintf(b, "## %s\n\n", r.title)
	columns := r.metrics
	if _, ok := r.samples[r.tools[0]][0][mOthers]; ok {
		columns = append(columns[:len(columns):len(columns)], mOthers)
	}
	b.WriteString("| |")
	for _, m := range columns {
		fmt.Fprintf(b, " %s |", m)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, t := range r.tools {
		fmt.Fprintf(b, "| %s |", t)
		for _, m := range columns {
			best, median := number(r.best(t, m)), number(r.median(t, m))
			switch {
			case best == "":
				b.WriteString(" |")
			case best == median:
				fmt.Fprintf(b, " %s |", best)
			default:
				fmt.Fprintf(b, " %s / %s |", best, median)
			}
		}
		b.WriteString("\n")
	}
	if r.note != "" {
		fmt.Fprintf(b, "\n%s\n", r.note)
	}
	b.WriteString("\n")
}

// number is short and keeps three digits; empty for NaN.
func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return ""
	case a >= 100 || v == math.Trunc(v):
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

// ratioNumber shows enough digits to tell a limit from what just misses it.
func ratioNumber(v float64) string {
	if math.Abs(v) < 10 {
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
	return number(v)
}

// writeCommands lists what was run.
func (s *suite) writeCommands(b *strings.Builder) {
	b.WriteString("## Commands\n\n")
	for _, r := range s.res.rows {
		if len(r.commands) == 0 {
			continue
		}
		fmt.Fprintf(b, "%s:\n\n```\n", r.title)
		for _, t := range r.tools {
			if c, ok := r.commands[t]; ok {
				fmt.Fprintln(b, c)
			}
		}
		b.WriteString("```\n\n")
	}
}

// readable is a command with the folder of the run, and the folders of programs, left out.
func (s *suite) readable(c command) string {
	argv := append([]string{filepath.Base(c.argv[0])}, c.argv[1:]...)
	return strings.ReplaceAll(strings.Join(argv, " "), s.dir, "$DIR")
}
