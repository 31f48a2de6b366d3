//go:build linux

package containerd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// guard is a process that outlives this one and does for the containers what must
// go on without it: a script of the machine's /bin/sh, which is nobody's child, so
// that nobody need wait for it. A service manager that kills all processes of the
// program with it, as systemd does without KillMode=process, kills it too, as it
// does shims.
type guard struct {
	file   string // where its process ID is
	name   string // its $0
	script string
	args   []string // the first, a path, tells it from those of other Roots
}

// start runs the guard with an end of a pipe or, if nil, nothing as its input.
func (g guard) start(stdin *os.File) error {
	// A shell gives what it runs in the background no input but by a number.
	const run = `exec 3<&0; file=$1; shift
/bin/sh -c "$0" "$@" <&3 3<&- >/dev/null 2>&1 &
echo $! >"$file"`
	cmd := exec.Command("/bin/sh", append([]string{"-c", run, g.script, g.file, g.name}, g.args...)...)
	if stdin != nil {
		cmd.Stdin = stdin
	}
	cmd.Dir = "/" // so as not to keep ours from being unmounted
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("start %s: %w: %s", g.name, err, out)
	}
	return nil
}

// pid is the guard's, also one that an earlier process started; 0 when there is
// none.
func (g guard) pid() int {
	text, err := os.ReadFile(g.file)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil || !bytes.Contains(line, []byte(g.name)) || !bytes.Contains(line, []byte(g.args[0])) {
		return 0
	}
	return pid
}

// end kills the guard with what it runs, and waits for its end.
func (g guard) end() error {
	pid := g.pid()
	if pid == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it has just ended
	}
	defer unix.Close(fd)
	group, err := unix.Getpgid(pid)
	if err != nil || g.pid() != pid { // that of a stranger by now
		return nil
	}
	// The group is of the session that start made: the guard and its commands.
	if err := unix.Kill(-group, unix.SIGKILL); err == nil {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
	}
	if err := os.Remove(g.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("a file of a guard is left: %w", err)
	}
	return nil
}
