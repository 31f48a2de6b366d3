//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/volume"
)

// Options configure a [Driver].
type Options struct {
	// Dir is the driver's folder, made when it is missing. One driver at a
	// time uses it.
	Dir string

	// BindRoots are the absolute paths below which Bind is allowed; with
	// none, every bind is refused. Who can write below a root decides what
	// containers see there, and nothing outside of it.
	BindRoots []string

	// Reach are the segments by which other nodes reach the same folder, where
	// it is one that they share; see [volume.Reacher].
	Reach map[string]string

	// step is called before each change that a crash could separate from
	// the one before; tests kill themselves in it.
	step func(what string)

	// patience is how long an image may be found busy; default 5 s.
	patience time.Duration
}

// ErrLocked is an [Open] of a folder that another driver uses.
var ErrLocked = errors.New("the folder is in use by another driver")

// CorruptError is a record in the driver's folder that cannot be read. Nothing
// was changed; the data of the volume is beside it.
type CorruptError struct {
	Path string
	Err  error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("the record %s cannot be read: %v; restore it, or move its folder away", e.Path, e.Err)
}

// Unwrap returns the cause.
func (e *CorruptError) Unwrap() error { return e.Err }

// Driver keeps volumes below one folder. It is also a [volume.Snapshotter],
// [volume.Expander], [volume.Binder], [volume.Fencer] and [volume.Reacher].
type Driver struct {
	dir   string
	roots []string
	reach map[string]string
	step  func(string)

	patience time.Duration
	quota    bool // whether dir's filesystem enforces project quotas
	images   bool // whether images can be made and mounted
	lock     *os.File
	keyed    keyed // volumes as "v:NAME", snapshots as "s:NAME" (taken first), binds as "b:KEY"

	mu       sync.Mutex // guards what follows
	volumes  map[string]*entry
	projects map[uint32]bool // taken
	closed   bool
}

// entry is a volume. Its fields are written with both the volume's key and
// Driver.mu held, and so read with either.
type entry struct {
	record
	mounts map[volume.Mount]bool
}

var (
	_ volume.Driver      = (*Driver)(nil)
	_ volume.Snapshotter = (*Driver)(nil)
	_ volume.Expander    = (*Driver)(nil)
	_ volume.Binder      = (*Driver)(nil)
	_ volume.Fencer      = (*Driver)(nil)
	_ volume.Reacher     = (*Driver)(nil)
)

// Open opens the folder, finishes or undoes what a driver before it left half
// done, and returns a driver for it. The errors are [ErrLocked] and
// [*CorruptError].
func Open(opts Options) (*Driver, error) {
	d, err := open(opts)
	if err != nil {
		return nil, fmt.Errorf("open volumes in %q: %w", opts.Dir, err)
	}
	return d, nil
}

func open(opts Options) (*Driver, error) {
	dir, err := filepath.Abs(opts.Dir)
	if opts.Dir == "" || err != nil {
		return nil, errors.New("Dir is not set; give the folder to keep volumes in")
	}
	for _, root := range opts.BindRoots {
		if !filepath.IsAbs(root) {
			return nil, fmt.Errorf("the bind root %q is not an absolute path", root)
		}
	}
	d := &Driver{
		dir: dir, roots: slices.Clone(opts.BindRoots), reach: maps.Clone(opts.Reach), step: opts.step, patience: opts.patience,
		volumes: map[string]*entry{}, projects: map[uint32]bool{},
	}
	if d.step == nil {
		d.step = func(string) {}
	}
	if d.patience == 0 {
		d.patience = 5 * time.Second
	}
	for _, sub := range []string{"volumes", "views", "binds", "snapshots", "tmp", "trash"} {
		if err := os.MkdirAll(d.path(sub), 0o700); err != nil {
			return nil, err
		}
	}
	// The kernel names mounts by their real path.
	if d.dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	d.lock, err = os.OpenFile(d.path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := d.recover(); err != nil {
		d.lock.Close()
		return nil, err
	}
	return d, nil
}

// Close lets another driver open the folder. Mounts stay, for the tasks that
// run and for the next driver. It is idempotent; no call may follow it.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	return d.lock.Close()
}

func (d *Driver) path(elem ...string) string {
	return filepath.Join(append([]string{d.dir}, elem...)...)
}

// recover brings the folder into order and reads it.
func (d *Driver) recover() error {
	d.quota, d.images = quotaOn(d.dir), imagesHere()
	for _, half := range []string{"tmp", "trash"} {
		names, err := readNames(d.path(half))
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := removeTree(d.path(half, name)); err != nil {
				return err
			}
		}
	}
	names, err := readNames(d.path("volumes"))
	if err != nil {
		return err
	}
	for _, name := range names {
		e := &entry{mounts: map[volume.Mount]bool{}}
		if e.record, err = readRecord(d.path("volumes", name)); err != nil {
			return err
		}
		files, err := readNames(d.path("volumes", name, "mounts"))
		if err != nil {
			return err
		}
		for _, file := range files {
			if m, ok := parseMount(name, file); ok {
				e.mounts[m] = true
			}
		}
		d.volumes[name] = e
		d.projects[e.Project] = true
		if e.kind() == kindLoop {
			thaw(d.path("volumes", name, "data")) // a snapshot may have been cut off
		}
		if len(e.mounts) == 0 { // an unmount may have been cut off
			// A process that still works in it does no harm: the next
			// mount finds it there, and Remove says so.
			if err := d.detach(e); err != nil && !errors.Is(err, unix.EBUSY) {
				return err
			}
		}
	}
	return errors.Join(d.sweepViews(), d.sweepBinds())
}

// List implements [volume.Driver]. Used is known with project quotas, and of
// images and tmpfs while they are mounted.
func (d *Driver) List(ctx context.Context) ([]volume.Status, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []volume.Status
	for _, name := range slices.Sorted(maps.Keys(d.volumes)) {
		e := d.volumes[name]
		list = append(list, volume.Status{
			Volume: e.Volume.Clone(), Tasks: e.tasks(), Used: d.used(e), Enforced: e.enforced(),
		})
	}
	return list, nil
}

// tasks are those that have e mounted, but except.
func (e *entry) tasks(except ...string) []string {
	var tasks []string
	for m := range e.mounts {
		if !slices.Contains(except, m.Task) {
			tasks = append(tasks, m.Task)
		}
	}
	slices.Sort(tasks)
	return slices.Compact(tasks)
}

// get returns the volume, or nil.
func (d *Driver) get(name string) *entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.volumes[name]
}

// set changes what others read of the volumes.
func (d *Driver) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

// keyed is a lock for each key. Waiting for one ends with the context, since
// another holder may be copying a large volume.
type keyed struct {
	mu    sync.Mutex
	slots map[string]*slot
}

type slot struct {
	token chan struct{} // holds one token while the key is locked
	users int           // that hold it or wait for it
}

func (k *keyed) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.slots == nil {
		k.slots = map[string]*slot{}
	}
	s := k.slots[key]
	if s == nil {
		s = &slot{token: make(chan struct{}, 1)}
		k.slots[key] = s
	}
	s.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if s.users--; s.users == 0 {
			delete(k.slots, key)
		}
	}
	if err := ctx.Err(); err != nil {
		leave()
		return nil, err
	}
	select {
	case s.token <- struct{}{}:
		return func() { <-s.token; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("wait for another call on %q: %w", strings.TrimLeft(key[1:], ":"), ctx.Err())
	}
}
