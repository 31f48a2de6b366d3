//go:build linux

package bridge

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// threadNetNS is the network namespace of the calling thread, not of the
// process's first one.
const threadNetNS = "/proc/thread-self/ns/net"

// inside runs fn on a thread that is in the network namespace ns, or where it
// is already when ns is nil.
func inside(ns *os.File, fn func() error) error {
	if ns == nil {
		return fn()
	}
	return elsewhere(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
		}
		return fn()
	})
}

// elsewhere runs fn, which may move its thread to another network namespace,
// and brings the thread back. A thread that cannot be brought back is never
// given to other goroutines: it stays locked to its goroutine and ends with
// it.
func elsewhere(fn func() error) error {
	type result struct {
		err      error
		panicked any
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(threadNetNS)
		if err != nil {
			runtime.UnlockOSThread()
			done <- result{err: fmt.Errorf("open the thread's network namespace: %w", err)}
			return
		}
		var r result
		func() {
			defer func() { r.panicked = recover() }()
			r.err = fn()
		}()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		_ = home.Close() // read-only
		done <- r
	}()
	r := <-done
	if r.panicked != nil {
		panic(r.panicked)
	}
	return r.err
}
