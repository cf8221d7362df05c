package thin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"io"
)

// The XML of thin-provisioning-tools 0.9, byte for byte: thin_dump (thin/xml_format.cc of it) and thin_delta
// (thin/thin_delta.cc). Both are written as they are read.

// WriteDumpXML writes what `thin_dump` prints: all devices with their mappings, or only the given ones.
func (r *Reader) WriteDumpXML(ctx context.Context, w io.Writer, ids ...uint32) error {
	out := bufio.NewWriterSize(w, 64<<10)
	fmt.Fprintf(out, "<superblock uuid=\"%s\" time=\"%d\" transaction=\"%d\" flags=\"%d\" version=\"%d\" data_block_size=\"%d\" nr_data_blocks=\"%d\">\n",
		r.uuidXML(), r.sb.Time, r.sb.TransactionID, r.sb.Flags, r.sb.Version, r.sb.BlockSize/sectorSize, r.rawNr)
	if len(ids) == 0 {
		for dev, err := range r.Devices(ctx) {
			if err != nil {
				return err
			}
			if err := r.dumpDevice(ctx, out, dev); err != nil {
				return err
			}
		}
	}
	for _, id := range ids {
		dev, err := r.Device(ctx, id)
		if err != nil {
			return err
		}
		if err := r.dumpDevice(ctx, out, dev); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "</superblock>\n")
	return out.Flush()
}

func (r *Reader) dumpDevice(ctx context.Context, out *bufio.Writer, dev Device) error {
	fmt.Fprintf(out, "  <device dev_id=\"%d\" mapped_blocks=\"%d\" transaction=\"%d\" creation_time=\"%d\" snap_time=\"%d\">\n",
		dev.ID, dev.MappedBlocks, dev.TransactionID, dev.CreationTime, dev.SnappedTime)
	for run, err := range r.RunsOf(ctx, dev.ID, RunOptions{ByTime: true}) {
		if err != nil {
			return err
		}
		if run.Len == 1 {
			_, err = fmt.Fprintf(out, "    <single_mapping origin_block=\"%d\" data_block=\"%d\" time=\"%d\"/>\n", run.Thin, run.Data, run.Time)
		} else {
			_, err = fmt.Fprintf(out, "    <range_mapping origin_begin=\"%d\" data_begin=\"%d\" length=\"%d\" time=\"%d\"/>\n",
				run.Thin, run.Data, run.Len, run.Time)
		}
		if err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(out, "  </device>\n")
	return err
}

// WriteDeltaXML writes what `thin_delta --thin1 from --thin2 to` prints, with --verbose when verbose. It names unchanged
// runs too, so that it reads one of the trees whole.
func (r *Reader) WriteDeltaXML(ctx context.Context, w io.Writer, from, to uint32, verbose bool) error {
	out := bufio.NewWriterSize(w, 64<<10)
	fmt.Fprintf(out, "<superblock uuid=\"%s\" time=\"%d\" transaction=\"%d\" data_block_size=\"%d\" nr_data_blocks=\"%d\">\n",
		r.uuidXML(), r.sb.Time, r.sb.TransactionID, r.sb.BlockSize/sectorSize, r.rawNr)
	fmt.Fprintf(out, "  <diff left=\"%d\" right=\"%d\">\n", from, to)
	body := &deltaXML{out: out, verbose: verbose}
	for c, err := range r.Diff(ctx, from, to, DiffOptions{Unchanged: true}) {
		if err != nil {
			return err
		}
		if err := body.add(c); err != nil {
			return err
		}
	}
	body.finish()
	fmt.Fprintf(out, "  </diff>\n</superblock>\n")
	return out.Flush()
}

// uuidXML is the text up to the first zero byte; pools made by the kernel have none.
func (r *Reader) uuidXML() string {
	id, _, _ := bytes.Cut(r.sb.UUID[:], []byte{0})
	var b bytes.Buffer
	_ = xml.EscapeText(&b, id) // a bytes.Buffer takes everything
	return b.String()
}

// deltaXML groups changes as thin_delta does: into runs of one kind, or, verbose, into elements of one kind that hold
// the runs with their data blocks.
type deltaXML struct {
	out     *bufio.Writer
	verbose bool
	last    Change // plain: the run that may still grow; verbose: its Kind is that of the open element
}

func (d *deltaXML) add(c Change) error {
	if d.verbose {
		return d.addVerbose(c)
	}
	if d.last.Kind == c.Kind && d.last.Thin+d.last.Len == c.Thin {
		d.last.Len += c.Len
		return nil
	}
	err := d.flush()
	d.last = c
	return err
}

func (d *deltaXML) flush() error {
	if d.last.Len == 0 {
		return nil
	}
	_, err := fmt.Fprintf(d.out, "    <%s begin=\"%d\" length=\"%d\"/>\n", d.last.Kind.DeltaName(), d.last.Thin, d.last.Len)
	return err
}

func (d *deltaXML) addVerbose(c Change) error {
	if c.Kind != d.last.Kind {
		d.finish()
		fmt.Fprintf(d.out, "    <%s>\n", c.Kind.DeltaName())
	}
	d.last = c
	var err error
	switch c.Kind {
	case Changed:
		_, err = fmt.Fprintf(d.out, "      <range begin=\"%d\" left_data_begin=\"%d\" right_data_begin=\"%d\" length=\"%d\"/>\n",
			c.Thin, c.FromData, c.ToData, c.Len)
	case Added:
		_, err = fmt.Fprintf(d.out, "      <range begin=\"%d\" data_begin=\"%d\" length=\"%d\"/>\n", c.Thin, c.ToData, c.Len)
	default:
		_, err = fmt.Fprintf(d.out, "      <range begin=\"%d\" data_begin=\"%d\" length=\"%d\"/>\n", c.Thin, c.FromData, c.Len)
	}
	return err
}

// finish ends what is open; a failed write stays with the bufio.Writer until it is flushed.
func (d *deltaXML) finish() {
	switch {
	case d.last.Len == 0:
	case d.verbose:
		fmt.Fprintf(d.out, "    </%s>\n", d.last.Kind.DeltaName())
	default:
		_ = d.flush()
	}
}

// DeltaName is thin_delta's word for the kind.
func (k ChangeKind) DeltaName() string {
	switch k {
	case Unchanged:
		return "same"
	case Changed:
		return "different"
	case Removed:
		return "left_only"
	case Added:
		return "right_only"
	}
	return k.String()
}
