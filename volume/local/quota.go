//go:build linux

package local

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Project quotas: every file below a volume's data folder carries the volume's
// project ID, and the filesystem counts and limits what a project takes.
// quotactl(2); Documentation/filesystems/quota.rst and ext4/overview.rst of
// the kernel.

// What golang.org/x/sys/unix does not have, from include/uapi/linux/quota.h
// and fs.h.
const (
	prjQuota  = 2
	qGetQuota = 0x800007
	qSetQuota = 0x800008
	qifLimits = 5 // blocks and inodes

	fsGetXattr     = 0x801c581f // FS_IOC_FSGETXATTR
	fsSetXattr     = 0x401c5820 // FS_IOC_FSSETXATTR
	projectInherit = 0x200      // FS_XFLAG_PROJINHERIT
)

// firstProject leaves the low IDs to administrators, who write them by hand
// into /etc/projects.
const firstProject = 1 << 20

// diskQuota is struct if_dqblk.
type diskQuota struct {
	blocksHard, blocksSoft uint64 // in 1024 bytes
	space                  uint64 // in bytes
	inodesHard, inodesSoft uint64
	inodes                 uint64
	blocksTime, inodesTime uint64
	valid                  uint32
	_                      uint32
}

// fsxAttr is struct fsxattr.
type fsxAttr struct {
	flags, extentSize, extents, project, cowExtentSize uint32
	_                                                  [8]byte
}

// quotactl is quotactl_fd(2), Linux 5.14: it needs no name of a device, which
// a container may not have.
func quotactl(path string, command uint32, project uint32, q *diskQuota) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, f.Fd(), uintptr(command<<8|prjQuota),
		uintptr(project), uintptr(unsafe.Pointer(q)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// quotaOn reports whether the filesystem of path enforces project quotas.
func quotaOn(path string) bool {
	return quotactl(path, qGetQuota, firstProject, new(diskQuota)) == nil
}

// takeProject gives r a project ID that nothing uses, when there are project
// quotas and r is a directory. One without a Size gets it too: it counts what
// the volume takes.
func (d *Driver) takeProject(r *record) error {
	r.Project = 0
	if !d.quota || r.kind() != kindDir {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for id := uint32(firstProject); id < 1<<32-1; id++ {
		if d.projects[id] {
			continue
		}
		var q diskQuota
		if err := quotactl(d.dir, qGetQuota, id, &q); err != nil {
			return fmt.Errorf("read the quota of project %d: %w", id, err)
		}
		// Files of another program's project, or of a volume of ours that
		// is still being deleted.
		if q.inodes > 0 || q.space > 0 {
			continue
		}
		d.projects[id] = true
		r.Project = id
		return nil
	}
	return errors.New("no project ID is free")
}

// returnProject lifts the limit and frees the ID.
func (d *Driver) returnProject(id uint32) error {
	if id == 0 {
		return nil
	}
	err := quotactl(d.dir, qSetQuota, id, &diskQuota{valid: qifLimits})
	d.set(func() { delete(d.projects, id) })
	if err != nil {
		return fmt.Errorf("lift the quota of project %d: %w", id, err)
	}
	return nil
}

// limit sets the limit of r's project to its Size, rounded down to KiB as the
// kernel counts, but not to 0, which is none.
func (d *Driver) limit(r record) error {
	q := diskQuota{valid: qifLimits}
	if r.enforced() {
		q.blocksHard = max(1, uint64(r.Volume.Size)/1024)
	}
	if err := quotactl(d.dir, qSetQuota, r.Project, &q); err != nil {
		return fmt.Errorf("limit project %d to %d bytes: %w", r.Project, r.Volume.Size, err)
	}
	return nil
}

// setProject gives a new folder, and all that will be made in it, to a project.
func setProject(dir string, id uint32) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	var attr fsxAttr
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsGetXattr, uintptr(unsafe.Pointer(&attr))); errno != 0 {
		return fmt.Errorf("read the attributes of %s: %w", dir, errno)
	}
	attr.project = id
	attr.flags |= projectInherit
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsSetXattr, uintptr(unsafe.Pointer(&attr))); errno != 0 {
		return fmt.Errorf("set the project of %s to %d: %w", dir, id, errno)
	}
	return nil
}

// used is what List says; -1 when it is not known without reading all files.
func (d *Driver) used(e *entry) int64 {
	if e.Project != 0 {
		var q diskQuota
		if quotactl(d.dir, qGetQuota, e.Project, &q) != nil {
			return -1
		}
		return int64(q.space)
	}
	data := d.path("volumes", e.Volume.Name, "data")
	if mounted, err := isMountPoint(data); !mounted || err != nil {
		return -1
	}
	var st unix.Statfs_t
	if unix.Statfs(data, &st) != nil {
		return -1
	}
	return int64(st.Blocks-st.Bfree) * st.Frsize
}
