// Command suite measures shale beside its peers (restic, borg, casync, kopia, desync) on the same data in one run, and writes a
// Markdown table and an SVG plot. bench/run builds and starts it; bench/README.md says how to read what it writes.
//
// Every measured command runs below a small process of its own, which waits for all that the command starts: CPU time, peak
// memory and bytes read are those of the whole process tree, by the kernel's own accounts. A tool's answers are checked: what it
// restores, and what its mount shows, must be what was backed up.
//
// With -quick it measures shale alone, in this process and on data made in plain Go, and counts what does not depend on the machine:
// bytes, objects, requests, metadata blocks, allocations. A count that rose above testdata/quick.json is a failure; a time never is.
package main
