//go:build linux

package clustertest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// recordsDir has a folder for each cluster of this machine: its record, a lock
// that its program holds, and the files that its namespaces are bound to.
const recordsDir = "/run/orchestrate-clustertest"

// record is what is known of a cluster whose program may be dead. It is written
// before anything is made.
type record struct {
	ID   string `json:"id"`
	Data string `json:"data"` // the folder of the hosts' folders
	dir  string
	lock *os.File
}

const (
	fileRecord = "cluster.json"
	fileLock   = "lock"
)

func newRecord(id, parent string) (*record, error) {
	parent, err := filepath.Abs(parent)
	if err != nil {
		return nil, err
	}
	r := &record{ID: id, dir: filepath.Join(recordsDir, id), Data: filepath.Join(parent, "orchestrate-clustertest-"+id)}
	if err := makeIn(recordsDir, 0o700, r.dir); err != nil {
		return nil, err
	}
	if r.lock, err = takeLock(r.dir); err != nil {
		return nil, err
	}
	data, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(r.dir, fileRecord), data, 0o600); err != nil {
		return nil, err
	}
	// A mount namespace can be bound where what is mounted is not handed on.
	if err := unix.Mount(r.dir, r.dir, "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("bind %s: %w", r.dir, err)
	}
	if err := unix.Mount("", r.dir, "", unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make %s private: %w", r.dir, err)
	}
	if err := makeIn(runDir, 0o711, r.stay()); err != nil {
		return nil, err
	}
	return r, os.Mkdir(r.Data, 0o700)
}

// makeIn makes a folder in one that all share, which others remove at any moment
// when they find it empty.
func makeIn(shared string, mode fs.FileMode, dir string) error {
	for {
		if err := os.MkdirAll(shared, mode); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Mkdir(dir, 0o700); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
}

// errInUse is a cluster whose program lives.
var errInUse = errors.New("in use")

// takeLock takes a cluster's lock, which the kernel lets go when its holder
// dies.
func takeLock(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, fileLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errInUse
		}
		return nil, err
	}
	return lock, nil
}

// Clean removes what clusters have left whose programs died, and returns their
// folders. Those that are in use are left alone.
func Clean() (removed []string, err error) {
	entries, err := os.ReadDir(recordsDir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		r, err := openRecord(e.Name())
		if errors.Is(err, errInUse) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = errors.Join(r.kill(), r.remove())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove what cluster %s left: %w", e.Name(), err))
			continue
		}
		removed = append(removed, r.Data)
	}
	return removed, errors.Join(errs...)
}

func openRecord(id string) (*record, error) {
	r := &record{dir: filepath.Join(recordsDir, id)}
	lock, err := takeLock(r.dir)
	if err != nil {
		return nil, err
	}
	r.lock = lock
	data, err := os.ReadFile(filepath.Join(r.dir, fileRecord))
	if errors.Is(err, fs.ErrNotExist) {
		// Its program died before it had made anything.
		r.ID, err = id, nil
	} else if err == nil {
		err = json.Unmarshal(data, r)
	}
	if err == nil && r.Data != "" && filepath.Base(r.Data) != "orchestrate-clustertest-"+r.ID {
		err = fmt.Errorf("its record names the folder %s, which is not one of a cluster", r.Data)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return r, nil
}

// pin is the file that a namespace is bound to.
func (r *record) pin(name, kind string) string { return filepath.Join(r.dir, name+"."+kind) }

// pins are all of a kind.
func (r *record) pins(kind string) []string {
	all, _ := filepath.Glob(r.pin("*", kind))
	return all
}

// stay is a folder that keeps this machine's runDir from being removed: hosts have
// mounts on it, and who removes a folder takes the mounts on it away from all
// namespaces but its own.
func (r *record) stay() string { return filepath.Join(runDir, "clustertest-"+r.ID) }

// kill ends every process of the hosts, and all that descended from them: shims,
// and the containers below. New ones may come while it looks, so it looks until
// there are none.
func (r *record) kill() error {
	homes := map[uint64]bool{}
	for _, kind := range []string{"net", "mnt"} {
		for _, path := range r.pins(kind) {
			var st unix.Statfs_t
			if unix.Statfs(path, &st) != nil || st.Type != unix.NSFS_MAGIC {
				continue // was not bound
			}
			if inode, ok := inodeOf(path); ok {
				homes[inode] = true
			}
		}
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		pids, err := belonging(homes)
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v do not end", pids)
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond) // for the kernel to take them down
	}
}

// remove removes all that is left when no process is.
func (r *record) remove() error {
	var errs []error
	groups := r.groups()
	// The program's interface goes with its other end, and at once; what is left
	// in a namespace goes some time after it.
	if link, err := os.Open(r.pin("link", "net")); err == nil {
		_ = enter(func() error {
			l, err := netlink.LinkByName(selfPort)
			if err == nil {
				err = netlink.LinkDel(l)
			}
			return err
		}, link)
		link.Close()
	}
	for _, kind := range []string{"mnt", "uts", "net"} {
		for _, path := range r.pins(kind) {
			errs = append(errs, unpin(path))
		}
	}
	for _, g := range groups {
		errs = append(errs, removeGroup(g))
	}
	if r.Data != "" {
		errs = append(errs, os.RemoveAll(r.Data))
	}
	for { // it may have been bound more than once by one that died
		if err := unix.Unmount(r.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			break
		}
	}
	if err := errors.Join(errs...); err != nil {
		r.lock.Close()
		return err // the record stays, for the next try
	}
	err := errors.Join(os.RemoveAll(r.dir), r.lock.Close())
	_ = os.Remove(recordsDir) // when it was the last
	_ = os.Remove(r.stay())
	_ = os.Remove(runDir)
	return err
}

// groups are the cgroups that runtimes on the hosts made, by the folders of their
// states.
func (r *record) groups() []string {
	var all []string
	for _, path := range r.pins("mnt") {
		mnt, err := os.Open(path)
		if err != nil {
			continue
		}
		_ = enter(func() error {
			entries, err := os.ReadDir(runDir)
			for _, e := range entries {
				all = append(all, e.Name())
			}
			return err
		}, mnt)
		mnt.Close()
	}
	return all
}

// removeGroup removes the cgroups below /orchestrate/NAME in every hierarchy.
func removeGroup(name string) error {
	var roots []string
	for _, pattern := range []string{"/sys/fs/cgroup/orchestrate/", "/sys/fs/cgroup/*/orchestrate/"} {
		found, _ := filepath.Glob(pattern + name)
		roots = append(roots, found...)
	}
	var errs []error
	for _, root := range roots {
		var dirs []string
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- { // the innermost first
			err := os.Remove(dirs[i])
			for try := 0; errors.Is(err, unix.EBUSY) && try < 200; try++ { // its last process is on its way out
				time.Sleep(10 * time.Millisecond)
				err = os.Remove(dirs[i])
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		_ = os.Remove(filepath.Dir(root)) // when it was the last
	}
	return errors.Join(errs...)
}

// inodeOf identifies a namespace, by its file.
func inodeOf(path string) (uint64, bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0, false
	}
	return st.Ino, true
}

// belonging are the processes that are in one of the namespaces, or descend from
// one that is.
func belonging(homes map[uint64]bool) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	parents, in := map[int]int{}, map[int]bool{}
	for _, e := range entries {
		pid := 0
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil || pid <= 1 {
			continue
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		// proc_pid_stat(5): after the name in brackets come the state and the
		// parent.
		_, rest, _ := strings.Cut(string(status[strings.LastIndexByte(string(status), ')'):]), " ")
		var state string
		var parent int
		if _, err := fmt.Sscan(rest, &state, &parent); err != nil || state == "Z" || state == "X" {
			continue
		}
		parents[pid] = parent
		for _, kind := range []string{"net", "mnt"} {
			if inode, ok := inodeOf(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); ok && homes[inode] && pid != os.Getpid() {
				in[pid] = true
			}
		}
	}
	var pids []int
	for pid := range parents {
		for p, steps := pid, 0; p > 1 && steps < 1000; p, steps = parents[p], steps+1 {
			if in[p] {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids, nil
}
