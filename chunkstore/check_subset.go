package chunkstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/shalebackup/shale/chunkstore/backend"
)

// Subset says which packs a check reads. With Share or Bytes, successive checks of one host read one share after the other, until all
// packs are read and it begins anew; with Part and Of it is the caller who counts. Packs are taken in the order of their names, which
// are hashes: a share is a fair sample, and a new pack falls anywhere.
type Subset struct {
	Share float64 // of the bytes of all packs: above 0, at most 1
	Bytes int64   // of packs, at least
	Part  int     // this part, from 1, of Of parts
	Of    int
}

func (s Subset) validate() error {
	switch {
	case s == Subset{}:
	case s.Of == 0 && s.Part == 0 && s.Bytes == 0 && s.Share > 0 && s.Share <= 1:
	case s.Of == 0 && s.Part == 0 && s.Share == 0 && s.Bytes > 0:
	case s.Share == 0 && s.Bytes == 0 && s.Part >= 1 && s.Part <= s.Of:
	default:
		return fmt.Errorf("subset %+v: one of a share up to 1, a number of bytes, and a part of a number of parts", s)
	}
	return nil
}

// SubsetReport says which share of all packs a check has read.
type SubsetReport struct {
	Packs Usage       `json:"packs"`          // read
	All   Usage       `json:"all"`            // there are
	Turn  *SubsetTurn `json:"turn,omitempty"` // unless the caller counts
}

// SubsetTurn is how far the checks of this host are on their way through all packs.
type SubsetTurn struct {
	Begun    time.Time  `json:"begun"`
	Runs     int        `json:"runs"`      // checks in this turn, this one included
	Left     Usage      `json:"left"`      // packs not yet read in it
	RunsLeft int        `json:"runs_left"` // checks that read as much as this one, until all is read
	DoneBy   *time.Time `json:"done_by"`   // when that will be if they come as often as lately; null until that shows
}

// position is a place in the order of packs: the first bytes of a pack's ID.
type position uint64

func positionOf(o backend.Object) position {
	id, _, _ := parsePackObject(o.Name)
	return position(binary.BigEndian.Uint64(id[:]))
}

// MarshalText makes 16 hex digits, as in the packs' names.
func (p position) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%016x", uint64(p)), nil }

// UnmarshalText undoes MarshalText.
func (p *position) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 16, 64)
	*p = position(v)
	return err
}

// subsetState is what is remembered from check to check, in the local cache. Without it the next check begins anywhere.
type subsetState struct {
	From  position      `json:"from"` // where this turn began
	At    position      `json:"at"`   // all packs behind From up to this one are read
	Begun time.Time     `json:"begun"`
	Last  time.Time     `json:"last"` // the last check
	Runs  int           `json:"runs"`
	Every time.Duration `json:"every"` // between the last checks, in nanoseconds; 0: not known
}

// subset reads the share of the packs whose turn it is.
func (c *check) subset(ctx context.Context) error {
	all := slices.Clone(c.objects)
	slices.SortFunc(all, func(a, b backend.Object) int {
		x, _, _ := parsePackObject(a.Name)
		y, _, _ := parsePackObject(b.Name)
		return bytes.Compare(x[:], y[:])
	})
	rep := &SubsetReport{}
	for _, o := range all {
		rep.All.add(o.Size)
	}
	if c.o.Subset.Of > 0 {
		some := part(all, c.o.Subset.Part, c.o.Subset.Of)
		if _, err := c.readPacks(ctx, some); err != nil {
			return err
		}
		for _, o := range some {
			rep.Packs.add(o.Size)
		}
		c.report.Subset = rep
		return nil
	}
	now := time.Now().UTC()
	state := c.r.loadSubset(c.o.Level, now)
	some := nextPacks(all, state.At, quota(c.o.Subset, rep.All.Bytes))
	front, err := c.readPacks(ctx, some)
	for _, o := range some[:front] {
		rep.Packs.add(o.Size)
	}
	rep.Turn = state.advance(all, some[:front], rep.Packs.Bytes, now)
	c.report.Subset = rep
	return errors.Join(err, c.r.saveSubset(c.o.Level, state))
}

// part returns the packs of one of several parts, of which each pack is always in the same.
func part(all []backend.Object, n, of int) []backend.Object {
	width := math.MaxUint64/uint64(of) + 1 // of 1 it is 0: all
	return slices.DeleteFunc(slices.Clone(all), func(o backend.Object) bool {
		return of > 1 && uint64(positionOf(o))/width != uint64(n-1)
	})
}

func quota(s Subset, total int64) int64 {
	if s.Bytes > 0 {
		return s.Bytes
	}
	return int64(math.Ceil(s.Share * float64(total)))
}

// nextPacks returns the packs behind a position, beginning again after the last, until they have that many bytes.
func nextPacks(all []backend.Object, behind position, bytes int64) (some []backend.Object) {
	first := slices.IndexFunc(all, func(o backend.Object) bool { return positionOf(o) > behind })
	for i := range all {
		if bytes <= 0 {
			break
		}
		o := all[(max(first, 0)+i)%len(all)]
		some = append(some, o)
		bytes -= o.Size
	}
	return some
}

// advance notes that these packs, the next in order, are read, and says how far the turn is. When it is over, the next begins.
func (s *subsetState) advance(all, read []backend.Object, bytes int64, now time.Time) *SubsetTurn {
	if !s.Last.IsZero() && now.After(s.Last) {
		s.Every = now.Sub(s.Last)
	}
	s.Last = now
	s.Runs++
	done := len(read) == len(all)
	if len(read) > 0 {
		at := positionOf(read[len(read)-1])
		done = done || at-s.From <= s.At-s.From // past where it began
		s.At = at
	}
	t := &SubsetTurn{Begun: s.Begun, Runs: s.Runs}
	for _, o := range all {
		if p := positionOf(o); !done && p-s.At-1 < s.From-s.At {
			t.Left.add(o.Size)
		}
	}
	if t.Left.Objects > 0 {
		t.RunsLeft = int((t.Left.Bytes + max(bytes, 1) - 1) / max(bytes, 1))
		if s.Every > 0 && s.Every < math.MaxInt64/time.Duration(t.RunsLeft) {
			at := now.Add(s.Every * time.Duration(t.RunsLeft))
			t.DoneBy = &at
		}
		return t
	}
	t.DoneBy = &now
	s.From, s.Begun, s.Runs = s.At, time.Time{}, 0
	return t
}

// subsetFile is where a level's position is kept; empty when there is no cache.
func (r *Repository) subsetFile(level CheckLevel) string {
	if r.opts.CacheDir == "" {
		return ""
	}
	name := "check-stored"
	if level == CheckData {
		name = "check-data"
	}
	return filepath.Join(r.opts.CacheDir, r.cfg.ID, name)
}

// loadSubset returns where the last check of that level left off, or begins anywhere.
func (r *Repository) loadSubset(level CheckLevel, now time.Time) *subsetState {
	s := &subsetState{}
	b, err := os.ReadFile(r.subsetFile(level))
	if err != nil || json.Unmarshal(b, s) != nil || s.Runs < 0 || s.Every < 0 {
		at := position(rand.Uint64())
		s = &subsetState{From: at, At: at}
	}
	if s.Begun.IsZero() {
		s.Begun = now
	}
	return s
}

func (r *Repository) saveSubset(level CheckLevel, s *subsetState) error {
	file := r.subsetFile(level)
	if file == "" {
		return nil
	}
	b, err := json.Marshal(s)
	if err == nil {
		err = writeFileSync(file, append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("keep how far this check came: %w", err)
	}
	return nil
}
