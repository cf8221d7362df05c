package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// progress draws how far long work has come: a bar on a terminal, a line now and then elsewhere, nothing with --quiet.
// It is engine.Progress. Safe for many goroutines.
type progress struct {
	what  string
	unit  unit
	out   io.Writer // nil: nothing is drawn
	tty   bool
	every time.Duration // between lines, where there is no terminal

	mu          sync.Mutex // guards all below
	doneN, allN int64
	bars        *mpb.Progress // made with the first figure, so that quick work draws nothing
	bar         *mpb.Bar
	last        time.Time // of the last line
}

type unit int

const (
	unitBytes unit = iota
	unitNumber
)

func (a *app) newProgress(what string) *progress {
	p := &progress{what: what, every: a.progressEvery, last: time.Now()}
	if !a.quiet {
		p.out = a.stderr
	}
	if f, ok := a.stderr.(*os.File); ok {
		p.tty = term.IsTerminal(int(f.Fd()))
	}
	return p
}

// Total adds to what there is to do.
func (p *progress) Total(n int64) { p.update(0, n) }

// Add says that so much more is done.
func (p *progress) Add(n int64) { p.update(n, 0) }

// set says how far it is altogether.
func (p *progress) set(done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doneN, p.allN = max(p.doneN, done), max(p.allN, total)
	p.draw()
}

func (p *progress) update(done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doneN += done
	p.allN += total
	p.draw()
}

// draw is called with mu held.
func (p *progress) draw() {
	switch {
	case p.out == nil:
	case p.tty:
		if p.bar == nil {
			p.begin()
		}
		p.bar.SetTotal(p.allN, false)
		p.bar.SetCurrent(p.doneN)
	case time.Since(p.last) >= p.every:
		p.last = time.Now()
		fmt.Fprintf(p.out, "%s: %s of %s\n", p.what, p.figure(p.doneN), p.figure(p.allN))
	}
}

func (p *progress) figure(n int64) string {
	if p.unit == unitNumber {
		return fmt.Sprint(n)
	}
	return size(n)
}

func (p *progress) begin() {
	p.bars = mpb.New(mpb.WithOutput(p.out), mpb.WithWidth(60))
	counters := decor.CountersKibiByte("% .1f / % .1f")
	speed := decor.AverageSpeed(decor.SizeB1024(0), "% .1f")
	if p.unit == unitNumber {
		counters, speed = decor.CountersNoUnit("%d / %d"), decor.AverageSpeed(0, "%.0f/s")
	}
	p.bar = p.bars.AddBar(0, mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(p.what+" "), counters),
		mpb.AppendDecorators(speed, decor.Name(" "), decor.AverageETA(decor.ET_STYLE_GO)))
}

// done takes the bar away.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		p.bar.Abort(true)
		p.bars.Wait()
		p.bar = nil
	}
	p.out = nil
}
