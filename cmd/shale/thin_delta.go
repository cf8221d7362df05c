package main

import (
	"bufio"
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/thin"
)

// thinChangeJSON is a run of blocks that differ. The data blocks are there with --verbose, where they are mapped.
type thinChangeJSON struct {
	Kind     string  `json:"kind"` // added, changed, removed, unchanged
	Thin     uint64  `json:"thin"`
	Len      uint64  `json:"len"`
	FromData *uint64 `json:"from_data,omitempty"`
	ToData   *uint64 `json:"to_data,omitempty"`
}

type thinDeltaOptions struct {
	thinOptions
	thin1, thin2 uint
	verbose      bool
	unchanged    bool
}

func newThinDeltaCommand(a *app) *cobra.Command {
	var o thinDeltaOptions
	cmd := &cobra.Command{
		Use:   "delta --thin1 FROM --thin2 TO META",
		Short: "Print the blocks in which two thin devices differ, as thin_delta does",
		Long: `Print the blocks in which two thin devices of a pool differ. What both devices share is skipped unread, so that the
cost follows the change. --unchanged, and the XML of thin_delta, name the unchanged blocks too and read a whole tree.`,
		Example: `  shale thin delta --thin1 2 --thin2 3 meta.img
  shale thin delta --thin1 2 --thin2 3 --metadata-snap /dev/mapper/vg0-tpool_tmeta --json
  shale thin delta --thin1 2 --thin2 3 --verbose --format xml meta.img`,
		Args: exactArgs("META"),
	}
	o.flags(cmd, "text, json or xml (that of thin_delta)")
	cmd.Flags().UintVar(&o.thin1, "thin1", 0, "device ID of the earlier side")
	cmd.Flags().UintVar(&o.thin2, "thin2", 0, "device ID of the later side")
	cmd.Flags().BoolVar(&o.verbose, "verbose", false, "with the data blocks of both sides")
	cmd.Flags().BoolVar(&o.unchanged, "unchanged", false, "text and json: with the unchanged runs")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		format, err := o.outputFormat(cmd, a, "text", "json", "xml")
		if err != nil {
			return err
		}
		if !cmd.Flags().Changed("thin1") || !cmd.Flags().Changed("thin2") {
			return usagef(cmd, "expects --thin1 and --thin2")
		}
		ids, err := deviceIDs(cmd, o.thin1, o.thin2)
		if err != nil {
			return err
		}
		r, err := o.open(args[0])
		if err != nil {
			return err
		}
		switch format {
		case "xml":
			err = r.WriteDeltaXML(cmd.Context(), a.stdout, ids[0], ids[1], o.verbose)
		case "json":
			err = o.writeJSON(cmd.Context(), a.stdout, r, ids[0], ids[1])
		default:
			err = o.writeText(cmd.Context(), a.stdout, r, ids[0], ids[1])
		}
		return finishThin(r, err)
	}
	return cmd
}

// changes calls each with the runs, joined over data blocks when those are not shown.
func (o *thinDeltaOptions) changes(ctx context.Context, r *thin.Reader, from, to uint32, each func(thin.Change)) error {
	var last thin.Change
	for c, err := range r.Diff(ctx, from, to, thin.DiffOptions{Unchanged: o.unchanged}) {
		if err != nil {
			return err
		}
		if !o.verbose && c.Kind == last.Kind && last.Thin+last.Len == c.Thin {
			last.Len += c.Len
			continue
		}
		if last.Len > 0 {
			each(last)
		}
		last = c
	}
	if last.Len > 0 {
		each(last)
	}
	return nil
}

func (o *thinDeltaOptions) writeText(ctx context.Context, w io.Writer, r *thin.Reader, from, to uint32) error {
	out := bufio.NewWriter(w)
	header := "kind\tthin\tlen"
	if o.verbose {
		header += "\tfrom_data\tto_data"
	}
	fmt.Fprintln(out, header)
	err := o.changes(ctx, r, from, to, func(c thin.Change) {
		fmt.Fprintf(out, "%s\t%d\t%d", c.Kind, c.Thin, c.Len)
		if o.verbose {
			fromData, toData := dataBlocks(c)
			fmt.Fprintf(out, "\t%s\t%s", orDash(fromData), orDash(toData))
		}
		fmt.Fprintln(out)
	})
	if err != nil {
		return err
	}
	return out.Flush()
}

func (o *thinDeltaOptions) writeJSON(ctx context.Context, w io.Writer, r *thin.Reader, from, to uint32) error {
	out := newJSONStream(w)
	out.text(`{"pool":`)
	out.value(o.pool(r))
	out.text(fmt.Sprintf(`,"from":%d,"to":%d,"changes":[`, from, to))
	first := true
	err := o.changes(ctx, r, from, to, func(c thin.Change) {
		out.separator(&first)
		v := thinChangeJSON{Kind: c.Kind.String(), Thin: c.Thin, Len: c.Len}
		if o.verbose {
			v.FromData, v.ToData = dataBlocks(c)
		}
		out.value(v)
	})
	if err != nil {
		return err
	}
	out.text("]}\n")
	return out.w.Flush()
}

// dataBlocks gives the data blocks of the sides that map the run.
func dataBlocks(c thin.Change) (from, to *uint64) {
	if c.Kind != thin.Added {
		from = &c.FromData
	}
	if c.Kind != thin.Removed {
		to = &c.ToData
	}
	return from, to
}

func orDash(n *uint64) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}
