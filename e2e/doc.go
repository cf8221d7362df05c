// Package e2e has shale's end-to-end tests: against a real dm-thin kernel and its NFS server, in the guest of package lab. They run when the
// environment has SHALE_E2E=1, and skip otherwise.
//
//	scripts/setup                                     once: what the guest needs
//	SHALE_E2E=1 go test -count=1 -timeout 20m ./e2e/...   all: some minutes, the more the busier the machine
//	SHALE_E2E=1 go test -count=1 -v ./e2e -run TestGuest/TestSnapshotWhileWriting
//	SHALE_GUEST_RUN=TestSnapshot SHALE_E2E=1 ...      boot for the tests of that name only
//
// To add one, write an ordinary Go test in package guest: it runs in the guest as root, with device-mapper, loop devices, LVM,
// the file systems' tools, and the shale command of this tree. NewPool there makes a pool. Tests of one package share one boot,
// which takes some 6 s on an emulated processor; what needs disks of its own, or a crash of the machine, calls lab.Guest with a
// package of its own.
package e2e
