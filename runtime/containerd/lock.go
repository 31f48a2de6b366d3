//go:build linux

package containerd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked is the error of Open for a root that another Runtime has open, in
// this process or in another.
var ErrLocked = errors.New("the root is in use by another runtime")

// A process that is killed while it starts a shim leaves, for the moment from
// fork to exec, a child that holds its lock. So a lock that another process
// has is tried for this long.
const (
	lockPatience = time.Second
	lockRetry    = 10 * time.Millisecond
)

// lockRoot locks a file for as long as it is open. The lock goes with the
// process, however that ends.
func lockRoot(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*os.File, error) {
		f.Close()
		return nil, err
	}
	self := strconv.Itoa(os.Getpid())
	retry := time.NewTicker(lockRetry)
	defer retry.Stop()
	for deadline := time.Now().Add(lockPatience); ; <-retry.C {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if err != unix.EWOULDBLOCK {
			return fail(fmt.Errorf("lock %s: %w", path, err))
		}
		holder, err := io.ReadAll(io.NewSectionReader(f, 0, 32))
		if err != nil {
			return fail(err)
		}
		if string(holder) == self || time.Now().After(deadline) {
			return fail(fmt.Errorf("%w (process %s)", ErrLocked, holder))
		}
	}
	if err := f.Truncate(0); err != nil {
		return fail(err)
	}
	if _, err := f.WriteAt([]byte(self), 0); err != nil {
		return fail(err)
	}
	return f, nil
}
