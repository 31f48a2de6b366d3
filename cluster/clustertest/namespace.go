//go:build linux

package clustertest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// enter runs f on a thread that is in the given namespaces. The thread ends with
// it, since it could not be given to other goroutines again.
func enter(f func() error, namespaces ...*os.File) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if unix.Gettid() == unix.Getpid() {
			// The first thread would not end. While it is held another is used.
			done <- enter(f, namespaces...)
			runtime.UnlockOSThread()
			return
		}
		done <- func() error {
			// A thread that shares its root and working folder with others
			// cannot change its mount namespace.
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			for _, ns := range namespaces {
				if err := unix.Setns(int(ns.Fd()), 0); err != nil {
					return fmt.Errorf("enter namespace %s: %w", ns.Name(), err)
				}
			}
			return f()
		}()
	}()
	return <-done
}

// namespaces makes new namespaces, prepares them, and binds each to a file, so
// that they outlive the program. It returns the network namespace.
func (r *record) namespaces(name string, flags int, prepare func() error) (*os.File, error) {
	kinds := []struct {
		flag int
		kind string
	}{{unix.CLONE_NEWNET, "net"}, {unix.CLONE_NEWUTS, "uts"}, {unix.CLONE_NEWNS, "mnt"}}
	ready, bound, ended := make(chan error, 1), make(chan struct{}), make(chan struct{})
	tid := 0
	var begin func()
	begin = func() {
		runtime.LockOSThread()
		if tid = unix.Gettid(); tid == unix.Getpid() { // see enter
			go begin()
			<-ended
			runtime.UnlockOSThread()
			return
		}
		defer close(ended)
		err := unix.Unshare(flags)
		if err == nil && flags&unix.CLONE_NEWNS != 0 {
			// What is mounted here stays here.
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = prepare()
		}
		ready <- err
		<-bound
	}
	go begin()
	err := <-ready
	for _, k := range kinds {
		if err != nil || flags&k.flag == 0 {
			continue
		}
		path := r.pin(name, k.kind)
		if err = os.WriteFile(path, nil, 0o600); err == nil {
			err = unix.Mount("/proc/self/task/"+strconv.Itoa(tid)+"/ns/"+k.kind, path, "", unix.MS_BIND, "")
		}
	}
	close(bound)
	<-ended
	if err != nil {
		return nil, err
	}
	return os.Open(r.pin(name, "net"))
}

// unpin lets go of a namespace.
func unpin(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // not mounted, or not there
		err = nil
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
