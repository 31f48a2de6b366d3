//go:build linux

package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
)

// Create implements network.Namespaces. The namespace is held by a bind mount
// on a file named by the ID in Options.NetNSDir, and so outlives this
// program. A sysctl that cannot be set leaves no namespace.
func (d *Driver) Create(ctx context.Context, id string, sysctls map[string]string) (string, error) {
	if err := d.begin(ctx); err != nil {
		return "", err
	}
	if err := network.ValidateNamespace(id, sysctls); err != nil {
		return "", err
	}
	unlock := d.locks.lock("netns/" + id)
	defer unlock()
	path := filepath.Join(d.options.NetNSDir, id)
	if isNamespace(path) {
		return path, nil
	}
	if err := makeNamespace(path, sysctls); err != nil {
		return "", fmt.Errorf("create network namespace %s: %w", id, err)
	}
	return path, nil
}

// isNamespace reports whether a namespace is mounted on path: after a reboot
// the plain file may still be there.
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

func makeNamespace(path string, sysctls map[string]string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW, 0o444)
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	// gofail: var namespaceFileMade struct{}
	// die()
	err = elsewhere(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		for _, s := range quiet {
			// Without IPv6 in the kernel there is nothing to quieten.
			if err := setSysctl(s[0], s[1]); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		for _, name := range slices.Sorted(maps.Keys(sysctls)) {
			if err := setSysctl(name, sysctls[name]); err != nil {
				return err
			}
		}
		// The mount comes last: what is mounted is complete.
		return unix.Mount(threadNetNS, path, "none", unix.MS_BIND, "")
	})
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// quiet keeps a task's interfaces from configuring themselves: no router
// advertisements, and addresses usable at once. The driver hands out each
// address once, so there is nothing that detecting duplicates would find.
var quiet = [][2]string{
	{"net.ipv6.conf.default.accept_ra", "0"},
	{"net.ipv6.conf.default.accept_dad", "0"},
}

// loopbackUp needs no netlink socket: two ioctls on any socket do.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_LOOPBACK | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	return nil
}

// Delete implements network.Namespaces. The kernel takes the namespace down
// when the last process in it is gone too.
func (d *Driver) Delete(ctx context.Context, id string) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	if err := network.ValidateNamespace(id, nil); err != nil {
		return err
	}
	unlock := d.locks.lock("netns/" + id)
	defer unlock()
	return d.deleteNamespace(id)
}

func (d *Driver) deleteNamespace(id string) error {
	path := filepath.Join(d.options.NetNSDir, id)
	for isNamespace(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("delete network namespace %s: unmount: %w", id, err)
		}
	}
	// gofail: var namespaceUnmounted struct{}
	// die()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete network namespace %s: %w", id, err)
	}
	return nil
}

// List implements network.Namespaces.
func (d *Driver) List(ctx context.Context) ([]string, error) {
	if err := d.begin(ctx); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(d.options.NetNSDir)
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	ids := []string{}
	for _, e := range entries { // sorted by name
		if isNamespace(filepath.Join(d.options.NetNSDir, e.Name())) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// sweepNamespaces removes the files on which nothing is mounted: a kill came
// between the two, or the machine was started anew.
func (d *Driver) sweepNamespaces() error {
	entries, err := os.ReadDir(d.options.NetNSDir)
	if err != nil {
		return fmt.Errorf("list network namespaces: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(d.options.NetNSDir, e.Name())
		info, err := os.Lstat(path)
		if err != nil || !info.Mode().IsRegular() || info.Size() > 0 || isNamespace(path) {
			continue // gone, or not made by Create
		}
		if err := ignoreMissing(os.Remove(path)); err != nil {
			return err
		}
	}
	return nil
}
