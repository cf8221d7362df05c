package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// Config of a Host. The zero value works on a real system.
type Config struct {
	// StateDir holds the claim files. Programs that share a pool must share it. Default /var/lib/shale/pool.
	StateDir string

	// Watchdog is the command line whose process calls RunWatchdog; the volume and the limit are appended.
	// Default: this program, with the argument WatchdogCommand.
	Watchdog []string

	// MaxFreeze is the longest that a snapshot may keep its volume frozen, writing out what the file system holds included.
	// The watchdog ends the freeze then, and the snapshot fails. Default 30 s.
	MaxFreeze time.Duration

	// HeldWait is how long Reserve waits for another program to release its metadata snapshot. Default 30 s; negative: not
	// at all. For another shale it waits as long as its context lets it.
	HeldWait time.Duration
}

// Host is the device-mapper of this machine. It keeps no state of its own and may be used from many goroutines.
type Host struct {
	conf  Config
	cmd   runner
	node  func(DevNo) (string, error) // path of a block device
	guard func(ctx context.Context, device string, limit time.Duration) (guard, error)
}

// New returns the Host; it asks the system nothing.
func New(c Config) *Host {
	if c.StateDir == "" {
		c.StateDir = "/var/lib/shale/pool"
	}
	if c.MaxFreeze <= 0 {
		c.MaxFreeze = 30 * time.Second
	}
	if c.HeldWait == 0 {
		c.HeldWait = 30 * time.Second
	}
	h := &Host{conf: c, cmd: execRunner{}, node: blockNode}
	h.guard = h.startWatchdog
	return h
}

// dmsetup runs one dmsetup command. Names come after "--": they may begin with a dash.
func (h *Host) dmsetup(ctx context.Context, args ...string) (string, error) {
	return h.cmd.run(ctx, command{name: "dmsetup", args: args})
}

// message sends a message to a pool.
func (h *Host) message(ctx context.Context, pool, text string) error {
	_, err := h.dmsetup(ctx, "message", "--", pool, "0", text)
	return err
}

// deviceInfo is what device-mapper knows of each of its devices.
type deviceInfo struct {
	name      string
	uuid      string // LVM's begin with "LVM-"; usually empty for others
	dev       DevNo
	suspended bool
	readOnly  bool
	open      int // how often it is open, or used by other devices
}

func (i deviceInfo) lvm() bool { return strings.HasPrefix(i.uuid, "LVM-") }

// infoFields: the name is last, because it may contain the separator.
var infoFields = []string{"info", "-c", "--noheadings", "--separator", "|", "-o", "uuid,major,minor,attr,open,name"}

func (h *Host) infoByName(ctx context.Context, name string) (deviceInfo, error) {
	return h.info(ctx, "--", name)
}

func (h *Host) infoByDev(ctx context.Context, d DevNo) (deviceInfo, error) {
	return h.info(ctx, "-j", fmt.Sprint(d.Major), "-m", fmt.Sprint(d.Minor))
}

func (h *Host) info(ctx context.Context, which ...string) (deviceInfo, error) {
	out, err := h.dmsetup(ctx, append(infoFields[:len(infoFields):len(infoFields)], which...)...)
	if err != nil {
		return deviceInfo{}, err
	}
	return parseInfo(out)
}

// parseInfo reads "uuid|253|1|L-sw|2|name".
func parseInfo(out string) (deviceInfo, error) {
	line := strings.TrimRight(out, "\n")
	f := strings.SplitN(strings.TrimLeft(line, " "), "|", 6)
	if len(f) != 6 {
		return deviceInfo{}, fmt.Errorf("dmsetup info %q is not understood", line)
	}
	dev, err := parseDevNo(f[1] + ":" + f[2])
	open, ok := parseCount(f[4])
	if err != nil || !ok {
		return deviceInfo{}, fmt.Errorf("dmsetup info %q is not understood", line)
	}
	return deviceInfo{uuid: f[0], dev: dev, suspended: strings.Contains(f[3], "s"),
		readOnly: strings.Contains(f[3], "r"), open: int(open), name: f[5]}, nil
}

// Status asks a pool for its state. It does not wait for the pool's I/O, so that it answers when the pool is full, too.
func (h *Host) Status(ctx context.Context, p Pool) (Status, error) {
	out, err := h.dmsetup(ctx, "status", "--noflush", "--", p.Name)
	if err != nil {
		return Status{}, fmt.Errorf("status of pool %s: %w", p.Name, err)
	}
	s, err := parseStatus(out)
	if err != nil {
		return Status{}, fmt.Errorf("status of pool %s: %w", p.Name, err)
	}
	return s, nil
}

// ThinStatus asks an active thin volume for its state.
func (h *Host) ThinStatus(ctx context.Context, v Volume) (ThinStatus, error) {
	if v.Device == "" {
		return ThinStatus{}, fmt.Errorf("status of %s: %w", v.Name, ErrInactive)
	}
	out, err := h.dmsetup(ctx, "status", "--noflush", "--", v.Device)
	if err != nil {
		return ThinStatus{}, fmt.Errorf("status of %s: %w", v.Name, err)
	}
	s, err := parseThinStatus(out)
	if err != nil {
		return ThinStatus{}, fmt.Errorf("status of %s: %w", v.Name, err)
	}
	return s, nil
}

// sleep waits, unless ctx ends first.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stateDir makes Config.StateDir where it is missing.
func (h *Host) stateDir() (string, error) {
	if err := os.MkdirAll(h.conf.StateDir, 0o700); err != nil {
		if errors.Is(err, os.ErrPermission) {
			return "", fmt.Errorf("state folder: %w: %w", ErrPermission, err)
		}
		return "", fmt.Errorf("state folder: %w", err)
	}
	return h.conf.StateDir, nil
}
