//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/volume"
)

// Mount implements [volume.Driver]. The path of a read-only mount is a view
// that the kernel holds read-only, whatever the runtime does with it.
func (d *Driver) Mount(ctx context.Context, m volume.Mount) (string, error) {
	if err := checkMount(m); err != nil {
		return "", err
	}
	unlock, err := d.keyed.lock(ctx, "v:"+m.Volume)
	if err != nil {
		return "", err
	}
	defer unlock()
	e := d.get(m.Volume)
	if e == nil {
		return "", fmt.Errorf("mount volume %q: %w", m.Volume, volume.ErrNotFound)
	}
	if err := e.Claim.Bars(m); err != nil {
		return "", err
	}
	if others := e.tasks(m.Task); e.Volume.Exclusive && len(others) > 0 {
		return "", &volume.InUseError{Volume: m.Volume, Tasks: others}
	}
	path, err := d.mount(e, m)
	if err != nil {
		return "", fmt.Errorf("mount volume %q for task %q: %w", m.Volume, m.Task, err)
	}
	return path, nil
}

func (d *Driver) mount(e *entry, m volume.Mount) (path string, err error) {
	if known := e.mounts[m]; !known {
		// The record comes first: what is mounted always has one.
		d.step("mount: record")
		if err := touch(d.mountRecord(m)); err != nil {
			return "", err
		}
		// gofail: var mountRecorded struct{}
		// die()
		d.set(func() { e.mounts[m] = true })
		defer func() {
			if err != nil {
				err = errors.Join(err, d.unmount(e, m))
			}
		}()
	}
	d.step("mount: attach")
	if err := d.attach(e); err != nil {
		return "", err
	}
	data := d.path("volumes", m.Volume, "data")
	if !m.ReadOnly {
		return data, nil
	}
	view := d.view(m)
	if mounted, err := isMountPoint(view); mounted || err != nil {
		return view, err
	}
	if err := os.Mkdir(view, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	d.step("mount: view")
	source, err := unix.Open(data, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(source)
	return view, bindFD(source, view, true)
}

// Unmount implements [volume.Driver].
func (d *Driver) Unmount(ctx context.Context, m volume.Mount) error {
	unlock, err := d.keyed.lock(ctx, "v:"+m.Volume)
	if err != nil {
		return err
	}
	defer unlock()
	e := d.get(m.Volume)
	if e == nil || !e.mounts[m] {
		return nil
	}
	if err := d.unmount(e, m); err != nil {
		return fmt.Errorf("unmount volume %q of task %q: %w", m.Volume, m.Task, err)
	}
	return nil
}

// unmount deletes the record last, so that one cut off is known and can be run
// again.
func (d *Driver) unmount(e *entry, m volume.Mount) error {
	if m.ReadOnly {
		d.step("unmount: view")
		if err := dropMountPoint(d.view(m)); err != nil {
			return err
		}
	}
	if len(e.mounts) == 1 {
		d.step("unmount: detach")
		if err := d.detach(e); err != nil {
			return err
		}
	}
	// gofail: var volumeDetached struct{}
	// die()
	d.step("unmount: record")
	if err := os.Remove(d.mountRecord(m)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// gofail: var mountForgotten struct{}
	// die()
	d.set(func() { delete(e.mounts, m) })
	return nil
}

// attach makes the volume's content be at its data folder.
func (d *Driver) attach(e *entry) error {
	data := d.path("volumes", e.Volume.Name, "data")
	if e.kind() == kindDir {
		return nil
	}
	if mounted, err := isMountPoint(data); mounted || err != nil {
		return err
	}
	if e.kind() == kindTmpfs {
		return mountTmpfs(data, e.Volume)
	}
	return mountImage(d.path("volumes", e.Volume.Name, "image"), data)
}

// detach undoes attach.
func (d *Driver) detach(e *entry) error {
	if e.kind() == kindDir {
		return nil
	}
	data := d.path("volumes", e.Volume.Name, "data")
	if mounted, err := isMountPoint(data); !mounted || err != nil {
		return err
	}
	// Not lazily: an image that is still mounted somewhere out of sight
	// could be removed or copied under the feet of who uses it.
	if err := unix.Unmount(data, unix.UMOUNT_NOFOLLOW); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("a process still works in %s: %w", data, err)
		}
		return fmt.Errorf("unmount %s: %w", data, err)
	}
	return nil
}

func mountTmpfs(path string, v volume.Volume) error {
	uid, gid := owner(v)
	mode := "1777"
	if s, ok := v.Options[OptionMode]; ok {
		mode = s
	}
	data := fmt.Sprintf("uid=%d,gid=%d,mode=%s", uid, gid, mode)
	if v.Size > 0 {
		data += fmt.Sprintf(",size=%d", v.Size)
	}
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	return nil
}

func (d *Driver) mountRecord(m volume.Mount) string {
	return d.path("volumes", m.Volume, "mounts", mountFile(m))
}

// view is the mount point of a read-only mount. '@' is in no volume's name.
func (d *Driver) view(m volume.Mount) string {
	return d.path("views", m.Volume+"@"+url.PathEscape(m.Task))
}

// sweepViews drops views without a record.
func (d *Driver) sweepViews() error {
	names, err := readNames(d.path("views"))
	if err != nil {
		return err
	}
	for _, name := range names {
		of, escaped, _ := strings.Cut(name, "@")
		task, err := url.PathUnescape(escaped)
		if e := d.volumes[of]; err == nil && e != nil && e.mounts[volume.Mount{Volume: of, Task: task, ReadOnly: true}] {
			continue
		}
		if err := dropMountPoint(d.path("views", name)); err != nil {
			return err
		}
	}
	return nil
}

// bindFD mounts what the open file is at the path target, with what is mounted
// below it. The mount is made whole before it appears, so it is never seen
// writable when it should not be; and it is made from the file itself, so no
// name is resolved a second time. open_tree(2), mount_setattr(2), Linux 5.12.
func bindFD(source int, target string, readOnly bool) error {
	tree, err := unix.OpenTree(source, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("clone the mount: %w", err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if readOnly {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("set the mount's attributes: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount at %s: %w", target, err)
	}
	return nil
}

// dropMountPoint unmounts everything at path and deletes the mount point: by
// itself alone, never what is in it. One that is gone is not an error. It is
// lazy, since a bind has no state that another could damage.
func dropMountPoint(path string) error {
	for {
		mounted, err := isMountPoint(path)
		if err != nil {
			return err
		}
		if !mounted {
			break
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// touch makes an empty file.
func touch(path string) error {
	f, err := os.OpenFile(filepath.Clean(path), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}
