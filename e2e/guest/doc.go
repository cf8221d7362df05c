// Package guest has the tests that run inside the lab guest (package e2e says how), and what they share. Outside the guest its
// test binary runs none of them: they make and break block devices.
package guest
