// Package lab runs Go tests in a virtual machine with a real dm-thin kernel.
//
// The scripts beside this file do the work and can be used by hand: build prepares the guest's kernel, run boots it over
// this machine's own root file system and runs a command in it. The Go side compiles a package's tests into a static binary,
// runs that in one boot of the guest, and reports each test of the guest as a subtest:
//
//	func TestGuest(t *testing.T) {
//		lab.Guest{}.Test(t, "./guest")
//	}
//
// Such a test runs when the environment has SHALE_E2E=1 (scripts/test sets it) and skips otherwise.
package lab
