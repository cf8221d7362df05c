package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/thin"
)

type thinRunJSON struct {
	Thin uint64 `json:"thin"`
	Data uint64 `json:"data"`
	Len  uint64 `json:"len"`
	Time uint32 `json:"time"`
}

func newThinMappingsCommand(a *app) *cobra.Command {
	var o thinOptions
	var ids []uint
	cmd := &cobra.Command{
		Use:   "mappings META",
		Short: "Print which data blocks the thin devices are mapped to, as thin_dump does",
		Example: `  shale thin mappings meta.img
  shale thin mappings meta.img --dev 3 --format xml`,
		Args: exactArgs("META"),
	}
	o.flags(cmd, "text, json or xml (that of thin_dump)")
	cmd.Flags().UintSliceVar(&ids, "dev", nil, "only the device of this ID (may be repeated)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		format, err := o.outputFormat(cmd, a, "text", "json", "xml")
		if err != nil {
			return err
		}
		devs, err := deviceIDs(cmd, ids...)
		if err != nil {
			return err
		}
		r, err := o.open(args[0])
		if err != nil {
			return err
		}
		switch format {
		case "xml":
			err = r.WriteDumpXML(cmd.Context(), a.stdout, devs...)
		case "json":
			err = writeMappingsJSON(cmd.Context(), a.stdout, r, o.pool(r), devs)
		default:
			err = writeMappingsText(cmd.Context(), a.stdout, r, devs)
		}
		return finishThin(r, err)
	}
	return cmd
}

// deviceIDs checks IDs from the command line.
func deviceIDs(cmd *cobra.Command, ids ...uint) ([]uint32, error) {
	var out []uint32
	for _, id := range ids {
		if id > thin.MaxDeviceID {
			return nil, usagef(cmd, "device ID %d is larger than %d", id, thin.MaxDeviceID)
		}
		out = append(out, uint32(id))
	}
	return out, nil
}

// selectDevices yields the devices of those IDs, or all.
func selectDevices(ctx context.Context, r *thin.Reader, ids []uint32, each func(thin.Device) error) error {
	if len(ids) == 0 {
		for d, err := range r.Devices(ctx) {
			if err != nil {
				return err
			}
			if err := each(d); err != nil {
				return err
			}
		}
	}
	for _, id := range ids {
		d, err := r.Device(ctx, id)
		if err != nil {
			return err
		}
		if err := each(d); err != nil {
			return err
		}
	}
	return nil
}

func writeMappingsText(ctx context.Context, w io.Writer, r *thin.Reader, ids []uint32) error {
	out := bufio.NewWriter(w)
	fmt.Fprintln(out, "dev\tthin\tdata\tlen\ttime")
	err := selectDevices(ctx, r, ids, func(d thin.Device) error {
		for run, err := range r.RunsOf(ctx, d.ID, thin.RunOptions{ByTime: true}) {
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(out, "%d\t%d\t%d\t%d\t%d\n", d.ID, run.Thin, run.Data, run.Len, run.Time); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return out.Flush()
}

// writeMappingsJSON streams {"pool":…,"devices":[{…,"mappings":[…]}]}: a pool's mappings need not fit into memory.
func writeMappingsJSON(ctx context.Context, w io.Writer, r *thin.Reader, pool thinPoolJSON, ids []uint32) error {
	out := newJSONStream(w)
	out.text(`{"pool":`)
	out.value(pool)
	out.text(`,"devices":[`)
	first := true
	err := selectDevices(ctx, r, ids, func(d thin.Device) error {
		out.separator(&first)
		out.text(`{"device":`)
		out.value(thinDeviceJSON(d))
		out.text(`,"mappings":[`)
		firstRun := true
		for run, err := range r.RunsOf(ctx, d.ID, thin.RunOptions{ByTime: true}) {
			if err != nil {
				return err
			}
			out.separator(&firstRun)
			out.value(thinRunJSON(run))
		}
		out.text("]}")
		return nil
	})
	if err != nil {
		return err
	}
	out.text("]}\n")
	return out.w.Flush()
}

// jsonStream writes JSON piece by piece; errors stay with the bufio.Writer until it is flushed.
type jsonStream struct{ w *bufio.Writer }

func newJSONStream(w io.Writer) *jsonStream { return &jsonStream{bufio.NewWriter(w)} }

func (s *jsonStream) text(t string) { _, _ = s.w.WriteString(t) }

func (s *jsonStream) separator(first *bool) {
	if !*first {
		s.text(",\n")
	}
	*first = false
}

// value writes a struct of numbers, strings and bools, which always encodes.
func (s *jsonStream) value(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err))
	}
	_, _ = s.w.Write(b)
}
