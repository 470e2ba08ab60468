// SPDX-License-Identifier: MIT OR Apache-2.0

// Pause holds the namespaces of a pod open. It is the only process of a sandbox image: it waits to be told to stop and
// reaps the processes that a pod with a shared process namespace orphans to it. It does what Kubernetes' build/pause
// does, without a C compiler.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// version is set by the linker.
var version = "unknown"

func main() {
	for _, argument := range os.Args[1:] {
		if strings.EqualFold(argument, "-v") {
			fmt.Println("pause (imgbuild)", version)
			return
		}
	}
	if os.Getpid() != 1 {
		// Not an error: it is also of use outside of a sandbox.
		fmt.Fprintln(os.Stderr, "warning: pause should be the first process")
	}

	// The channel remembers one pending signal of several: SIGCHLD gets its own, so that a burst of exits cannot hide
	// the request to stop. One remembered SIGCHLD is enough, since reap collects every child there is.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	child := make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)

	// A child may have died before Notify was called.
	reap()
	for {
		select {
		case received := <-stop:
			fmt.Fprintln(os.Stderr, "shutting down, got signal:", received)
			return
		case <-child:
			reap()
		}
	}
}

// reap collects every child that has exited, and does not wait for those that have not.
func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if pid <= 0 || err != nil {
			return
		}
	}
}
