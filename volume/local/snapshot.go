//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/orchestrate-go/orchestrate/volume"
)

// Snapshot implements [volume.Snapshotter]. Where the filesystem can share
// blocks (xfs, btrfs), the copy costs no room and hardly any time.
//
// A volume in an image is copied in use: its filesystem is frozen for as
// long, so writers wait. A directory cannot be frozen, so while a task has it
// mounted writable that is an [*volume.InUseError]. A tmpfs has no snapshots.
func (d *Driver) Snapshot(ctx context.Context, name, snapshot string) error {
	if !volume.ValidName(snapshot) {
		return (volume.Volume{Name: snapshot}).Validate()[0]
	}
	unlockSnapshot, err := d.keyed.lock(ctx, "s:"+snapshot)
	if err != nil {
		return err
	}
	defer unlockSnapshot()
	unlock, err := d.keyed.lock(ctx, "v:"+name)
	if err != nil {
		return err
	}
	defer unlock()
	final := d.path("snapshots", snapshot)
	if _, err := os.Lstat(final); err == nil {
		r, err := readRecord(final)
		if err == nil && r.Volume.Name != name {
			return &volume.ExistsError{Volume: snapshot, Field: "content"}
		}
		return err
	}
	e := d.get(name)
	if e == nil {
		return fmt.Errorf("take a snapshot of volume %q: %w", name, volume.ErrNotFound)
	}
	if e.kind() == kindTmpfs {
		return &volume.SpecError{Volume: name, Field: "options." + OptionType, Reason: "tmpfs has no snapshots, since its content is gone with its last mount"}
	}
	if writers := e.writers(); e.kind() == kindDir && len(writers) > 0 {
		return &volume.InUseError{Volume: name, Tasks: writers}
	}
	if err := d.takeSnapshot(ctx, e, final); err != nil {
		return fmt.Errorf("take snapshot %q of volume %q: %w", snapshot, name, err)
	}
	return nil
}

// writers are the tasks that have e mounted writable.
func (e *entry) writers() []string {
	var tasks []string
	for m := range e.mounts {
		if !m.ReadOnly {
			tasks = append(tasks, m.Task)
		}
	}
	slices.Sort(tasks)
	return tasks
}

func (d *Driver) takeSnapshot(ctx context.Context, e *entry, final string) (err error) {
	tmp, err := os.MkdirTemp(d.path("tmp"), "snapshot@")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeTree(tmp))
		}
	}()
	dir := d.path("volumes", e.Volume.Name)
	data := filepath.Join(dir, "data")
	mounted, err := isMountPoint(data)
	if err != nil {
		return err
	}
	if e.kind() == kindLoop && mounted {
		if err := freeze(data); err != nil {
			return err
		}
		// Before the rename, so that a snapshot is in place only when the
		// volume runs again.
		err = copyContent(ctx, dir, tmp)
		d.step("snapshot: frozen")
		err = errors.Join(err, thaw(data))
	} else {
		if e.kind() == kindLoop {
			release, err := d.atRest(ctx, filepath.Join(dir, "image"))
			if err != nil {
				return err
			}
			defer release()
		}
		err = copyContent(ctx, dir, tmp)
	}
	if err != nil {
		return err
	}
	if err := (record{Volume: e.Volume, Image: e.Image}).write(tmp); err != nil {
		return err
	}
	d.step("snapshot: rename")
	return rename(tmp, final)
}

// copyContent copies the image, or else the data, of one volume or snapshot
// folder into another, and makes the copy durable.
func copyContent(ctx context.Context, from, to string) error {
	image := filepath.Join(from, "image")
	if info, err := os.Lstat(image); err == nil {
		return copyFile(ctx, image, filepath.Join(to, "image"), info)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return copyTree(ctx, filepath.Join(from, "data"), filepath.Join(to, "data"))
}

// Restore implements [volume.Snapshotter].
func (d *Driver) Restore(ctx context.Context, snapshot, name string) error {
	if !volume.ValidName(snapshot) {
		return fmt.Errorf("restore snapshot %q: %w", snapshot, volume.ErrNotFound)
	}
	unlockSnapshot, err := d.keyed.lock(ctx, "s:"+snapshot)
	if err != nil {
		return err
	}
	defer unlockSnapshot()
	unlock, err := d.keyed.lock(ctx, "v:"+name)
	if err != nil {
		return err
	}
	defer unlock()
	if e := d.get(name); e != nil {
		if e.Snapshot != snapshot {
			return &volume.ExistsError{Volume: name, Field: "content"}
		}
		return nil
	}
	from := d.path("snapshots", snapshot)
	if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("restore snapshot %q: %w", snapshot, volume.ErrNotFound)
	}
	r, err := readRecord(from)
	if err != nil {
		return err
	}
	r.Volume.Name, r.Snapshot = name, snapshot
	if err := d.check(r.Volume); err != nil {
		return err
	}
	if err := d.make(r, func(tmp string, r record) error { return copyContent(ctx, from, tmp) }); err != nil {
		return fmt.Errorf("restore snapshot %q as volume %q: %w", snapshot, name, err)
	}
	return nil
}

// RemoveSnapshot implements [volume.Snapshotter].
func (d *Driver) RemoveSnapshot(ctx context.Context, snapshot string) error {
	if !volume.ValidName(snapshot) {
		return nil // there is none
	}
	unlock, err := d.keyed.lock(ctx, "s:"+snapshot)
	if err != nil {
		return err
	}
	defer unlock()
	path := d.path("snapshots", snapshot)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	trash, err := d.discard(path)
	if err == nil {
		d.step("remove snapshot: delete")
		err = removeTree(trash)
	}
	if err != nil {
		return fmt.Errorf("remove snapshot %q: %w", snapshot, err)
	}
	return nil
}
