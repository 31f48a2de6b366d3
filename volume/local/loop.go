//go:build linux

package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/volume"
)

// ioctls that golang.org/x/sys/unix does not have, from
// include/uapi/linux/fs.h and fs/ext4/ext4.h.
const (
	fiFreeze     = 0xc0045877 // FIFREEZE
	fiThaw       = 0xc0045878 // FITHAW
	ext4ResizeFS = 0x40086610 // EXT4_IOC_RESIZE_FS
)

// imagesHere reports whether images can be made and mounted here: there is
// mkfs.ext4, and the kernel gives loop devices, which a container may lack.
func imagesHere() bool {
	if _, err := program("mkfs.ext4"); err != nil {
		return false
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	control.Close()
	return true
}

// ErrNoE2fsprogs is a volume of size-mode loop on a node that lacks a program
// of the package e2fsprogs.
var ErrNoE2fsprogs = errors.New("is not found; install e2fsprogs")

// program finds one of e2fsprogs, also where Debian keeps them and only root's
// PATH leads.
func program(name string) (string, error) {
	for _, file := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(file); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s %w", name, ErrNoE2fsprogs)
}

// newImage makes the image of a new volume in the folder tmp.
func (d *Driver) newImage(ctx context.Context, tmp string, v volume.Volume) error {
	mkfs, err := program("mkfs.ext4")
	if err != nil {
		return err
	}
	image, data := filepath.Join(tmp, "image"), filepath.Join(tmp, "data")
	f, err := os.OpenFile(image, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(v.Size); err != nil { // sparse: blocks come with writes
		return err
	}
	// No blocks kept for root: who limits a volume to a size can fill it.
	out, err := exec.CommandContext(ctx, mkfs, "-q", "-F", "-m", "0", "-E", "nodiscard", image).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, bytes.TrimSpace(out))
	}
	d.step("image: mount")
	if err := mountImage(image, data); err != nil {
		return err
	}
	d.step("image: own")
	err = errors.Join(own(data, v), os.Remove(filepath.Join(data, "lost+found")))
	if err := unix.Unmount(data, unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount the new image: %w", err)
	}
	return errors.Join(err, f.Sync())
}

// mountImage mounts an image.
func mountImage(image, data string) error {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// A program before this one may have been killed while its resize2fs
	// ran, which goes on and holds this lock.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", image, err)
	}
	dev, path, err := attachLoop(image)
	if err != nil {
		return fmt.Errorf("attach %s to a loop device: %w", image, err)
	}
	defer dev.Close() // the mount holds the device now, and frees it at its end
	if err := unix.Mount(path, data, "ext4", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("mount %s: %w", image, err)
	}
	return nil
}

// attachLoop returns a loop device of the image. One that has it already, held
// by a mount in a container that is still ending, is used again: two devices
// of one image would destroy it.
func attachLoop(image string) (dev *os.File, path string, err error) {
	// The device keeps this open file, so it must not be one that is locked.
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	if dev, path, err = findLoop(f); err != nil {
		return nil, "", err
	}
	if dev != nil {
		// If it only lingers, the image may have been resized behind it.
		err := errors.Join(unix.IoctlSetInt(int(dev.Fd()), unix.BLKFLSBUF, 0),
			unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_CAPACITY, 0))
		if err == nil {
			return dev, path, nil
		}
		dev.Close()
		return nil, "", fmt.Errorf("use %s again: %w", path, err)
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, "", err
	}
	defer control.Close()
	for range 64 { // others may take the free device between the two calls
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, "", fmt.Errorf("find a free loop device: %w", err)
		}
		path = fmt.Sprintf("/dev/loop%d", n)
		dev, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, "", err
		}
		config := unix.LoopConfig{Fd: uint32(f.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		copy(config.Info.File_name[:63], image) // what losetup shows
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		if err == nil {
			return dev, path, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, "", fmt.Errorf("configure %s: %w", path, err)
		}
	}
	return nil, "", errors.New("every free loop device was taken by others first")
}

// findLoop returns the open loop device that has the file image attached, or
// nil. Holding it open keeps it from being freed.
func findLoop(image *os.File) (*os.File, string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(image.Fd()), &st); err != nil {
		return nil, "", err
	}
	backed, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, "", err
	}
	for _, file := range backed {
		path := "/dev/" + strings.Split(file, "/")[3]
		dev, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			continue // gone since
		}
		info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
		// The kernel gives the device in its own encoding, which for
		// st_dev of stat(2) is the same.
		if err == nil && info.Device == st.Dev && info.Inode == st.Ino {
			return dev, path, nil
		}
		dev.Close()
	}
	return nil, "", nil
}

// growMounted grows the loop device and the filesystem of a mounted image to
// the image's size. It needs CAP_SYS_RESOURCE and is EPERM without.
func growMounted(image, data string, size int64) error {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	dev, _, err := findLoop(f)
	if err != nil {
		return err
	}
	if dev == nil {
		return fmt.Errorf("%s is mounted, but no loop device has it", image)
	}
	defer dev.Close()
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("grow the loop device of %s: %w", image, err)
	}
	root, err := os.Open(data)
	if err != nil {
		return err
	}
	defer root.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(root.Fd()), &st); err != nil {
		return err
	}
	blocks := uint64(size) / uint64(st.Bsize)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, root.Fd(), ext4ResizeFS, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return fmt.Errorf("grow the mounted filesystem of %s: %w", image, errno)
	}
	return nil
}

// growImage grows the filesystem of an image that is not mounted to the image's
// size. The programs get the locked image as a file of theirs, so that it stays
// locked while they run, even should this program die.
func (d *Driver) growImage(ctx context.Context, image string) error {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", image, err)
	}
	release, err := d.atRest(ctx, image)
	if err != nil {
		return err
	}
	defer release()
	for _, args := range [][]string{
		{"e2fsck", "-f", "-p", image}, // resize2fs insists on it
		{"resize2fs", image},
	} {
		path, err := program(args[0])
		if err != nil {
			return err
		}
		// Not killed with the context: half a resize is worse than a wait.
		cmd := exec.CommandContext(context.WithoutCancel(ctx), path, args[1:]...)
		cmd.ExtraFiles = []*os.File{f}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if errors.As(err, &exit) && args[0] == "e2fsck" && exit.ExitCode() == 1 {
			err = nil // it found errors and corrected them
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %s", args[0], err, bytes.TrimSpace(out))
		}
	}
	return f.Sync()
}

// atRest refuses an image that is mounted out of sight, as in a container that
// is still ending. Until release is called it is not mounted by its device.
//
// It waits a little before: every container that starts on the node has, for a
// moment, a copy of all mounts in its new namespace. The kernel has no event to
// wait for instead.
func (d *Driver) atRest(ctx context.Context, image string) (release func(), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.patience, unix.EBUSY)
	defer cancel()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		release, err := claim(image)
		if !errors.Is(err, unix.EBUSY) {
			return release, err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			if cause := context.Cause(ctx); cause != unix.EBUSY {
				return nil, errors.Join(err, cause)
			}
			return nil, err
		}
	}
}

// claim keeps others from mounting the image by a device that it already has.
func claim(image string) (release func(), err error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	dev, path, err := findLoop(f)
	if err != nil {
		return nil, err
	}
	if dev == nil {
		return func() {}, nil
	}
	defer dev.Close()
	// A device may linger a moment after its mount, until the last who looked
	// at it has closed it. A mounted one cannot be opened for oneself.
	own, err := os.OpenFile(path, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		return nil, fmt.Errorf("%s still has %s in use: %w", path, image, err)
	}
	return func() { own.Close() }, nil
}

// freeze stops writes to a mounted filesystem and makes what is on its device
// whole; thaw lets them go on. Thawing what is not frozen does nothing.
func freeze(path string) error { return ioctlPath(path, fiFreeze) }

func thaw(path string) error { return ioctlPath(path, fiThaw) }

func ioctlPath(path string, request uint) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), request, 0); err != nil {
		return fmt.Errorf("ioctl %#x on %s: %w", request, path, err)
	}
	return nil
}

// Expand implements [volume.Expander]. To grow an image while it is mounted
// the kernel wants CAP_SYS_RESOURCE; without, that is an [*volume.InUseError].
func (d *Driver) Expand(ctx context.Context, name string, size int64) error {
	unlock, err := d.keyed.lock(ctx, "v:"+name)
	if err != nil {
		return err
	}
	defer unlock()
	e := d.get(name)
	switch {
	case e == nil:
		return fmt.Errorf("expand volume %q: %w", name, volume.ErrNotFound)
	case e.Volume.Size == 0:
		return &volume.SpecError{Volume: name, Field: "size", Reason: "has no limit to raise"}
	case size < e.Volume.Size:
		return &volume.SpecError{Volume: name, Field: "size",
			Reason: fmt.Sprintf("%d is smaller than the present %d; a volume only grows", size, e.Volume.Size)}
	case size == e.Volume.Size:
		return nil
	}
	if err := d.expand(ctx, e, size); err != nil {
		if tasks := e.tasks(); e.kind() == kindLoop && len(tasks) > 0 && errors.Is(err, unix.EPERM) {
			return &volume.InUseError{Volume: name, Tasks: tasks}
		}
		return fmt.Errorf("expand volume %q to %d bytes: %w", name, size, err)
	}
	return nil
}

// expand gives the room first and writes it down last: one that was cut off
// has at most given too much, and is run again.
func (d *Driver) expand(ctx context.Context, e *entry, size int64) error {
	next := e.record
	next.Volume = next.Volume.Clone()
	next.Volume.Size = size
	dir := d.path("volumes", e.Volume.Name)
	data := filepath.Join(dir, "data")
	mounted, err := isMountPoint(data)
	if err != nil {
		return err
	}
	switch e.kind() {
	case kindLoop:
		image := filepath.Join(dir, "image")
		if err := os.Truncate(image, size); err != nil {
			return err
		}
		d.step("expand: grow")
		if mounted {
			err = growMounted(image, data, size)
		} else {
			err = d.growImage(ctx, image)
		}
		if err != nil {
			return err
		}
	case kindTmpfs:
		if mounted {
			if err := unix.Mount("", data, "", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d", size)); err != nil {
				return fmt.Errorf("resize the tmpfs: %w", err)
			}
		}
	default:
		if e.Project != 0 {
			if err := d.limit(next); err != nil {
				return err
			}
		}
	}
	d.step("expand: record")
	if err := next.write(dir); err != nil {
		return err
	}
	d.set(func() { e.record = next })
	return nil
}
