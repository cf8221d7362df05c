package e2e

import (
	"os"
	"testing"

	"github.com/shalebackup/shale/e2e/lab"
)

// TestGuest runs package guest's tests in the guest, each as a subtest.
func TestGuest(t *testing.T) {
	var pattern []string
	if p := os.Getenv("SHALE_GUEST_RUN"); p != "" {
		pattern = append(pattern, p)
	}
	lab.Guest{}.Test(t, "./guest", pattern...)
}
