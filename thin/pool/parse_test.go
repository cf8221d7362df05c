package pool

import (
	"errors"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

func TestParseStatus(t *testing.T) {
	rows := []struct {
		name, out string
		want      Status
		write     error
	}{
		{"writable, held", "0 393216 thin-pool 3 221/2048 614/3072 445 rw discard_passdown queue_if_no_space - 512 \n",
			Status{Mode: ModeWritable, TransactionID: 3, UsedMetadataBlocks: 221, MetadataBlocks: 2048, UsedDataBlocks: 614, DataBlocks: 3072, HeldRoot: 445}, nil},
		{"not held", "0 614400 thin-pool 0 214/2048 0/4800 - rw no_discard_passdown error_if_no_space - 512 ",
			Status{Mode: ModeWritable, UsedMetadataBlocks: 214, MetadataBlocks: 2048, DataBlocks: 4800, ErrorIfNoSpace: true}, nil},
		{"full", "0 32768 thin-pool 0 215/2048 256/256 - out_of_data_space discard_passdown error_if_no_space - 512 ",
			Status{Mode: ModeOutOfDataSpace, UsedMetadataBlocks: 215, MetadataBlocks: 2048, UsedDataBlocks: 256, DataBlocks: 256, ErrorIfNoSpace: true}, ErrOutOfSpace},
		{"needs check", "0 131072 thin-pool 1 9/2048 0/1024 - ro discard_passdown queue_if_no_space needs_check 512 ",
			Status{Mode: ModeReadOnly, TransactionID: 1, UsedMetadataBlocks: 9, MetadataBlocks: 2048, DataBlocks: 1024, NeedsCheck: true}, ErrNeedsCheck},
		{"read-only, fields of an old kernel", "0 131072 thin-pool 1 9/2048 0/1024 - ro",
			Status{Mode: ModeReadOnly, TransactionID: 1, UsedMetadataBlocks: 9, MetadataBlocks: 2048, DataBlocks: 1024}, ErrReadOnly},
		{"failed", "0 131072 thin-pool Fail", Status{Mode: ModeFailed}, ErrFailed},
		{"cannot count", "0 131072 thin-pool Error", Status{Mode: ModeFailed}, ErrFailed},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			got, err := parseStatus(r.out)
			if err != nil || got != r.want {
				t.Fatalf("%q:\n got %+v, %v\nwant %+v", r.out, got, err, r.want)
			}
			if err := got.WriteErr(); !errors.Is(err, r.write) {
				t.Errorf("WriteErr: got %v, want %v", err, r.write)
			}
		})
	}
	for _, bad := range []string{"", "0 1", "0 1 thin-pool", "0 1 thin-pool 1 2 3/4 - rw", "0 1 thin-pool 1 2/3 4/5 x rw", "0 1 thin-pool 1 2/3 4/5 - odd",
		"0 1 linear 7:0 0", "0 -5 thin-pool Fail", "0 1 thin-pool 1 2/3 4/5 - rw\n1 1 linear 7:0 0"} {
		if s, err := parseStatus(bad); err == nil {
			t.Errorf("%q: parsed as %+v", bad, s)
		}
	}
}

func TestParseTables(t *testing.T) {
	tt, err := parseThinTable("0 204800 thin 253:5 16777215\n")
	if want := (thinTable{sizeBytes: 104857600, pool: DevNo{253, 5}, deviceID: maxDeviceID}); err != nil || tt != want {
		t.Errorf("thin: got %+v, %v, want %+v", tt, err, want)
	}
	if tt, err = parseThinTable("0 8 thin 253:5 1 7:3"); err != nil || tt.externalOrigin != "7:3" {
		t.Errorf("external origin: %+v, %v", tt, err)
	}
	for _, bad := range []string{"", "0 8 thin 253:5", "0 8 thin 253 1", "0 8 thin 253:5 16777216", "0 8 thin 253:5 -1", "0 99999999999999999999 thin 253:5 1"} {
		if tt, err := parseThinTable(bad); err == nil {
			t.Errorf("%q: parsed as %+v", bad, tt)
		}
	}
	if _, err := parseThinTable("0 409600 linear 253:5 0"); !errors.Is(err, ErrNotThin) {
		t.Errorf("linear: %v", err)
	}
	pt, err := parsePoolTable("0 614400 thin-pool 7:0 7:1 384 0 2 skip_block_zeroing error_if_no_space ")
	want := poolTable{sizeBytes: 314572800, metadata: DevNo{7, 0}, data: DevNo{7, 1}, blockBytes: 192 << 10, features: []string{"skip_block_zeroing", "error_if_no_space"}}
	if err != nil || !reflect.DeepEqual(pt, want) {
		t.Errorf("pool: got %+v, %v, want %+v", pt, err, want)
	}
	for _, bad := range []string{"0 1 thin-pool 7:0 7:1 0 0 0", "0 1 thin-pool 7:0 7:1 100 0 0", "0 1 thin-pool 7:0 7:1", "0 1 thin-pool a b 128 0 0"} {
		if pt, err := parsePoolTable(bad); err == nil {
			t.Errorf("%q: parsed as %+v", bad, pt)
		}
	}
}

func TestParseThinStatus(t *testing.T) {
	for out, want := range map[string]ThinStatus{
		"0 131072 thin 93696 131071": {MappedBytes: 93696 * 512},
		"0 131072 thin 0 -":          {},
		"0 131072 thin Fail":         {Failed: true},
		"0 131072 thin -":            {Failed: true},
	} {
		if got, err := parseThinStatus(out); err != nil || got != want {
			t.Errorf("%q: got %+v, %v, want %+v", out, got, err, want)
		}
	}
	if s, err := parseThinStatus("0 131072 thin x"); err == nil {
		t.Errorf("parsed as %+v", s)
	}
}

func TestLVMNames(t *testing.T) {
	for _, r := range []struct{ vg, lv, dm string }{{"vg0", "home", "vg0-home"}, {"vg-a", "my-vol", "vg--a-my--vol"}, {"a--b", "c-", "a----b-c--"}} {
		if got := mangleLVM(r.vg, r.lv); got != r.dm {
			t.Errorf("%s/%s: got %s, want %s", r.vg, r.lv, got, r.dm)
		}
		if got := splitLVM(r.dm); !reflect.DeepEqual(got, []string{r.vg, r.lv}) {
			t.Errorf("%s: got %q", r.dm, got)
		}
	}
	if got := splitLVM("vg--a-tp-tpool"); !reflect.DeepEqual(got, []string{"vg-a", "tp", "tpool"}) {
		t.Errorf("pool: got %q", got)
	}
	for name, want := range map[string]bool{"vg0/home": true, "/dev/vg0/home": true, "home": false, "/dev/home": false, "/dev/mapper/home": false,
		"/dev/disk/by-id": false, "/srv/x": false, "a/b/c": false, "/": false, "vg/": false, "/x": false} {
		if _, _, ok := lvmName(name); ok != want {
			t.Errorf("%q: is LVM's: %v", name, ok)
		}
	}
	if name := snapshotName(strings.Repeat("x-", 80), "0a1b2c3d"); len(name) != maxLVName || !strings.HasSuffix(name, "-0a1b2c3d") {
		t.Errorf("long name: %s", name)
	}
}

func TestParseLogicalVolume(t *testing.T) {
	got, err := parseLogicalVolume("  tp|2|104857600|shale,mine\n")
	if want := (logicalVolume{"tp", 2, 104857600, []string{"shale", "mine"}}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := parseLogicalVolume("||209715200|"); !errors.Is(err, ErrNotThin) {
		t.Errorf("a pool: %v", err)
	}
	for _, bad := range []string{"", "a|b", "tp|x|1|", "tp|1|x|"} {
		if l, err := parseLogicalVolume(bad); err == nil {
			t.Errorf("%q: parsed as %+v", bad, l)
		}
	}
}

// TestCommandErrors: texts as dmsetup 1.02.185 and lvm 2.03.16 print them.
func TestCommandErrors(t *testing.T) {
	rows := []struct {
		stderr string
		want   error
		errno  syscall.Errno
	}{
		{"device-mapper: message ioctl on pool  failed: File exists\nCommand failed.\n", ErrExists, syscall.EEXIST},
		{"device-mapper: message ioctl on pool  failed: No data available\nCommand failed.\n", ErrNotFound, syscall.ENODATA},
		{"device-mapper: message ioctl on pool  failed: Device or resource busy\nCommand failed.\n", ErrBusy, syscall.EBUSY},
		{"device-mapper: message ioctl on pool  failed: Operation not supported\nCommand failed.\n", ErrReadOnly, syscall.EOPNOTSUPP},
		{"device-mapper: table ioctl on  (253:77) failed: No such device or address\nCommand failed.\n", ErrNotFound, syscall.ENXIO},
		{"Device does not exist.\nCommand failed.\n", ErrNotFound, 0},
		{"/dev/mapper/control: open failed: Permission denied\nFailure to communicate with kernel device-mapper driver.\nCommand failed.\n", ErrPermission, syscall.EACCES},
		{"/dev/mapper/control: open failed: No such device\nFailure to communicate with kernel device-mapper driver.\nCommand failed.\n", ErrNoKernel, syscall.ENODEV},
		{"  Failed to find logical volume \"vg-a/nope\"\n", ErrNotFound, 0},
		{"  Volume group \"no\" not found\n  Cannot process volume group no\n", ErrNotFound, 0},
		{"  Logical volume vg/lv contains a filesystem in use.\n", ErrBusy, 0},
	}
	for _, r := range rows {
		err := error(newCommandError("dmsetup x", r.stderr, errors.New("exit status 1")))
		if !errors.Is(err, r.want) || (r.errno != 0 && !errors.Is(err, r.errno)) {
			t.Errorf("%q: got %v, want %v and %v", r.stderr, err, r.want, r.errno)
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("several lines: %q", err)
		}
	}
	other := errors.New("exit status 3")
	if err := newCommandError("x", "what is this\n", other); !errors.Is(err, other) || answered(err) {
		t.Errorf("unknown text: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("0 393216 thin-pool 3 221/2048 614/3072 445 rw discard_passdown queue_if_no_space - 512 \n")
	f.Add("0 204800 thin 253:5 1 7:3")
	f.Add("|253|1|L-sw|2|na|me")
	f.Add("tp|2|104857600|shale")
	f.Fuzz(func(t *testing.T, out string) {
		if s, err := parseStatus(out); err == nil && s.Mode == "" {
			t.Errorf("no mode in %q", out)
		}
		if tt, err := parseThinTable(out); err == nil && (tt.sizeBytes < 0 || tt.deviceID > maxDeviceID) {
			t.Errorf("%q: %+v", out, tt)
		}
		if pt, err := parsePoolTable(out); err == nil && (pt.sizeBytes < 0 || pt.blockBytes < 64<<10) {
			t.Errorf("%q: %+v", out, pt)
		}
		if s, err := parseThinStatus(out); err == nil && s.MappedBytes < 0 {
			t.Errorf("%q: %+v", out, s)
		}
		if l, err := parseLogicalVolume(out); err == nil && (l.sizeBytes < 0 || l.deviceID > maxDeviceID) {
			t.Errorf("%q: %+v", out, l)
		}
		if i, err := parseInfo(out); err == nil && i.open < 0 {
			t.Errorf("%q: %+v", out, i)
		}
	})
}
