package main

import (
	"fmt"
	"math"
	"strings"
)

// target is a promise, and what this run says of it.
type target struct {
	what    string
	have    float64 // NaN: not measured
	want    float64
	atLeast bool   // else at most
	with    string // the peer and the numbers
}

func (t target) verdict() string {
	switch {
	case math.IsNaN(t.have):
		return "not measured"
	case t.atLeast == (t.have >= t.want) && t.have != t.want, t.have == t.want:
		return "PASS"
	}
	return "FAIL"
}

func (t target) sign() string {
	if t.atLeast {
		return "≥"
	}
	return "≤"
}

// ratio compares the best run of one of ours with the best run of the best matching peer.
func (r *results) ratio(what string, limit float64, m metric, ownRow, own, peerRow string, match func(string) bool) target {
	peer, theirs := r.bestPeer(peerRow, m, match)
	ours := r.row(ownRow).best(own, m)
	t := target{what: what, have: ours / theirs, want: limit, atLeast: m.moreIsBetter()}
	if !math.IsNaN(t.have) {
		t.with = fmt.Sprintf("%s %.4g, %s %.4g %s", own, ours, peer, theirs, m)
	}
	return t
}

func begins(prefix string) func(string) bool {
	return func(name string) bool { return strings.HasPrefix(name, prefix) }
}

func only(name string) func(string) bool { return func(n string) bool { return n == name } }

func anyPeer(string) bool { return true }

// targets are all promises. CPU seconds stand for speed: on a machine that others use too they move least.
func (s *suite) targets() []target {
	r := &s.res
	first, again := string(actFirst), string(actAgain)
	out := []target{
		r.ratio("first backup: CPU, to borg zstd,3", 0.65, mCPU, first, "shale", first, only("borg-zstd3")),
		r.ratio("first backup: CPU, to kopia", 0.5, mCPU, first, "shale", first, only("kopia")),
		r.ratio("first backup: CPU, to restic", 0.3, mCPU, first, "shale", first, begins("restic")),
		r.ratio("first backup: stored, to restic", 1.02, mStored, first, "shale", first, begins("restic")),
		r.ratio("first backup, s2: CPU, to kopia-fast", 0.7, mCPU, first, "shale-s2", first, only("kopia-fast")),
		r.ratio("first backup, s2: stored, to kopia-fast", 1, mStored, first, "shale-s2", first, only("kopia-fast")),
		r.ratio("change, nothing known: CPU, to the best peer", 0.6, mCPU, again, "shale", again, anyPeer),
		r.ratio("change, thin base: CPU, to the best peer's scan", 0.15, mCPU, "thin-again", "shale", again, anyPeer),
		r.ratio("change, reflinked base: CPU, to the best peer's scan", 0.15, mCPU, "reflink-again", "shale", again, anyPeer),
		r.ratio("change: stored, to desync", 1, mStored, again, "shale", again, only("desync")),
		r.ratio("change: stored, to restic", 0.4, mStored, again, "shale", again, begins("restic")),
		r.ratio("restore: CPU, to the best peer", 0.6, mCPU, string(actRestore), "shale", string(actRestore), anyPeer),
		r.ratio("verify: CPU, to the best peer", 0.6, mCPU, string(actVerify), "shale", string(actVerify), anyPeer),
		r.ratio("removal and prune: CPU, to borg", 1, mCPU, "prune", "shale", "prune", begins("borg")),
		r.ratio("mount, sequential: to the best peer", 3, mSeq, "mount", "shale", "mount", anyPeer),
		r.ratio("mount, random 4 KiB, one reader: to the best peer", 5, mIOPS1, "mount", "shale", "mount", anyPeer),
	}
	many := target{what: fmt.Sprintf("first byte with %d backups, median ms", s.o.backups), have: r.row("many").median("shale", mFirst), want: 50}
	diff := target{what: "thin difference, 16 M mappings: thin_delta's CPU, to ours", have: math.NaN(), want: 80, atLeast: true}
	if s.ratio > 0 {
		diff.have = s.ratio
	}
	return append(out, many, diff, r.peakMemory())
}

// peakMemory is the largest of all rows.
func (r *results) peakMemory() target {
	t := target{what: "peak memory in every row, MiB", have: math.NaN(), want: 128}
	for _, x := range r.rows {
		for _, tool := range x.tools {
			if !isShale(tool) {
				continue
			}
			for _, v := range x.values(tool, mPeak) {
				if math.IsNaN(t.have) || v > t.have {
					t.have, t.with = v, fmt.Sprintf("%s, %s", x.id, tool)
				}
			}
		}
	}
	return t
}
