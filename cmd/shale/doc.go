// Command shale backs up block volumes.
//
// Each command lives in a file of its own: flags into an options struct, one call into a room below, one print. Answers go
// to stdout, talk to stderr; with --json an answer is one JSON document and a failure is {"error": ...}.
//
// Exit codes: 0 done, 1 failed, 2 usage, 3 damage found, 130 interrupted.
package main
