package guest

import (
	"os"
	"testing"
)

// lvmConf keeps LVM to the loop devices, and from waiting for the udevd that the guest does not have.
const lvmConf = `devices { use_devicesfile=0 filter=["a|/dev/loop|","r|.*|"] obtain_device_list_from_udev=0 scan="/dev" }
activation { udev_sync=0 udev_rules=0 monitoring=0 }
backup { backup=0 archive=0 }
global { event_activation=0 }
`

// NewVG makes a volume group with a thin pool named tp (64 KiB blocks) until the end of the test.
func NewVG(t testing.TB, vg string, sizeMiB int64, poolSize string) {
	t.Helper()
	if err := os.WriteFile("/etc/lvm/lvm.conf", []byte(lvmConf), 0o644); err != nil {
		t.Fatal(err)
	}
	dev := Disk(t, sizeMiB)
	Run(t, "pvcreate", "-q", dev)
	Run(t, "vgcreate", "-q", vg, dev)
	t.Cleanup(func() { Run(t, "vgremove", "-q", "--force", "--yes", vg) })
	Run(t, "lvcreate", "-q", "-y", "--type", "thin-pool", "-L", poolSize, "--poolmetadatasize", "8M", "-c", "64k", "-Z", "y", "-n", "tp", vg)
}
