package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
)

func newRepoCheckCommand(a *app) *cobra.Command {
	var stored, data bool
	var subset string
	cmd := &cobra.Command{
		Use:   "check URL",
		Short: "Look for damage",
		Long: `Look for damage in a repository, and say which backups and byte ranges it touches.

Without flags the structure is checked: records, trees, the index, and that every pack is there in its full length. That takes seconds
and does for every day. --stored also reads every stored byte and compares checksums: for every month. --data also decompresses
every chunk and compares it with its ID, as a restore does.

--read-data-subset reads a part of the packs only: 5% or 2G of them, those that follow what the last such check of this host read, so that
check after check all is read (how far that is, is kept in the cache folder; where that is gone, a check begins at a random place); or
2/7, the second of seven fixed parts. Without --data it compares checksums. The structure is always checked whole.

Where a record is in two packs and one is damaged, readers take the other: that is told as damage, but no backup loses by it.

Nothing is changed, and backups may run meanwhile. Exit code 3: damage was found.`,
		Example: `  shale repo check /srv/backups --stored
  shale repo check /srv/backups --read-data-subset 5%`,
		Args: exactArgs("URL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			var o chunkstore.CheckOptions
			if cmd.Flags().Changed("read-data-subset") {
				if o.Subset, err = parseSubset(subset); err != nil {
					return usagef(cmd, "--read-data-subset %v", err)
				}
			}
			r, _, err := a.openRepository(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer closeInto(&err, r)
			bar := a.newProgress("check")
			o.Progress = func(done, total int64) { bar.set(done, total) }
			switch {
			case data:
				o.Level = chunkstore.CheckData
			case stored:
				o.Level = chunkstore.CheckStored
			}
			rep, err := r.Check(cmd.Context(), o)
			bar.done()
			if err != nil {
				return interrupted(cmd.Context(), err, "nothing was changed")
			}
			a.note("%s", a.transferred(0))
			if err := a.printCheck(rep); err != nil {
				return err
			}
			if n := len(rep.Damage); n > 0 {
				return fmt.Errorf("%w in %d place(s)", errDamage, n)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&stored, "stored", false, "also compare the checksum of every stored byte")
	cmd.Flags().BoolVar(&data, "data", false, "also read every chunk and compare it with its ID")
	cmd.Flags().StringVar(&subset, "read-data-subset", "", "read only `PART` of the packs: 5%, 2G, or 2/7")
	return cmd
}

// parseSubset reads "5%", "2G" or "2/7".
func parseSubset(s string) (sub chunkstore.Subset, err error) {
	bad := fmt.Errorf("is %q: a part of all like 5%%, a size like 2G, or one of several parts like 2/7", s)
	if part, of, ok := strings.Cut(s, "/"); ok {
		var errs [2]error
		sub.Part, errs[0] = strconv.Atoi(part)
		sub.Of, errs[1] = strconv.Atoi(of)
		if errors.Join(errs[:]...) != nil || sub.Part < 1 || sub.Part > sub.Of {
			return sub, bad
		}
		return sub, nil
	}
	if strings.HasSuffix(s, "%") {
		if sub.Share, err = parsePart(s); err != nil || sub.Share == 0 {
			return sub, bad
		}
		return sub, nil
	}
	digits := strings.TrimRight(s, "KMGT")
	shift := 0
	if unit := s[len(digits):]; len(unit) == 1 {
		shift = 10 * (strings.Index("KMGT", unit) + 1)
	} else if unit != "" {
		return sub, bad
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64>>shift {
		return sub, bad
	}
	return chunkstore.Subset{Bytes: n << shift}, nil
}

func (a *app) printCheck(rep *chunkstore.CheckReport) error {
	if a.json {
		return a.printJSON(struct {
			*chunkstore.CheckReport
			Transfer transfer `json:"transfer"`
		}{rep, a.transferred(0)})
	}
	for _, d := range rep.Damage {
		fmt.Fprintf(a.stdout, "damaged: %s at byte %d: %s\n", d.Object, d.Off, d.Error)
		for _, t := range d.Touches {
			fmt.Fprintf(a.stdout, "  lost: volume %s backup %s, %d bytes at %d\n", t.Volume, t.Backup, t.Len, t.Off)
		}
		if d.Copies > 0 {
			fmt.Fprintf(a.stdout, "  not lost: %d records of it are read from another copy\n", d.Copies)
		}
	}
	a.printSubset(rep.Subset)
	_, err := fmt.Fprintf(a.stdout, "%d backups, %d packs, %d index segments, %d chunks, %s read; %d chunks unused, %d packs not indexed; %d places damaged\n",
		rep.Backups, rep.Packs, rep.Segments, rep.Chunks, size(rep.BytesRead), rep.Unused, rep.Unindexed, len(rep.Damage))
	return err
}

func (a *app) printSubset(s *chunkstore.SubsetReport) {
	if s == nil {
		return
	}
	fmt.Fprintf(a.stdout, "read %s of %s, %d of %d packs", size(s.Packs.Bytes), size(s.All.Bytes), s.Packs.Objects, s.All.Objects)
	switch t := s.Turn; {
	case t == nil:
	case t.Left.Objects == 0:
		fmt.Fprintf(a.stdout, "; with this all has been read since %s, in %d check(s)", t.Begun.Format(time.RFC3339), t.Runs)
	case t.DoneBy != nil:
		fmt.Fprintf(a.stdout, "; %s left: %d more checks, all read by %s at this pace", size(t.Left.Bytes), t.RunsLeft, t.DoneBy.Format(time.RFC3339))
	default:
		fmt.Fprintf(a.stdout, "; %s left: %d more checks", size(t.Left.Bytes), t.RunsLeft)
	}
	fmt.Fprintln(a.stdout)
}
