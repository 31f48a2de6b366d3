//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/volume"
)

// Create implements [volume.Driver].
func (d *Driver) Create(ctx context.Context, v volume.Volume) error {
	if err := d.check(v); err != nil {
		return err
	}
	unlock, err := d.keyed.lock(ctx, "v:"+v.Name)
	if err != nil {
		return err
	}
	defer unlock()
	if e := d.get(v.Name); e != nil {
		if field := volume.Difference(e.Volume, v); field != "" {
			return &volume.ExistsError{Volume: v.Name, Field: field}
		}
		return nil
	}
	if err := d.make(record{Volume: v.Clone(), Image: d.autoImage(v)}, func(tmp string, r record) error {
		if r.kind() == kindLoop {
			err := d.newImage(ctx, tmp, r.Volume)
			if err != nil && r.Image {
				err = fmt.Errorf("make the image that holds its size, or set size-mode none to do without: %w", err)
			}
			return err
		}
		return own(filepath.Join(tmp, "data"), r.Volume)
	}); err != nil {
		return fmt.Errorf("create volume %q: %w", v.Name, err)
	}
	return nil
}

// make builds a volume in tmp, its content by fill, and puts it into place.
// The volume's key is held.
func (d *Driver) make(r record, fill func(tmp string, r record) error) (err error) {
	if err := d.takeProject(&r); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(d.path("tmp"), r.Volume.Name+"@")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeTree(tmp), d.returnProject(r.Project))
		}
	}()
	for _, sub := range []string{"data", "mounts"} {
		if err := os.Mkdir(filepath.Join(tmp, sub), 0o700); err != nil {
			return err
		}
	}
	if r.Project != 0 {
		// Before there is content: files take the project of their folder.
		if err := setProject(filepath.Join(tmp, "data"), r.Project); err != nil {
			return err
		}
		if err := d.limit(r); err != nil {
			return err
		}
	}
	// gofail: var volumeBegun struct{}
	// die()
	d.step("make: fill")
	if err := fill(tmp, r); err != nil {
		return err
	}
	if err := r.write(tmp); err != nil {
		return err
	}
	// gofail: var volumeFilled struct{}
	// die()
	d.step("make: rename")
	if err := rename(tmp, d.path("volumes", r.Volume.Name)); err != nil {
		return err
	}
	// gofail: var volumeInPlace struct{}
	// die()
	d.step("make: done")
	d.set(func() { d.volumes[r.Volume.Name] = &entry{record: r, mounts: map[volume.Mount]bool{}} })
	return nil
}

// Remove implements [volume.Driver].
func (d *Driver) Remove(ctx context.Context, name string) error {
	unlock, err := d.keyed.lock(ctx, "v:"+name)
	if err != nil {
		return err
	}
	defer unlock()
	e := d.get(name)
	if e == nil {
		return nil
	}
	if len(e.mounts) > 0 {
		return &volume.InUseError{Volume: name, Tasks: e.tasks()}
	}
	if err := d.remove(e); err != nil {
		return fmt.Errorf("remove volume %q: %w", name, err)
	}
	return nil
}

func (d *Driver) remove(e *entry) error {
	if err := d.detach(e); err != nil {
		return err
	}
	d.step("remove: rename")
	trash, err := d.discard(d.path("volumes", e.Volume.Name))
	if err != nil {
		return err
	}
	// From here on it is gone: what fails below is done by the next Open.
	d.set(func() { delete(d.volumes, e.Volume.Name) })
	d.step("remove: delete")
	return errors.Join(removeTree(trash), d.returnProject(e.Project))
}

// discard moves a folder to the trash and returns where it is now.
func (d *Driver) discard(path string) (string, error) {
	trash, err := os.MkdirTemp(d.path("trash"), filepath.Base(path)+"@")
	if err != nil {
		return "", err
	}
	return trash, rename(path, filepath.Join(trash, "content"))
}

// chmod sets permissions with the setuid, setgid and sticky bits as chmod(1)
// writes them, which [os.FileMode] does not.
func chmod(path string, mode uint32) error {
	if err := unix.Chmod(path, mode); err != nil {
		return &os.PathError{Op: "chmod", Path: path, Err: err}
	}
	return nil
}
