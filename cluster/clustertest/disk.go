//go:build linux

package clustertest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// fileFull takes what was free of a host's file system.
const fileFull = ".full"

// FillDisk uses up what is free of the host's file system, so that every write to
// it fails with ENOSPC. It needs [Options.Disk].
func (h *Host) FillDisk() error {
	if h.cluster.opts.Disk == 0 {
		return fmt.Errorf("fill the disk of %s: it is this machine's; give the cluster Options.Disk", h.Name)
	}
	err := enter(func() error {
		file, err := os.OpenFile(filepath.Join(h.Dir, fileFull), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		for part := make([]byte, 1<<20); len(part) > 0 && err == nil; { // smaller and smaller, to the last page
			if _, err = file.Write(part); errors.Is(err, unix.ENOSPC) {
				part, err = part[:len(part)/2], nil
			}
		}
		return errors.Join(err, file.Close())
	}, h.mnt)
	if err != nil {
		return fmt.Errorf("fill the disk of %s: %w", h.Name, err)
	}
	return nil
}

// FreeDisk gives back what [Host.FillDisk] took.
func (h *Host) FreeDisk() error {
	err := enter(func() error { return os.Remove(filepath.Join(h.Dir, fileFull)) }, h.mnt)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("free the disk of %s: %w", h.Name, err)
	}
	return nil
}
