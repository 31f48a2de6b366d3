package memory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/orchestrate-go/orchestrate/volume"
)

// Driver keeps volumes in memory. The zero value is ready; it must not be
// copied. It is also a [volume.Snapshotter], [volume.Expander],
// [volume.Binder], [volume.Fencer] and [volume.Reacher].
type Driver struct {
	// Segments are what Reach returns.
	Segments map[string]string

	// Roots are the paths below which Bind is allowed. Nothing of the host
	// is looked at.
	Roots []string

	mu        sync.Mutex // guards what follows
	volumes   map[string]*entry
	snapshots map[string]*entry
	binds     map[volume.Bind]string
	faults    map[string][]error
}

type entry struct {
	spec     volume.Volume
	files    map[string][]byte
	mounts   map[volume.Mount]bool
	snapshot string // that it was restored from
	claim    volume.Claim
}

var (
	_ volume.Driver      = (*Driver)(nil)
	_ volume.Snapshotter = (*Driver)(nil)
	_ volume.Expander    = (*Driver)(nil)
	_ volume.Binder      = (*Driver)(nil)
	_ volume.Fencer      = (*Driver)(nil)
	_ volume.Reacher     = (*Driver)(nil)
)

// ErrNoSpace is a write beyond a volume's Size.
var ErrNoSpace = errors.New("no space left on the volume")

// ErrReadOnly is a write by a path of a read-only mount.
var ErrReadOnly = errors.New("the volume is mounted read-only")

// FailNext makes the next call of the method, such as "Mount", return err and
// change nothing. Several wait in the order of the calls.
func (d *Driver) FailNext(method string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.faults == nil {
		d.faults = map[string][]error{}
	}
	d.faults[method] = append(d.faults[method], err)
}

// begin is the common begin of each call; the lock is held when it returns.
func (d *Driver) begin(ctx context.Context, method string) error {
	d.mu.Lock()
	if d.volumes == nil {
		d.volumes, d.snapshots, d.binds = map[string]*entry{}, map[string]*entry{}, map[volume.Bind]string{}
	}
	if waiting := d.faults[method]; len(waiting) > 0 {
		d.faults[method] = waiting[1:]
		return waiting[0]
	}
	return ctx.Err()
}

// Create implements [volume.Driver].
func (d *Driver) Create(ctx context.Context, v volume.Volume) error {
	err := d.begin(ctx, "Create")
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	if errs := v.Validate(); len(errs) > 0 {
		return errs[0]
	}
	if e := d.volumes[v.Name]; e != nil {
		if field := volume.Difference(e.spec, v); field != "" {
			return &volume.ExistsError{Volume: v.Name, Field: field}
		}
		return nil
	}
	d.volumes[v.Name] = &entry{spec: v.Clone(), files: map[string][]byte{}, mounts: map[volume.Mount]bool{}}
	return nil
}

// Remove implements [volume.Driver].
func (d *Driver) Remove(ctx context.Context, name string) error {
	err := d.begin(ctx, "Remove")
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	if e := d.volumes[name]; e != nil && len(e.mounts) > 0 {
		return &volume.InUseError{Volume: name, Tasks: e.tasks()}
	}
	delete(d.volumes, name)
	return nil
}

// Mount implements [volume.Driver].
func (d *Driver) Mount(ctx context.Context, m volume.Mount) (string, error) {
	err := d.begin(ctx, "Mount")
	defer d.mu.Unlock()
	if err != nil {
		return "", err
	}
	if errs := m.Validate(); len(errs) > 0 {
		return "", errs[0]
	}
	e := d.volumes[m.Volume]
	if e == nil {
		return "", fmt.Errorf("mount volume %q: %w", m.Volume, volume.ErrNotFound)
	}
	if err := e.claim.Bars(m); err != nil {
		return "", err
	}
	if others := slices.DeleteFunc(e.tasks(), func(t string) bool { return t == m.Task }); e.spec.Exclusive && len(others) > 0 {
		return "", &volume.InUseError{Volume: m.Volume, Tasks: others}
	}
	e.mounts[m] = true
	return pathOf(m), nil
}

func pathOf(m volume.Mount) string {
	if m.ReadOnly {
		return path.Join("/memory/ro", m.Volume)
	}
	return path.Join("/memory/rw", m.Volume)
}

// Unmount implements [volume.Driver].
func (d *Driver) Unmount(ctx context.Context, m volume.Mount) error {
	err := d.begin(ctx, "Unmount")
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	if e := d.volumes[m.Volume]; e != nil {
		delete(e.mounts, m)
	}
	return nil
}

// List implements [volume.Driver].
func (d *Driver) List(ctx context.Context) ([]volume.Status, error) {
	err := d.begin(ctx, "List")
	defer d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var list []volume.Status
	for _, name := range slices.Sorted(maps.Keys(d.volumes)) {
		e := d.volumes[name]
		list = append(list, volume.Status{
			Volume: e.spec.Clone(), Tasks: e.tasks(), Used: e.used(), Enforced: e.spec.Size > 0,
		})
	}
	return list, nil
}

func (e *entry) tasks() []string {
	var tasks []string
	for m := range e.mounts {
		tasks = append(tasks, m.Task)
	}
	slices.Sort(tasks)
	return slices.Compact(tasks)
}

func (e *entry) used() int64 {
	var n int64
	for _, data := range e.files {
		n += int64(len(data))
	}
	return n
}

// WriteFile writes a file of the volume that is mounted at path, whole. The
// errors are [ErrNoSpace], [ErrReadOnly] and [volume.ErrNotFound] when nothing
// is mounted there.
func (d *Driver) WriteFile(path, name string, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, readOnly, err := d.at(path)
	switch {
	case err != nil:
		return err
	case readOnly:
		return fmt.Errorf("write %s/%s: %w", path, name, ErrReadOnly)
	case e.spec.Size > 0 && e.used()-int64(len(e.files[name]))+int64(len(data)) > e.spec.Size:
		return fmt.Errorf("write %s/%s: %w", path, name, ErrNoSpace)
	}
	e.files[name] = slices.Clone(data)
	return nil
}

// ReadFile reads a file of the volume that is mounted at path. A file that is
// not there is [volume.ErrNotFound] too.
func (d *Driver) ReadFile(path, name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, _, err := d.at(path)
	if err != nil {
		return nil, err
	}
	data, ok := e.files[name]
	if !ok {
		return nil, fmt.Errorf("read %s/%s: %w", path, name, volume.ErrNotFound)
	}
	return slices.Clone(data), nil
}

// at finds the volume mounted at path.
func (d *Driver) at(path string) (e *entry, readOnly bool, err error) {
	for _, e := range d.volumes {
		for m := range e.mounts {
			if pathOf(m) == path {
				return e, m.ReadOnly, nil
			}
		}
	}
	return nil, false, fmt.Errorf("nothing is mounted at %q: %w", path, volume.ErrNotFound)
}

// Claim implements [volume.Fencer]. Nothing at the paths of mounts that it ends
// can be read or written any more.
func (d *Driver) Claim(ctx context.Context, c volume.Claim) error {
	err := d.begin(ctx, "Claim")
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	if errs := c.Validate(); len(errs) > 0 {
		return errs[0]
	}
	e := d.volumes[c.Volume]
	if e == nil {
		return fmt.Errorf("claim volume %q: %w", c.Volume, volume.ErrNotFound)
	}
	if err := e.claim.Refuses(c); err != nil {
		return err
	}
	e.claim = c
	maps.DeleteFunc(e.mounts, func(m volume.Mount, _ bool) bool { return m.Task != c.Task })
	return nil
}

// Reach implements [volume.Reacher].
func (d *Driver) Reach() map[string]string { return maps.Clone(d.Segments) }

// Snapshot implements [volume.Snapshotter].
func (d *Driver) Snapshot(ctx context.Context, name, snapshot string) error {
	err := d.begin(ctx, "Snapshot")
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	if !volume.ValidName(snapshot) {
		return (volume.Volume{Name: snapshot}).Validate()[0]
	}
	if s := d.snapshots[snapshot]; s != nil {
		if s.spec.Name != name {
			return &volume.ExistsError{Volume: snapshot, Field: "content"}
		}
		return nil
	}
	e := d.volumes[name]
	if e == nil {
		return fmt.Errorf("take a snapshot of volume %q: %w", name, volume.ErrNotFound)
	}
	// The data of a file is replaced and never changed, so it can be shared.
	d.snapshots[snapshot] = &entry{spec: e.spec, files: maps.Clone(e.files)}
	return nil
}

// Restore implements [volume.Snapshotter].
func (d *Driver) Restore(ctx context.Context, snapshot, name string) error {
	err := d.begin(ctx, "Restore")
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	if e := d.volumes[name]; e != nil {
		if e.snapshot != snapshot {
			return &volume.ExistsError{Volume: name, Field: "content"}
		}
		return nil
	}
	s := d.snapshots[snapshot]
	if s == nil {
		return fmt.Errorf("restore snapshot %q: %w", snapshot, volume.ErrNotFound)
	}
	spec := s.spec.Clone()
	spec.Name = name
	if errs := spec.Validate(); len(errs) > 0 {
		return errs[0]
	}
	d.volumes[name] = &entry{spec: spec, files: maps.Clone(s.files), mounts: map[volume.Mount]bool{}, snapshot: snapshot}
	return nil
}

// RemoveSnapshot implements [volume.Snapshotter].
func (d *Driver) RemoveSnapshot(ctx context.Context, snapshot string) error {
	err := d.begin(ctx, "RemoveSnapshot")
	defer d.mu.Unlock()
	if err == nil {
		delete(d.snapshots, snapshot)
	}
	return err
}

// Expand implements [volume.Expander].
func (d *Driver) Expand(ctx context.Context, name string, size int64) error {
	err := d.begin(ctx, "Expand")
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	e := d.volumes[name]
	switch {
	case e == nil:
		return fmt.Errorf("expand volume %q: %w", name, volume.ErrNotFound)
	case e.spec.Size == 0:
		return &volume.SpecError{Volume: name, Field: "size", Reason: "has no limit to raise"}
	case size < e.spec.Size:
		return &volume.SpecError{Volume: name, Field: "size", Reason: fmt.Sprintf("%d is smaller than the present %d; a volume only grows", size, e.spec.Size)}
	}
	e.spec.Size = size
	return nil
}

// Bind implements [volume.Binder], by names alone.
func (d *Driver) Bind(ctx context.Context, b volume.Bind) (string, error) {
	err := d.begin(ctx, "Bind")
	defer d.mu.Unlock()
	if err != nil {
		return "", err
	}
	if p, ok := d.binds[b]; ok {
		return p, nil
	}
	clean := path.Clean(b.Source)
	if !slices.ContainsFunc(d.Roots, func(root string) bool {
		root = path.Clean(root)
		return clean == root || strings.HasPrefix(clean, strings.TrimSuffix(root, "/")+"/")
	}) {
		reason := "is outside of the allowed roots"
		if len(d.Roots) == 0 {
			reason = "no path of the host is allowed; allow some by Driver.Roots"
		}
		return "", &volume.ForbiddenError{Source: b.Source, Roots: d.Roots, Reason: reason}
	}
	d.binds[b] = path.Join("/memory/bind", b.Task, clean)
	return d.binds[b], nil
}

// Unbind implements [volume.Binder].
func (d *Driver) Unbind(ctx context.Context, b volume.Bind) error {
	err := d.begin(ctx, "Unbind")
	defer d.mu.Unlock()
	if err == nil {
		delete(d.binds, b)
	}
	return err
}

// Binds implements [volume.Binder].
func (d *Driver) Binds(ctx context.Context) ([]volume.Bind, error) {
	err := d.begin(ctx, "Binds")
	defer d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return slices.SortedFunc(maps.Keys(d.binds), volume.CompareBinds), nil
}
