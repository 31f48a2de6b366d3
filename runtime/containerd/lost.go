//go:build linux

package containerd

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What a program that was killed had begun goes on without it: a shim that is
// being started, or a container that a shim is making. The next program ends
// these before it clears up, or they would come into being behind its back.

// killLost kills the processes of a shim that nobody has a use for. The ID was
// drawn at random: who has it as an argument is the shim, or what starts it.
func killLost(id string) error {
	return killByArgs(func(args []string) bool {
		i := slices.Index(args, id)
		return i > 0 && args[i-1] == "-id"
	})
}

// abort ends the making of a container that its shim was asked for by a
// program that died: it takes the bundle's configuration away, so that no runc
// begins, and kills the one that has.
func (r *Runtime) abort(id string) error {
	bundle := r.bundle(id)
	if err := os.RemoveAll(filepath.Join(bundle, "config.json")); err != nil {
		return err
	}
	return killByArgs(func(args []string) bool {
		return filepath.Base(args[0]) == filepath.Base(r.bin.runc) && slices.Contains(args, bundle)
	})
}

// killByArgs kills every process whose arguments match, and waits for their
// ends, until there is none: they may start one another.
func killByArgs(match func(args []string) bool) error {
	for {
		files, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
		found := false
		for _, path := range files {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				return err
			}
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue // it has ended
			}
			// The descriptor is of the process whose arguments are read, or
			// of none that lives.
			text, err := os.ReadFile(path)
			if err == nil && match(strings.Split(string(text), "\x00")) {
				found = true
				if unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil {
					_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
				}
			}
			unix.Close(fd)
		}
		if !found {
			return nil
		}
	}
}
