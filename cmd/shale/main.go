package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

// gcPercent lets the heap grow by a quarter, not to the double, between two collections: what lives long are a few large buffers, so
// that collections are rare and cheap anyhow.
const gcPercent = 25

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, stop := signal.NotifyContext(context.Background(), append(heeded(os.Interrupt, syscall.SIGHUP), syscall.SIGTERM)...)
	context.AfterFunc(ctx, stop) // so that a second signal ends the process at once
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// heeded leaves out the signals that this process was started to ignore, as nohup and a shell's & do.
func heeded(all ...os.Signal) (heeded []os.Signal) {
	for _, s := range all {
		if !signal.Ignored(s) {
			heeded = append(heeded, s)
		}
	}
	return heeded
}
