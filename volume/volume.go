package volume

import (
	"context"
	"errors"
	"fmt"
)

// Driver provides storage that outlives tasks. Every method is idempotent and
// may be called from many goroutines. Optional abilities are [Snapshotter] and
// [Expander].
type Driver interface {
	// Create makes the volume. One that exists with the same spec is left
	// as it is, data included; with another spec it is an [*ExistsError].
	Create(ctx context.Context, v Volume) error

	// Remove deletes the volume and its data. While it is mounted it is an
	// [*InUseError]. A volume that is not there is not an error.
	Remove(ctx context.Context, name string) error

	// Mount makes the volume available to a task and returns the host path
	// to bind into its containers. The same mount again returns the same
	// path, also after a restart of the program. An unknown volume is
	// [ErrNotFound]. An exclusive volume that another task has is an
	// [*InUseError].
	Mount(ctx context.Context, m Mount) (path string, err error)

	// Unmount undoes Mount. One that is not mounted is not an error.
	Unmount(ctx context.Context, m Mount) error

	// List returns all volumes by name, with the tasks that have each
	// mounted.
	List(ctx context.Context) ([]Status, error)
}

// Volume describes storage to provide.
type Volume struct {
	Name string `json:"name"` // unique on the driver; [A-Za-z0-9][A-Za-z0-9_.-]{0,127}
	// Size is the limit in bytes; 0 is none. A driver enforces it where it
	// can, and [Status].Enforced says whether it does. Package volume/local
	// leaves it unenforced where it has neither project quotas nor images.
	Size    int64             `json:"size,omitempty"`
	Options map[string]string `json:"options,omitempty"` // the driver's own
	// Exclusive volumes are mounted by one task at a time.
	Exclusive bool              `json:"exclusive,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// Mount names the use of one volume by one task.
type Mount struct {
	Volume   string // name
	Task     string // task ID
	ReadOnly bool
}

// Status is what a driver knows of a volume.
type Status struct {
	Volume
	Tasks    []string // that have it mounted, sorted
	Used     int64    // bytes; -1 when the driver cannot say
	Enforced bool     // whether there is a Size and what writes beyond it fails
}

// Snapshotter is a Driver that can copy a volume's content at one moment.
type Snapshotter interface {
	// Snapshot copies the volume's content under the name snapshot. One that
	// was taken of the same volume is left as it is; one of another volume
	// is an [*ExistsError]. A driver that cannot copy a volume at one moment
	// while tasks may write to it returns an [*InUseError].
	Snapshot(ctx context.Context, volume, snapshot string) error

	// Restore makes a new volume with the snapshot's content and its spec,
	// the name excepted. A volume that was made by the same Restore is left
	// as it is; any other of that name is an [*ExistsError]. An unknown
	// snapshot is [ErrNotFound].
	Restore(ctx context.Context, snapshot, volume string) error

	// RemoveSnapshot deletes the snapshot; volumes restored from it are not
	// touched. One that is not there is not an error.
	RemoveSnapshot(ctx context.Context, snapshot string) error
}

// Expander is a Driver that can raise a volume's size limit in use.
type Expander interface {
	// Expand raises the limit to size bytes, with the data kept and mounts
	// left as they are. The present size is not an error; a smaller one, and
	// any for a volume without a limit, is a [*SpecError]. Where it cannot
	// be done in use, a mounted volume is an [*InUseError].
	Expand(ctx context.Context, name string, size int64) error
}

// Binder is a Driver that can also give tasks folders and files of the host.
type Binder interface {
	// Bind returns a path to bind into the task's containers in place of
	// b.Source. What the path shows is decided now: nobody who renames or
	// links things under Source later can make it show something else. The
	// same bind again returns the same path. A source that is outside of
	// what the driver allows, also by a symbolic link, is [ErrForbidden];
	// one that does not exist is [ErrNotFound].
	Bind(ctx context.Context, b Bind) (path string, err error)

	// Unbind undoes Bind. One that is not bound is not an error.
	Unbind(ctx context.Context, b Bind) error

	// Binds returns all binds, by task and source, so that an agent can undo
	// those of tasks that are gone.
	Binds(ctx context.Context) ([]Bind, error)
}

// Bind names the use of a path of the host by one task.
type Bind struct {
	Source   string `json:"source"` // absolute
	Task     string `json:"task"`   // task ID
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Errors that a caller can act on.
var (
	ErrNotFound = errors.New("no such volume")
	ErrInUse    = errors.New("the volume is in use")
	ErrExists   = errors.New("the volume exists with another spec")

	// ErrForbidden is a bind of a path that the driver does not allow.
	ErrForbidden = errors.New("the path is outside of what may be bound")
)

// ForbiddenError is a bind that is refused. It matches [ErrForbidden].
type ForbiddenError struct {
	Source string
	Roots  []string // below which binds are allowed; with none, Reason says how to allow some
	Reason string
}

func (e *ForbiddenError) Error() string {
	if len(e.Roots) == 0 {
		return fmt.Sprintf("bind %q: %s", e.Source, e.Reason)
	}
	return fmt.Sprintf("bind %q: %s; bind a path below one of %q", e.Source, e.Reason, e.Roots)
}

// Is reports whether target is [ErrForbidden].
func (e *ForbiddenError) Is(target error) bool { return target == ErrForbidden }

// InUseError is a volume that tasks hold. It matches [ErrInUse].
type InUseError struct {
	Volume string
	Tasks  []string
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("volume %q is in use by tasks %q; stop them first", e.Volume, e.Tasks)
}

// Is reports whether target is [ErrInUse].
func (e *InUseError) Is(target error) bool { return target == ErrInUse }

// ExistsError is a volume that exists with another spec. It matches
// [ErrExists].
type ExistsError struct {
	Volume string
	Field  string // what differs
}

func (e *ExistsError) Error() string {
	return fmt.Sprintf("volume %q exists with another %s; use another name, or remove it first", e.Volume, e.Field)
}

// Is reports whether target is [ErrExists].
func (e *ExistsError) Is(target error) bool { return target == ErrExists }

// SpecError is a volume or mount that cannot be provided: the field and what
// would be right.
type SpecError struct {
	Volume string
	Field  string
	Reason string
}

func (e *SpecError) Error() string {
	return fmt.Sprintf("volume %q: %s: %s", e.Volume, e.Field, e.Reason)
}
