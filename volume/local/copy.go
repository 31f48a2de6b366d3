//go:build linux

package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// copyTree copies a tree that nobody writes to: files, folders, links of both
// kinds, devices, pipes and sockets, with owners, permissions, times and
// extended attributes. Symbolic links are copied and never followed. to may
// exist as an empty folder.
func copyTree(ctx context.Context, from, to string) error {
	type inode struct{ dev, ino uint64 }
	linked := map[inode]string{} // where the first name of a file with several was copied to
	type folder struct {
		path string
		info fs.FileInfo
	}
	var folders []folder
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		st, ok := info.Sys().(*unixStat)
		if !ok {
			return fmt.Errorf("%s: no attributes", path)
		}
		if !info.IsDir() && st.Nlink > 1 {
			key := inode{st.Dev, st.Ino}
			if first, ok := linked[key]; ok {
				return os.Link(first, target)
			}
			linked[key] = target
		}
		switch mode := info.Mode(); {
		case mode.IsDir():
			if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			folders = append(folders, folder{target, info})
		case mode.IsRegular():
			err = copyFile(ctx, path, target, info)
		case mode&fs.ModeSymlink != 0:
			var link string
			if link, err = os.Readlink(path); err == nil {
				err = os.Symlink(link, target)
			}
		default:
			err = unix.Mknod(target, st.Mode, int(st.Rdev))
		}
		if err != nil {
			return fmt.Errorf("copy %s: %w", path, err)
		}
		if info.Mode().IsRegular() {
			return nil // copyFile did it
		}
		return copyAttributes(path, target, info)
	})
	if err != nil {
		return err
	}
	// Filling a folder changed its time.
	for i := len(folders) - 1; i >= 0; i-- {
		if err := copyTimes(folders[i].path, folders[i].info); err != nil {
			return err
		}
		if err := syncDir(folders[i].path); err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies a file, by sharing its blocks where the filesystem can, and
// else its bytes without its holes. The copy is durable.
func copyFile(ctx context.Context, from, to string, info fs.FileInfo) (err error) {
	src, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) != nil {
		// Not there, or not between these two: the slow way tells why, if
		// there is a reason.
		if err := copyBytes(ctx, src, dst, info.Size()); err != nil {
			return err
		}
	}
	if err := copyAttributes(from, to, info); err != nil {
		return err
	}
	return dst.Sync()
}

// copyBytes copies the data of a sparse file, in parts between which ctx can
// end it.
func copyBytes(ctx context.Context, src, dst *os.File, size int64) error {
	const part = 64 << 20
	for at := int64(0); at < size; {
		begin, err := src.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole to the end
		}
		if err != nil {
			return err
		}
		end, err := src.Seek(begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := dst.Seek(begin, io.SeekStart); err != nil {
			return err
		}
		if _, err := src.Seek(begin, io.SeekStart); err != nil {
			return err
		}
		for left := end - begin; left > 0; {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := io.CopyN(dst, src, min(left, part))
			if err != nil {
				return err
			}
			left -= n
		}
		at = end
	}
	return dst.Truncate(size)
}

func copyAttributes(from, to string, info fs.FileInfo) error {
	st := info.Sys().(*unixStat)
	// The owner first: changing it takes setuid bits and capabilities away.
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink == 0 {
		if err := chmod(to, st.Mode&0o7777); err != nil {
			return err
		}
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	return copyTimes(to, info)
}

func copyTimes(to string, info fs.FileInfo) error {
	st := info.Sys().(*unixStat)
	times := []unix.Timespec{{Sec: st.Atim.Sec, Nsec: st.Atim.Nsec}, {Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set the times of %s: %w", to, err)
	}
	return nil
}

func copyXattrs(from, to string) error {
	names := make([]byte, 64<<10) // the kernel's own limit of a list
	n, err := unix.Llistxattr(from, names)
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list the extended attributes of %s: %w", from, err)
	}
	value := make([]byte, 64<<10)
	for _, name := range splitNUL(names[:n]) {
		n, err := unix.Lgetxattr(from, name, value)
		if err == nil {
			err = unix.Lsetxattr(to, name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("copy the extended attribute %s of %s: %w", name, from, err)
		}
	}
	return nil
}

func splitNUL(b []byte) []string {
	var names []string
	for len(b) > 0 {
		name, rest, _ := bytes.Cut(b, []byte{0})
		names, b = append(names, string(name)), rest
	}
	return names
}

// unixStat is what [fs.FileInfo.Sys] holds.
type unixStat = syscall.Stat_t
