package engine_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

// at is a backup of volume "v" at a time, "2006-01-02 15:04" in UTC, with labels "k=v". IDs follow the order of the calls.
func at(n int, when string, labels ...string) *chunkstore.Backup {
	t, err := time.Parse("2006-01-02 15:04", when)
	if err != nil {
		panic(err)
	}
	b := &chunkstore.Backup{Volume: "v", ID: fmt.Sprintf("backup-%016x", n), Time: t, Labels: map[string]string{}}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		b.Labels[k] = v
	}
	return b
}

func lockedUntil(b *chunkstore.Backup, until time.Time) *chunkstore.Backup {
	b.Lock = &chunkstore.ObjectLock{Until: until}
	return b
}

func ats(when ...string) (out []*chunkstore.Backup) {
	for i, w := range when {
		out = append(out, at(i, w))
	}
	return out
}

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Skipf("this system has no time zones: %v", err)
	}
	return z
}

func period(t *testing.T, s string) engine.Period {
	t.Helper()
	p, err := engine.ParsePeriod(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var retentionNow = time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)

func TestRetention(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	for _, tt := range []struct {
		name string
		r    engine.Retention
		all  []*chunkstore.Backup
		want []string // "2006-01-02 15:04 reasons", the newest first
	}{
		{"last", engine.Retention{Last: 2}, ats("2026-01-01 00:00", "2026-01-02 00:00", "2026-01-03 00:00"),
			[]string{"2026-01-03 00:00 last", "2026-01-02 00:00 last", "2026-01-01 00:00"}},
		{"last, more than there are", engine.Retention{Last: 9}, ats("2026-01-01 00:00", "2026-01-02 00:00"),
			[]string{"2026-01-02 00:00 last", "2026-01-01 00:00 last"}},
		{"all", engine.Retention{Last: engine.KeepAll}, ats("2026-01-01 00:00", "2026-01-02 00:00"),
			[]string{"2026-01-02 00:00 last", "2026-01-01 00:00 last"}},
		{"the newest of each day, days without any not counted", engine.Retention{Daily: 2},
			ats("2026-01-01 10:00", "2026-01-01 11:00", "2026-01-05 10:00", "2026-01-05 23:59", "2026-01-09 00:00"),
			[]string{"2026-01-09 00:00 daily", "2026-01-05 23:59 daily", "2026-01-05 10:00", "2026-01-01 11:00", "2026-01-01 10:00"}},
		{"the oldest stays while there are fewer", engine.Retention{Monthly: 3},
			ats("2026-01-03 00:00", "2026-01-09 00:00", "2026-01-20 00:00", "2026-02-01 00:00"),
			[]string{"2026-02-01 00:00 monthly", "2026-01-20 00:00 monthly", "2026-01-09 00:00", "2026-01-03 00:00 monthly (oldest)"}},
		{"the oldest goes when there are enough", engine.Retention{Monthly: 2},
			ats("2026-01-03 00:00", "2026-01-20 00:00", "2026-02-01 00:00"),
			[]string{"2026-02-01 00:00 monthly", "2026-01-20 00:00 monthly", "2026-01-03 00:00"}},
		{"weeks begin on Monday and go over the year's end", engine.Retention{Weekly: 2},
			ats("2025-12-28 00:00", "2025-12-29 00:00", "2026-01-04 00:00", "2026-01-05 00:00"),
			[]string{"2026-01-05 00:00 weekly", "2026-01-04 00:00 weekly", "2025-12-29 00:00", "2025-12-28 00:00"}},
		{"years", engine.Retention{Yearly: engine.KeepAll}, ats("2023-05-01 00:00", "2024-05-01 00:00", "2024-12-31 00:00", "2026-05-01 00:00"),
			[]string{"2026-05-01 00:00 yearly", "2024-12-31 00:00 yearly", "2024-05-01 00:00", "2023-05-01 00:00 yearly"}},
		{"rules add up", engine.Retention{Last: 1, Hourly: 2, Daily: 1}, ats("2026-01-01 00:10", "2026-01-01 00:20", "2026-01-01 01:00"),
			[]string{"2026-01-01 01:00 last, hourly, daily", "2026-01-01 00:20 hourly", "2026-01-01 00:10"}},
		{"within, by the newest and not by the clock", engine.Retention{Within: period(t, "2d")},
			ats("2020-01-01 00:00", "2020-01-05 12:00", "2020-01-05 11:59", "2020-01-07 12:00"),
			[]string{"2020-01-07 12:00 within", "2020-01-05 12:00 within", "2020-01-05 11:59", "2020-01-01 00:00"}},
		{"labels", engine.Retention{Last: 1, Labels: []engine.Label{{Key: "keep", Any: true}, {Key: "kind", Value: "full"}}},
			[]*chunkstore.Backup{at(1, "2026-01-01 00:00", "keep=no"), at(2, "2026-01-02 00:00", "kind=full"), at(3, "2026-01-03 00:00", "kind=fuller"), at(4, "2026-01-04 00:00")},
			[]string{"2026-01-04 00:00 last", "2026-01-03 00:00", "2026-01-02 00:00 label", "2026-01-01 00:00 label"}},
		{"the future counts for nothing", engine.Retention{Last: 1, Within: period(t, "1h")},
			ats("2026-06-01 00:00", "2026-06-02 00:00", "2026-07-01 00:01", "2099-01-01 00:00"),
			[]string{"2099-01-01 00:00 future", "2026-07-01 00:01 future", "2026-06-02 00:00 last, within", "2026-06-01 00:00"}},
		{"now is not the future", engine.Retention{Last: 1}, ats("2026-07-01 00:00", "2026-06-01 00:00"),
			[]string{"2026-07-01 00:00 last", "2026-06-01 00:00"}},
		{"the newest stays though no rule keeps it", engine.Retention{Labels: []engine.Label{{Key: "keep", Any: true}}},
			[]*chunkstore.Backup{at(1, "2026-01-01 00:00", "keep="), at(2, "2026-01-02 00:00"), at(3, "2026-01-03 00:00"), at(4, "2099-01-03 00:00")},
			[]string{"2099-01-03 00:00 future", "2026-01-03 00:00 newest", "2026-01-02 00:00", "2026-01-01 00:00 label"}},
		{"the newest stays alone", engine.Retention{Labels: []engine.Label{{Key: "none", Any: true}}},
			ats("2026-01-01 00:00", "2026-01-02 00:00"), []string{"2026-01-02 00:00 newest", "2026-01-01 00:00"}},
		{"one time: the greater ID is the newer", engine.Retention{Last: 1},
			[]*chunkstore.Backup{at(2, "2026-01-01 00:00", "second=1"), at(1, "2026-01-01 00:00")},
			[]string{"2026-01-01 00:00 last second", "2026-01-01 00:00"}},
		{"days of the zone", engine.Retention{Daily: 1, Zone: berlin}, ats("2026-01-01 22:30", "2026-01-01 23:30"), // 00:30 in Berlin
			[]string{"2026-01-01 23:30 daily", "2026-01-01 22:30"}},
		{"days of the zone, two", engine.Retention{Daily: 2, Zone: berlin}, ats("2026-01-01 22:00", "2026-01-01 22:30", "2026-01-01 23:30"),
			[]string{"2026-01-01 23:30 daily", "2026-01-01 22:30 daily", "2026-01-01 22:00"}},
		{"the hour that comes twice is two", engine.Retention{Hourly: 2, Zone: berlin}, // 02:59 summer time, 02:00 and 02:30 winter time
			ats("2025-10-26 00:30", "2025-10-26 00:59", "2025-10-26 01:00", "2025-10-26 01:30"),
			[]string{"2025-10-26 01:30 hourly", "2025-10-26 01:00", "2025-10-26 00:59 hourly", "2025-10-26 00:30"}},
		{"the hour that is left out", engine.Retention{Hourly: 2, Zone: berlin}, ats("2026-03-29 00:30", "2026-03-29 00:59", "2026-03-29 01:00"),
			[]string{"2026-03-29 01:00 hourly", "2026-03-29 00:59 hourly", "2026-03-29 00:30"}},
		{"a day within is the calendar's, of 23 hours here", engine.Retention{Within: period(t, "1d"), Zone: berlin},
			ats("2026-03-28 10:59", "2026-03-28 11:00", "2026-03-29 10:00"), // 12:00 and 12:00
			[]string{"2026-03-29 10:00 within", "2026-03-28 11:00 within", "2026-03-28 10:59"}},
		{"locked", engine.Retention{Last: 1}, []*chunkstore.Backup{
			lockedUntil(at(1, "2026-01-01 00:00"), retentionNow.Add(1)), lockedUntil(at(2, "2026-01-02 00:00"), retentionNow), at(3, "2026-01-03 00:00"),
		}, []string{"2026-01-03 00:00 last", "2026-01-02 00:00", "2026-01-01 00:00 locked"}},
		{"none", engine.Retention{Last: 1}, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.r.Validate(); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range tt.r.Decide(tt.all, retentionNow) {
				s := d.Backup.Time.Format("2006-01-02 15:04")
				if d.Kept() {
					s += " " + strings.Join(d.Reasons, ", ")
				}
				if d.Backup.Labels["second"] != "" {
					s += " second"
				}
				got = append(got, s)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

// Volumes do not count for one another; where a backup was made does not count at all.
func TestRetentionGroups(t *testing.T) {
	all := ats("2026-01-01 00:00", "2026-01-02 00:00", "2026-01-03 00:00", "2026-01-04 00:00")
	all[0].Volume, all[1].Volume = "w", "w"
	all[2].Host, all[3].Host = "a", "b"
	kept := ""
	for _, d := range (engine.Retention{Last: 1}).Decide(all, retentionNow) {
		if d.Kept() {
			kept += d.Backup.Volume + d.Backup.Time.Format("02 ")
		}
	}
	if kept != "v04 w02 " {
		t.Errorf("kept %q", kept)
	}
}

func TestRetentionValidate(t *testing.T) {
	for _, tt := range []struct {
		r  engine.Retention
		ok bool
	}{
		{engine.Retention{}, false},
		{engine.Retention{Zone: time.UTC}, false},
		{engine.Retention{Last: -2}, false},
		{engine.Retention{Last: 1, Weekly: -7}, false},
		{engine.Retention{Within: engine.Period{Days: -1}}, false},
		{engine.Retention{Within: engine.Period{Years: 1 << 40}}, false},
		{engine.Retention{Last: -1}, true},
		{engine.Retention{Yearly: 1}, true},
		{engine.Retention{Within: engine.Period{Hours: 1}}, true},
		{engine.Retention{Labels: []engine.Label{{Key: "k"}}}, true},
	} {
		if err := tt.r.Validate(); (err == nil) != tt.ok {
			t.Errorf("%+v: %v", tt.r, err)
		}
	}
	if err := (engine.Retention{}).Validate(); !errors.Is(err, engine.ErrNoRetention) {
		t.Errorf("an empty policy: %v", err)
	}
}

func TestPeriod(t *testing.T) {
	for s, want := range map[string]engine.Period{
		"2h": {Hours: 2}, "7d": {Days: 7}, "3m": {Months: 3}, "1y6m": {Years: 1, Months: 6}, "1y2m3d4h": {Years: 1, Months: 2, Days: 3, Hours: 4}, "0d": {},
	} {
		got, err := engine.ParsePeriod(s)
		if err != nil || got != want {
			t.Errorf("%q is %+v, %v, want %+v", s, got, err, want)
		}
		if again, err := engine.ParsePeriod(got.String()); err != nil || again != got {
			t.Errorf("%q comes back as %q: %+v, %v", s, got, again, err)
		}
	}
	for _, s := range []string{"", "7", "d", "-7d", "+7d", "7 d", "7d ", "6m1y", "1d2d", "7s", "1.5d", "99999999999999999999d", "100001d", "7D", "1h\x00"} {
		if p, err := engine.ParsePeriod(s); !errors.Is(err, engine.ErrPeriod) {
			t.Errorf("%q is %+v, %v", s, p, err)
		}
	}
}

func TestPeriodBefore(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	for _, tt := range []struct{ period, from, want string }{
		{"1m", "2026-03-31 12:00", "2026-02-28 12:00"}, // not the 3rd of March
		{"1m", "2024-03-31 12:00", "2024-02-29 12:00"},
		{"1y", "2024-02-29 12:00", "2023-02-28 12:00"},
		{"1y6m", "2026-05-31 12:00", "2024-11-30 12:00"},
		{"1m1d", "2026-03-31 12:00", "2026-02-27 12:00"},
		{"7d", "2026-01-03 12:00", "2025-12-27 12:00"},
		{"1d", "2026-03-30 02:30", "2026-03-29 03:30"},  // there is no 02:30 on that day
		{"25h", "2026-03-30 02:30", "2026-03-29 00:30"}, // that day had 23
		{"1d", "2025-10-26 12:00", "2025-10-25 12:00"},  // of 25 hours
	} {
		from, err := time.ParseInLocation("2006-01-02 15:04", tt.from, berlin)
		if err != nil {
			t.Fatal(err)
		}
		if got := period(t, tt.period).Before(from).Format("2006-01-02 15:04"); got != tt.want {
			t.Errorf("%s before %s is %s, want %s", tt.period, tt.from, got, tt.want)
		}
	}
	for hour := range 2 { // an hour before either of the two times 02:30
		from := time.Date(2025, 10, 26, hour, 30, 0, 0, time.UTC).In(berlin)
		if got := period(t, "1h").Before(from); from.Sub(got) != time.Hour {
			t.Errorf("1h before %v is %v", from, got)
		}
	}
}

// randomRetention keeps something, by random rules.
func randomRetention(rng *rand.Rand) engine.Retention {
	count := func() int { return []int{0, 0, 1, 2, 5, engine.KeepAll}[rng.IntN(6)] }
	r := engine.Retention{
		Last: count(), Hourly: count(), Daily: count(), Weekly: count(), Monthly: count(), Yearly: count(),
		Zone: time.FixedZone("", (rng.IntN(27)-12)*3600+rng.IntN(2)*1800),
	}
	if rng.IntN(2) == 0 {
		r.Within = engine.Period{Days: rng.IntN(100), Hours: 1}
	}
	if rng.IntN(3) == 0 || r.Validate() != nil {
		r.Labels = []engine.Label{{Key: "k", Value: "1"}}
	}
	return r
}

func randomBackups(rng *rand.Rand) (all []*chunkstore.Backup) {
	spread := []time.Duration{time.Hour, 24 * time.Hour, 400 * 24 * time.Hour, 5000 * 24 * time.Hour}[rng.IntN(4)]
	for i := range rng.IntN(60) {
		all = append(all, &chunkstore.Backup{
			Volume: []string{"a", "b"}[rng.IntN(2)], ID: fmt.Sprintf("backup-%016x", i),
			Time:   retentionNow.Add(time.Duration(rng.Int64N(int64(spread))) - spread*9/10).Truncate(time.Minute),
			Labels: map[string]string{"k": fmt.Sprint(rng.IntN(9))},
		})
	}
	return all
}

func keptSet(r engine.Retention, all []*chunkstore.Backup) map[string]bool {
	kept := map[string]bool{}
	for _, d := range r.Decide(all, retentionNow) {
		if d.Kept() {
			kept[d.Backup.ID] = true
		}
	}
	return kept
}

// Whatever the policy and the backups: no volume is left without any; a greater count keeps what a smaller one does; the order of
// the list does not matter; and forgetting twice forgets nothing more.
func TestRetentionProperties(t *testing.T) {
	seed := *propertySeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	for i := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed+i, 3))
		r, all := randomRetention(rng), randomBackups(rng)
		decisions := r.Decide(all, retentionNow)
		kept := keptSet(r, all)
		fail := func(what string) {
			t.Helper()
			t.Fatalf("%s: %+v\nagain: go test ./engine -run TestRetentionProperties -property.seed=%d", what, r, seed+i)
		}
		var rest []*chunkstore.Backup
		left := map[string]bool{}
		for _, b := range all {
			if kept[b.ID] {
				left[b.Volume] = true
				rest = append(rest, b)
			}
		}
		newest := map[string]*chunkstore.Backup{}
		for _, b := range all {
			if n := newest[b.Volume]; !b.Time.After(retentionNow) && (n == nil || b.Time.After(n.Time) || b.Time.Equal(n.Time) && b.ID > n.ID) {
				newest[b.Volume] = b
			}
		}
		for _, b := range newest {
			if !kept[b.ID] {
				fail("the newest of " + b.Volume + " is forgotten")
			}
		}
		for _, b := range all {
			switch {
			case !left[b.Volume]:
				fail("volume " + b.Volume + " has no backup left")
			case b.Time.After(retentionNow) && !kept[b.ID]:
				fail("a backup of the future is forgotten")
			}
		}
		shuffled := slices.Clone(all)
		rng.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if !reflect.DeepEqual(r.Decide(shuffled, retentionNow), decisions) {
			fail("another order, another decision")
		}
		if again := keptSet(r, rest); len(again) != len(kept) {
			fail(fmt.Sprintf("a second time %d of %d stay", len(again), len(kept)))
		}
		more := r
		for _, n := range []*int{&more.Last, &more.Hourly, &more.Daily, &more.Weekly, &more.Monthly, &more.Yearly} {
			switch {
			case *n != engine.KeepAll && rng.IntN(8) == 0:
				*n = engine.KeepAll
			case *n != engine.KeepAll:
				*n += rng.IntN(4)
			}
		}
		wider := keptSet(more, all)
		for id := range kept {
			if !wider[id] {
				fail(fmt.Sprintf("%+v does not keep %s", more, id))
			}
		}
	}
}
