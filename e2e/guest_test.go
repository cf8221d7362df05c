package e2e

import (
	"os"
	"testing"
	"time"

	"github.com/shalebackup/shale/e2e/lab"
)

// TestGuest runs package guest's tests in the guest, each as a subtest.
func TestGuest(t *testing.T) {
	lab.Require(t)
	var pattern []string
	if p := os.Getenv("SHALE_GUEST_RUN"); p != "" {
		pattern = append(pattern, p)
	}
	shale := lab.Compile(t, "build", "github.com/shalebackup/shale/cmd/shale")
	lab.Guest{Timeout: 18 * time.Minute, Env: []string{"SHALE_BINARY=" + shale}}.Test(t, "./guest", pattern...)
}
