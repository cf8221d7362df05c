package main

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/thin"
)

// thinPoolJSON is the head of every `shale thin` answer in JSON.
type thinPoolJSON struct {
	BlockSize      uint64 `json:"block_size"` // bytes
	NrDataBlocks   uint64 `json:"nr_data_blocks"`
	TransactionID  uint64 `json:"transaction_id"`
	Time           uint32 `json:"time"`
	MetadataSnap   uint64 `json:"metadata_snapshot_block"` // 0 when none is held
	NeedsCheck     bool   `json:"needs_check"`
	ReadAtSnapshot bool   `json:"read_at_metadata_snapshot"`
}

func (o *thinOptions) pool(r *thin.Reader) thinPoolJSON {
	sb := r.Superblock()
	return thinPoolJSON{
		BlockSize: sb.BlockSize, NrDataBlocks: sb.NrDataBlocks, TransactionID: sb.TransactionID, Time: sb.Time,
		MetadataSnap: sb.HeldRoot, NeedsCheck: sb.NeedsCheck(), ReadAtSnapshot: o.metadataSnap,
	}
}

type thinDeviceJSON struct {
	ID            uint32 `json:"id"`
	MappedBlocks  uint64 `json:"mapped_blocks"`
	TransactionID uint64 `json:"transaction_id"`
	CreationTime  uint32 `json:"creation_time"`
	SnappedTime   uint32 `json:"snapped_time"`
}

type thinDevicesJSON struct {
	Pool    thinPoolJSON     `json:"pool"`
	Devices []thinDeviceJSON `json:"devices"`
}

func newThinDevicesCommand(a *app) *cobra.Command {
	var o thinOptions
	cmd := &cobra.Command{
		Use:   "devices META",
		Short: "List the thin devices of a pool, as thin_ls does",
		Example: `  shale thin devices /dev/mapper/vg0-tpool_tmeta --metadata-snap
  shale thin devices meta.img --json`,
		Args: exactArgs("META"),
	}
	o.flags(cmd, "text or json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		format, err := o.outputFormat(cmd, a, "text", "json")
		if err != nil {
			return err
		}
		r, err := o.open(args[0])
		if err != nil {
			return err
		}
		answer, err := o.devices(cmd.Context(), r)
		if err := finishThin(r, err); err != nil {
			return err
		}
		if format == "json" {
			return a.printJSON(answer)
		}
		return a.printThinDevices(answer)
	}
	return cmd
}

func (o *thinOptions) devices(ctx context.Context, r *thin.Reader) (thinDevicesJSON, error) {
	answer := thinDevicesJSON{Pool: o.pool(r), Devices: []thinDeviceJSON{}}
	for d, err := range r.Devices(ctx) {
		if err != nil {
			return answer, err
		}
		answer.Devices = append(answer.Devices, thinDeviceJSON(d))
	}
	return answer, nil
}

func (a *app) printThinDevices(answer thinDevicesJSON) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "DEV\tMAPPED BLOCKS\tMAPPED BYTES\tTRANSACTION\tCREATED\tSNAPPED\t")
	for _, d := range answer.Devices {
		fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\t%d\t\n", d.ID, d.MappedBlocks, d.MappedBlocks*answer.Pool.BlockSize,
			d.TransactionID, d.CreationTime, d.SnappedTime)
	}
	return w.Flush()
}
