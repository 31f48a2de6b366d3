//go:build linux

package containerd

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const cgroupMount = "/sys/fs/cgroup"

// cgroupTree is the parent cgroup of a Runtime's containers, in version 1,
// with one hierarchy for each controller, or version 2, with one for all
// (cgroups(7)).
type cgroupTree struct {
	mount   string // cgroupMount, but for tests
	path    string // below each hierarchy, such as /orchestrate/0123456789ab
	unified bool
}

func newCgroupTree(path string) cgroupTree {
	_, err := os.Stat(filepath.Join(cgroupMount, "cgroup.controllers"))
	return cgroupTree{mount: cgroupMount, path: path, unified: err == nil}
}

// root returns the folder of a controller's hierarchy.
func (t cgroupTree) root(controller string) string {
	if t.unified {
		return t.mount
	}
	return filepath.Join(t.mount, controller)
}

// of returns the cgroup path of a container for its OCI spec.
func (t cgroupTree) of(id string) string { return filepath.Join(t.path, id) }

// dir returns the folder of a container's cgroup in a controller's hierarchy.
func (t cgroupTree) dir(controller, id string) string {
	return filepath.Join(t.root(controller), t.of(id))
}

// oomKills counts the processes of a container that the kernel killed for
// want of memory. It is read after the exit, before the cgroup is deleted, so
// it needs no listener that was there when it happened.
func (t cgroupTree) oomKills(id string) int64 {
	file := "memory.oom_control"
	if t.unified {
		file = "memory.events"
	}
	return readKeyed(filepath.Join(t.dir("memory", id), file))["oom_kill"]
}

// readKeyed reads a "flat keyed" file (cgroup-v2.rst); a file that cannot be
// read has no values.
func readKeyed(path string) map[string]int64 {
	values := map[string]int64{}
	text, err := os.ReadFile(path)
	if err != nil {
		return values
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			values[key] = n
		}
	}
	return values
}

// readNumber reads a file of one number; "max" and what cannot be read are 0.
func readNumber(path string) int64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n
}

// hierarchies returns the mount points that may have cgroups of ours.
func (t cgroupTree) hierarchies() []string {
	if t.unified {
		return []string{t.mount}
	}
	entries, err := os.ReadDir(t.mount)
	if err != nil {
		return nil
	}
	var dirs []string
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, filepath.Join(t.mount, e.Name()))
		}
	}
	return dirs
}

// remove deletes what is left of a container's cgroups, and first kills what
// is left in them: a runc that was killed itself in the middle of making a
// container leaves a process that nothing else knows of.
func (t cgroupTree) remove(id string) {
	for _, h := range t.hierarchies() {
		dir := filepath.Join(h, t.of(id))
		killAll(dir)
		removeTree(dir)
	}
}

// kill kills all processes of a container.
func (t cgroupTree) kill(id string) {
	for _, h := range t.hierarchies() {
		killAll(filepath.Join(h, t.of(id)))
	}
}

// killAll kills the processes of a cgroup and waits for their ends.
func killAll(dir string) {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return
	}
	for field := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil || pid <= 0 {
			continue // 0 is a process of another PID namespace than ours
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it ended
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err == nil {
			// A killed process is gone in no time, unless the kernel is stuck.
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
		}
		unix.Close(fd)
	}
}

// removeRoot deletes the parent, and its own parent when nobody else uses it.
func (t cgroupTree) removeRoot() {
	for _, h := range t.hierarchies() {
		dir := filepath.Join(h, t.path)
		os.Remove(dir)
		os.Remove(filepath.Dir(dir))
	}
}

// removeTree deletes a cgroup and those below it. Only rmdir works there: the
// files are the kernel's.
func removeTree(dir string) {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil && errors.Is(err, fs.ErrNotExist) {
		return
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		os.Remove(dirs[i])
	}
}
