package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/thin"
)

// thinOptions are the flags that all thin commands share.
type thinOptions struct {
	metadataSnap    bool
	allowNeedsCheck bool
	format          string
}

func newThinCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "thin",
		Short: "Read the metadata of a device-mapper thin pool",
		Long: `Read the metadata of a device-mapper thin pool: META is a file or a block device.
An active pool is read at its metadata snapshot: reserve one (dmsetup message POOL 0 reserve_metadata_snap)
and give --metadata-snap. Nothing is ever written.`,
	}
	asGroup(cmd)
	cmd.AddCommand(newThinDevicesCommand(a), newThinMappingsCommand(a), newThinDeltaCommand(a))
	return cmd
}

func (o *thinOptions) flags(cmd *cobra.Command, formats string) {
	cmd.Flags().BoolVarP(&o.metadataSnap, "metadata-snap", "m", false, "read the state that the pool's metadata snapshot holds")
	cmd.Flags().BoolVar(&o.allowNeedsCheck, "allow-needs-check", false, "read a pool that is marked needs_check")
	cmd.Flags().StringVarP(&o.format, "format", "f", "text", "output format: "+formats)
}

// outputFormat settles --format with the global --json.
func (o *thinOptions) outputFormat(cmd *cobra.Command, a *app, known ...string) (string, error) {
	format := o.format
	if a.json {
		if cmd.Flags().Changed("format") && format != "json" {
			return "", usagef(cmd, "--json and --format %s exclude each other", format)
		}
		format = "json"
	}
	for _, k := range known {
		if k == format {
			a.json = a.json || format == "json"
			return format, nil
		}
	}
	return "", usagef(cmd, "unknown format %q, known are %v", format, known)
}

func (o *thinOptions) open(path string) (*thin.Reader, error) {
	r, err := thin.Open(path, thin.Options{MetadataSnapshot: o.metadataSnap, AllowNeedsCheck: o.allowNeedsCheck})
	switch {
	case errors.Is(err, thin.ErrInUse), errors.Is(err, thin.ErrNoMetadataSnapshot):
		return nil, fmt.Errorf("%w (dmsetup message POOL 0 reserve_metadata_snap, then --metadata-snap)", err)
	case errors.Is(err, thin.ErrNeedsCheck):
		return nil, fmt.Errorf("%w, or read it as it is with --allow-needs-check", err)
	}
	return r, err
}

// finishThin checks that the metadata stayed as it was while read, and closes it.
func finishThin(r *thin.Reader, err error) error {
	if err == nil {
		err = r.Recheck()
	}
	if closeErr := r.Close(); err == nil {
		err = closeErr
	}
	return err
}
