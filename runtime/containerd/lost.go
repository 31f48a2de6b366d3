//go:build linux

package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

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

const (
	// startPatience is how long runc may take to make or to start a container,
	// on a machine that does a hundred other things.
	startPatience = 2 * time.Minute
	// abortPatience is how long it may go on when nobody waits for it any more.
	abortPatience = time.Second
	// answerPatience is how long after the end of runc a shim may take to say
	// so.
	answerPatience = 30 * time.Second
)

// errNoAnswer is the error of a call that did not return when there was nothing
// left to wait for.
var errNoAnswer = errors.New("no answer")

// seeThrough makes a call that has a shim run runc. One that is given up goes
// on in the shim, so it is seen to its end, which is near; or it is made to end:
// runc waits for ever for the answer of a process that was killed before it
// could give one, as a seccomp profile may do.
func (r *Runtime) seeThrough(ctx context.Context, task string, call func(context.Context) error) error {
	callCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- call(callCtx) }()
	patience := time.NewTimer(startPatience)
	defer patience.Stop()
	given := ctx.Done()
	for {
		select {
		case err := <-ended:
			return err
		case <-given:
			given = nil
			patience.Reset(abortPatience)
			continue
		case <-patience.C:
		}
		break
	}
	if err := r.killRunc(task); err != nil {
		return err
	}
	patience.Reset(answerPatience)
	select {
	case err := <-ended:
		if err == nil || ctx.Err() != nil {
			return err
		}
		return fmt.Errorf("runc did not end within %v and was killed: is its process allowed all that a start needs? %w", startPatience, err)
	case <-patience.C:
		cancel()
		<-ended
		return errNoAnswer
	}
}

// killRunc ends the runc that makes or starts a container.
func (r *Runtime) killRunc(task string) error {
	root := filepath.Join(r.runcRoot(), r.store.ns)
	return killByArgs(func(args []string) bool {
		// What /proc has ends with a zero.
		return len(args) > 2 && args[len(args)-2] == task && slices.Contains(args, root)
	})
}

// killByArgs kills every process whose arguments match, and waits for their
// ends, until there is none: they may start one another. One that has started
// another and ended while this looked has hidden it, so it looks once more.
func killByArgs(match func(args []string) bool) error {
	for clean := 0; clean < 2; clean++ {
		files, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
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
				clean = -1
				if unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil {
					_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
				}
			}
			unix.Close(fd)
		}
	}
	return nil
}
