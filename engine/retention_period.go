package engine

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Period is a length of time in the calendar's units, written as restic writes it: 1y6m, 7d, 2h.
type Period struct {
	Years, Months, Days, Hours int
}

// ErrPeriod: a text that is no Period.
var ErrPeriod = errors.New("a period is numbers with y, m, d and h in this order, as in 1y6m, 7d or 2h")

// maxPeriod bounds each number, so that sums stay within the calendar.
const maxPeriod = 100_000

// ParsePeriod reads "1y2m3d4h"; each part may be missing, and one must be there.
func ParsePeriod(s string) (p Period, err error) {
	rest := s
	for _, part := range []struct {
		unit string
		n    *int
	}{{"y", &p.Years}, {"m", &p.Months}, {"d", &p.Days}, {"h", &p.Hours}} {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		if !strings.HasPrefix(rest[digits:], part.unit) {
			continue
		}
		if *part.n, err = strconv.Atoi(rest[:digits]); err != nil || *part.n > maxPeriod {
			return Period{}, fmt.Errorf("%q: %w; each at most %d", s, ErrPeriod, maxPeriod)
		}
		rest = rest[digits+1:]
	}
	if s == "" || rest != "" {
		return Period{}, fmt.Errorf("%q: %w", s, ErrPeriod)
	}
	return p, nil
}

// IsZero reports whether the period has no length.
func (p Period) IsZero() bool { return p == Period{} }

func (p Period) String() string {
	if p.IsZero() {
		return "0h"
	}
	var s strings.Builder
	for _, part := range []struct {
		n    int
		unit string
	}{{p.Years, "y"}, {p.Months, "m"}, {p.Days, "d"}, {p.Hours, "h"}} {
		if part.n != 0 {
			fmt.Fprintf(&s, "%d%s", part.n, part.unit)
		}
	}
	return s.String()
}

func (p Period) validate() error {
	for _, n := range []int{p.Years, p.Months, p.Days, p.Hours} {
		if n < 0 || n > maxPeriod {
			return fmt.Errorf("period %v: %w; each at most %d", p, ErrPeriod, maxPeriod)
		}
	}
	return nil
}

// After is the point in time p after t, as the calendar counts: a day that the month does not have is one of the next.
func (p Period) After(t time.Time) time.Time {
	return t.AddDate(p.Years, p.Months, p.Days).Add(time.Duration(p.Hours) * time.Hour)
}

// Before is the point in time p before t, in t's zone: first so many months back, on the same day or, where the month is shorter, its
// last; then days, at the same time of day; then hours.
func (p Period) Before(t time.Time) time.Time {
	months := 12*p.Years + p.Months
	first := time.Date(t.Year(), t.Month()-time.Month(months), 1, 0, 0, 0, 0, t.Location())
	longest := first.AddDate(0, 1, -1).Day()
	hour, minute, second := t.Clock()
	day := time.Date(first.Year(), first.Month(), min(t.Day(), longest)-p.Days, hour, minute, second, t.Nanosecond(), t.Location())
	if months == 0 && p.Days == 0 {
		day = t // an hour that comes twice stays the one it was
	}
	return day.Add(-time.Duration(p.Hours) * time.Hour)
}
