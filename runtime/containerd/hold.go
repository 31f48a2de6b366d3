//go:build linux

package containerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// A container that is held must end in time although this process is dead. What
// sees to it is a guard, for as long as there are held containers. It reads from a
// file until when they may run, by the clock that counts suspended time too
// (/proc/uptime), and kills their cgroups when that is over, again and again. It is
// there before the first of them is started. The folder State/held has a file for
// each, with the path of its cgroup, and until, without which the guard ends.
const holdScript = `while read -r until 2>/dev/null <"$1/until"; do
	read -r up rest </proc/uptime
	if [ "${up%.*}" -ge "$until" ]; then
		for file in "$1"/*.container; do
			read -r group 2>/dev/null <"$file" || continue
			for dir in /sys/fs/cgroup"$group" /sys/fs/cgroup/*"$group"; do
				[ -e "$dir/cgroup.procs" ] || continue
				if [ -e "$dir/cgroup.kill" ]; then
					echo 1 >"$dir/cgroup.kill"
				else
					while read -r pid; do kill -KILL "$pid"; done <"$dir/cgroup.procs"
				fi
			done
		done
	fi
	sleep 0.3
done 2>/dev/null`

// hold is for how long held containers may run.
type hold struct {
	mu    sync.Mutex // guards what follows, and the folder
	until time.Time
}

func (r *Runtime) heldDir() string { return filepath.Join(r.state, "held") }

func (r *Runtime) heldFile(id string) string { return filepath.Join(r.heldDir(), id+".container") }

// Hold implements [runtime.Holder].
func (r *Runtime) Hold(ctx context.Context, d time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done, err := r.enter()
	if err != nil {
		return fmt.Errorf("hold containers: %w", err)
	}
	defer done()
	r.hold.mu.Lock()
	defer r.hold.mu.Unlock()
	until := time.Now().Add(d)
	if held, err := filepath.Glob(r.heldFile("*")); err != nil || len(held) > 0 {
		if err := r.setUntil(until); err != nil {
			return fmt.Errorf("hold containers: %w", err)
		}
	}
	r.hold.until = until
	return nil
}

// holds prepares the start of a held container: from now on the guard knows it.
func (r *Runtime) holds(spec *runtime.Spec) error {
	if _, held := spec.Labels[runtime.LabelHeld]; !held {
		return nil
	}
	r.hold.mu.Lock()
	defer r.hold.mu.Unlock()
	if !time.Now().Before(r.hold.until) {
		return runtime.ErrNotHeld
	}
	if err := os.MkdirAll(r.heldDir(), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(r.heldFile(spec.ID), []byte(r.cgroups.of(spec.ID)+"\n"), 0o600); err != nil {
		return err
	}
	return r.setUntil(r.hold.until)
}

// letGo forgets a container that is gone, and ends the guard with the last.
func (r *Runtime) letGo(id string) {
	r.hold.mu.Lock()
	defer r.hold.mu.Unlock()
	if os.Remove(r.heldFile(id)) != nil {
		return // it was not held
	}
	if held, err := filepath.Glob(r.heldFile("*")); err == nil && len(held) == 0 {
		os.Remove(filepath.Join(r.heldDir(), "until"))
		// It would end by itself a moment later.
		if err := r.holdGuard().end(); err != nil {
			r.log.Warn("held containers are gone", "error", err)
		}
	}
}

// setUntil tells the guard until when held containers may run, and sees that
// there is one. r.hold.mu is held.
func (r *Runtime) setUntil(until time.Time) error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return err
	}
	// Whole seconds, rounded up: they may run until then.
	at := (time.Duration(now.Nano()) + time.Until(until) + time.Second - 1) / time.Second
	file := filepath.Join(r.heldDir(), "until")
	if err := os.WriteFile(file+".next", fmt.Appendln(nil, int64(at)), 0o600); err != nil {
		return err
	}
	if err := os.Rename(file+".next", file); err != nil {
		return err
	}
	if g := r.holdGuard(); g.pid() == 0 {
		return g.start(nil)
	}
	return nil
}

func (r *Runtime) holdGuard() guard {
	return guard{
		file: filepath.Join(r.heldDir(), "guard"), name: "orchestrate-guard",
		script: holdScript, args: []string{r.heldDir()},
	}
}
