// Package backendtest holds what tests of backends, and of all that stands on one, need.
//
// Run is the conformance suite: the contract of package backend as subtests, for each backend and each wrapper.
//
//	func TestContract(t *testing.T) {
//		backendtest.Run(t, func(t *testing.T) backend.Backend { return mem.New() })
//	}
//
// Three wrappers put trouble between a test and its backend. Each of them passes the suite when it injects nothing.
//
//	Faulty     one call of one method fails, is cut short, flips a bit, is slow or loses its answer
//	StopAfter  the process dies at its n-th write: loop over n to try every crash point
//	Counting   how many calls and bytes a piece of work costs
//
// A test whose fault never fired fails by itself: a fault that did not happen proves nothing.
package backendtest
