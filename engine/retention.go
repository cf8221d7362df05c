package engine

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/shalebackup/shale/chunkstore"
)

// ErrNoRetention: a policy that names nothing to keep.
var ErrNoRetention = errors.New("nothing is said to be kept")

// KeepAll as a count of a Retention keeps without limit.
const KeepAll = -1

// Retention says which backups of a volume to keep. Each rule keeps backups by itself, and what no rule keeps is forgotten. The
// groups are volumes, wherever their backups were made: a volume that moved to another host has one history.
//
// A count of N keeps the newest backup of each of the last N hours, days, weeks, months or years that have any; and the oldest
// backup of all for as long as there are fewer, so that history reaches back as far as it can. Zero: the rule keeps nothing.
type Retention struct {
	Last    int // the newest N backups
	Hourly  int
	Daily   int
	Weekly  int // weeks begin on Monday (ISO 8601)
	Monthly int
	Yearly  int
	Within  Period  // all that are at most so much older than the newest
	Labels  []Label // all that have one of these
	// Zone says where hours, days and weeks begin; nil is UTC. An hour that summer time's end brings twice counts as two.
	Zone *time.Location
}

// Reasons to keep a backup that are not names of flags.
const (
	keptFuture = "future" // its time is yet to come
	keptLocked = "locked" // its object lock is not over
	keptNewest = "newest" // no rule keeps the newest of the volume
)

// Decision is what a Retention says of one backup.
type Decision struct {
	Backup *chunkstore.Backup
	// Reasons are the rules that keep it: "last", "hourly", "daily", "weekly", "monthly", "yearly", with " (oldest)" when it is kept as
	// the oldest of all; "within", "label", "locked", "future", "newest". Empty: it is to be forgotten.
	Reasons []string
}

// Kept reports whether the backup stays.
func (d Decision) Kept() bool { return len(d.Reasons) > 0 }

// Validate refuses a Retention that cannot be meant: ErrNoRetention when no rule would keep anything.
func (r Retention) Validate() error {
	for _, rule := range r.rules() {
		if rule.count < KeepAll {
			return fmt.Errorf("keep %s %d: the count is %d (all), 0 or more", rule.name, rule.count, KeepAll)
		}
	}
	if err := r.Within.validate(); err != nil {
		return err
	}
	some := slices.ContainsFunc(r.rules(), func(rule retentionRule) bool { return rule.count != 0 })
	if !some && r.Within.IsZero() && len(r.Labels) == 0 {
		return ErrNoRetention
	}
	return nil
}

// retentionRule keeps the newest backup of each of the last count buckets.
type retentionRule struct {
	name   string
	count  int
	bucket func(n int, t time.Time) string // n is the backup's number
}

func (r Retention) rules() []retentionRule {
	layout := func(s string) func(int, time.Time) string {
		return func(_ int, t time.Time) string { return t.Format(s) }
	}
	return []retentionRule{
		{"last", r.Last, func(n int, _ time.Time) string { return fmt.Sprint(n) }},
		{"hourly", r.Hourly, layout("2006-01-02 15 -070000")},
		{"daily", r.Daily, layout("2006-01-02")},
		{"weekly", r.Weekly, func(_ int, t time.Time) string {
			year, week := t.ISOWeek()
			return fmt.Sprintf("%d-%d", year, week)
		}},
		{"monthly", r.Monthly, layout("2006-01")},
		{"yearly", r.Yearly, layout("2006")},
	}
}

// Decide says for every backup whether it is kept, and why: by volume, the newest first; of two of the same time the one with
// the greater ID counts as the newer. It depends on its arguments alone. r must be valid.
//
// A backup whose time is after now, as a wrong clock gives, is kept, and counts for no rule: it cannot push others out. The
// newest of the others is kept whatever r says: the next backup of the volume is compared with it. So is one that is locked.
func (r Retention) Decide(backups []*chunkstore.Backup, now time.Time) []Decision {
	backups = slices.Clone(backups)
	slices.SortFunc(backups, func(a, b *chunkstore.Backup) int {
		return cmp.Or(cmp.Compare(a.Volume, b.Volume), b.Time.Compare(a.Time), cmp.Compare(b.ID, a.ID))
	})
	out := make([]Decision, len(backups))
	for i, b := range backups {
		out[i].Backup = b
	}
	for rest := out; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].Backup.Volume == rest[0].Backup.Volume {
			n++
		}
		r.decideVolume(rest[:n], now)
		rest = rest[n:]
	}
	return out
}

// decideVolume fills in the reasons for the backups of one volume, the newest first.
func (r Retention) decideVolume(all []Decision, now time.Time) {
	past := all
	for len(past) > 0 && past[0].Backup.Time.After(now) {
		past[0].Reasons = []string{keptFuture}
		past = past[1:]
	}
	for _, rule := range r.rules() {
		rule.apply(past, r.zone())
	}
	if !r.Within.IsZero() && len(past) > 0 {
		since := r.Within.Before(past[0].Backup.Time.In(r.zone()))
		for i := range past {
			if !past[i].Backup.Time.Before(since) {
				past[i].Reasons = append(past[i].Reasons, "within")
			}
		}
	}
	for i := range past {
		if slices.ContainsFunc(r.Labels, func(l Label) bool { return l.On(past[i].Backup) }) {
			past[i].Reasons = append(past[i].Reasons, "label")
		}
	}
	for i := range all {
		if lock := all[i].Backup.Lock; lock != nil && lock.Until.After(now) {
			all[i].Reasons = append(all[i].Reasons, keptLocked)
		}
	}
	if len(past) > 0 && !past[0].Kept() {
		past[0].Reasons = []string{keptNewest}
	}
}

// apply gives the rule's reason to the backups it keeps, of one volume, the newest first.
func (rule retentionRule) apply(all []Decision, zone *time.Location) {
	left, last := rule.count, ""
	for i := range all {
		if left == 0 {
			return
		}
		bucket := rule.bucket(i, all[i].Backup.Time.In(zone))
		switch {
		case bucket != last:
			all[i].Reasons = append(all[i].Reasons, rule.name)
		case i == len(all)-1:
			all[i].Reasons = append(all[i].Reasons, rule.name+" (oldest)")
		default:
			continue
		}
		last = bucket
		if left > 0 {
			left--
		}
	}
}

func (r Retention) zone() *time.Location {
	if r.Zone == nil {
		return time.UTC
	}
	return r.Zone
}
