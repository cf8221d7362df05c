package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// panel is one group of bars of the plot.
type panel struct {
	title string
	unit  metric
	bars  []bar
}

type bar struct {
	name  string
	value float64
}

// panels are what the plot shows of the results; rows that did not run are left out.
func panels(r *results) []panel {
	again := rowPanel(r, "Backup of the change: CPU s", string(actAgain), mCPU)
	for _, known := range []struct{ id, name string }{{"thin-again", "shale, thin pool"}, {"reflink-again", "shale, reflink"}} {
		if v := r.row(known.id).best("shale", mCPU); !math.IsNaN(v) {
			again.bars = append(again.bars, bar{known.name, v})
		}
	}
	all := []panel{
		rowPanel(r, "First backup: CPU s", string(actFirst), mCPU), again,
		rowPanel(r, "First backup: stored MiB", string(actFirst), mStored),
		rowPanel(r, "Backup of the change: stored MiB", string(actAgain), mStored),
		rowPanel(r, "Restore: CPU s", string(actRestore), mCPU), rowPanel(r, "Verify: CPU s", string(actVerify), mCPU),
		rowPanel(r, "Mount, sequential: MB/s (more is better)", "mount", mSeq),
		rowPanel(r, "Mount, random 4 KiB, one reader: reads/s (more is better)", "mount", mIOPS1),
	}
	all = slices.DeleteFunc(all, func(p panel) bool { return len(p.bars) == 0 })
	for _, p := range all {
		slices.SortStableFunc(p.bars, func(a, b bar) int {
			if (a.value < b.value) == p.unit.moreIsBetter() {
				return 1
			}
			return -1
		})
	}
	return all
}

func rowPanel(r *results, title, id string, m metric) panel {
	p := panel{title: title, unit: m}
	for _, t := range r.row(id).tools {
		if v := r.row(id).best(t, m); !math.IsNaN(v) {
			p.bars = append(p.bars, bar{t, v})
		}
	}
	return p
}

// Measures of the plot, in pixels.
const (
	panelWidth, nameWidth, valueWidth = 520, 130, 70
	barHeight, titleHeight, gap       = 18, 30, 16
)

// plot draws panels in two columns as an SVG. Our own bars are coloured, those of peers grey.
func plot(panels []panel) string {
	var b strings.Builder
	heights := make([]int, (len(panels)+1)/2)
	total := gap
	for i, p := range panels {
		heights[i/2] = max(heights[i/2], titleHeight+len(p.bars)*barHeight+gap)
	}
	for _, h := range heights {
		total += h
	}
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", 2*panelWidth+gap, total)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#ffffff"/>`+"\n")
	y := gap
	for i, p := range panels {
		drawPanel(&b, p, gap+i%2*panelWidth, y)
		if i%2 == 1 {
			y += heights[i/2]
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func drawPanel(b *strings.Builder, p panel, x, y int) {
	fmt.Fprintf(b, `<text x="%d" y="%d" font-weight="bold" fill="#222222">%s</text>`+"\n", x, y+14, html.EscapeString(p.title))
	most := 0.0
	for _, v := range p.bars {
		most = max(most, v.value)
	}
	room := float64(panelWidth - nameWidth - valueWidth - gap)
	for i, v := range p.bars {
		colour, at := "#b4b9c0", y+titleHeight+i*barHeight
		if isShale(v.name) {
			colour = "#2f6f8f"
		}
		width := 1.0
		if most > 0 {
			width = max(1, room*v.value/most)
		}
		fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end" fill="#222222">%s</text>`, x+nameWidth-6, at+11, html.EscapeString(v.name))
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, x+nameWidth, at, width, barHeight-4, colour)
		fmt.Fprintf(b, `<text x="%.1f" y="%d" fill="#222222">%s</text>`+"\n", float64(x+nameWidth)+width+4, at+11, number(v.value))
	}
}
