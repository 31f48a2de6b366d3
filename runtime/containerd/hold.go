//go:build linux

package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// A container that is held must end in time although this process is dead. What
// sees to it is a guard: a shell that outlives the process, beside the
// containers and as long as there are held ones. It reads from a file until when
// they may run, by the clock that counts suspended time too (/proc/uptime), and
// kills their cgroups when that is over, again and again. It is there before the
// first of them is started. The folder State/held has a file for each, with the
// path of its cgroup, and until, without which the guard ends.
const guard = `while read -r until 2>/dev/null <"$1/until"; do
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

// Hold implements [runtime.Holder]. The guard is a process of the machine's
// /bin/sh; a service manager that kills all processes of the program with it,
// as systemd does without KillMode=process, kills it too, as it does shims.
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
		r.endGuard()
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
	if r.guardPID() != 0 {
		return nil
	}
	return r.startGuard()
}

// startGuard starts one that is nobody's child, so that nobody need wait for it.
func (r *Runtime) startGuard() error {
	cmd := exec.Command("/bin/sh", "-c", `/bin/sh -c "$0" orchestrate-guard "$1" </dev/null >/dev/null 2>&1 & echo $!`, guard, r.heldDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("start the guard of held containers: %w", err)
	}
	return os.WriteFile(r.guardFile(), bytes.TrimSpace(out), 0o600)
}

func (r *Runtime) guardFile() string { return filepath.Join(r.heldDir(), "guard") }

// guardPID is the guard's, also one that an earlier process started; 0 when
// there is none.
func (r *Runtime) guardPID() int {
	text, err := os.ReadFile(r.guardFile())
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(line, []byte("orchestrate-guard")) || !bytes.Contains(line, []byte(r.heldDir())) {
		return 0
	}
	return pid
}

// endGuard ends the guard at once; it would end by itself a moment later.
func (r *Runtime) endGuard() {
	pid := r.guardPID()
	if pid == 0 {
		return
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if r.guardPID() != pid { // that of a stranger by now
		return
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err == nil {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
	}
	if err := os.Remove(r.guardFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Warn("a file of the guard is left", "error", err)
	}
}
