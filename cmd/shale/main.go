package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
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
