package volume

import (
	"context"
	"errors"
	"fmt"
)

// Fencer is a Driver that holds a volume to the newest of its users, by a
// fencing token: a task that was given up for dead and is not, on a machine that
// was cut off or paused, cannot get at the volume any more. (M. Kleppmann, "How
// to do distributed locking", 2016.)
type Fencer interface {
	// Claim gives the volume to one task. From then on a Mount by any other is
	// a [*FencedError], also after a restart, until a Claim with a greater
	// epoch; mounts that other tasks have are undone, and what of their access
	// the driver can revoke is revoked. A claim with a smaller epoch than the
	// last, or with the same by another task, is a [*FencedError] and changes
	// nothing. The same claim again is no error. An unknown volume is
	// [ErrNotFound].
	Claim(ctx context.Context, c Claim) error
}

// Claim says that a volume belongs to a task.
type Claim struct {
	Volume string `json:"volume"`
	Task   string `json:"task"`
	// Epoch is above 0 and grows with each task that the volume is given to.
	Epoch int64 `json:"epoch"`
}

// Validate returns every mistake in c; none when there is none.
func (c Claim) Validate() []*SpecError {
	errs := Mount{Volume: c.Volume, Task: c.Task}.Validate()
	if c.Epoch <= 0 {
		errs = append(errs, &SpecError{c.Volume, "claim.epoch", fmt.Sprintf("%d is no fencing token; give one above 0", c.Epoch)})
	}
	return errs
}

// Refuses returns what is wrong with a claim after c, the zero Claim being none:
// nil, or a [*FencedError]. It is for drivers.
func (c Claim) Refuses(next Claim) error {
	if next.Epoch < c.Epoch || next.Epoch == c.Epoch && next.Task != c.Task {
		return &FencedError{Volume: next.Volume, Task: next.Task, Owner: c.Task, Epoch: c.Epoch}
	}
	return nil
}

// Bars returns what is wrong with a mount while c holds: nil, or a
// [*FencedError]. It is for drivers.
func (c Claim) Bars(m Mount) error {
	if c.Epoch != 0 && m.Task != c.Task {
		return &FencedError{Volume: m.Volume, Task: m.Task, Owner: c.Task, Epoch: c.Epoch}
	}
	return nil
}

// Reacher is a Driver whose volumes can be reached from several nodes. Without
// it, a volume can be reached from the node that made it alone.
type Reacher interface {
	// Reach is from where: nodes whose drivers return the same segments reach
	// the same volumes. It never changes while the driver is open. Without
	// segments it is as if the driver were no Reacher.
	Reach() map[string]string
}

// ErrFenced is the use of a volume that belongs to another task by now.
var ErrFenced = errors.New("the volume belongs to a newer task")

// FencedError is a task that is too late. It matches [ErrFenced].
type FencedError struct {
	Volume string
	Task   string // that is refused
	Owner  string // the task that the volume belongs to
	Epoch  int64  // since when
}

func (e *FencedError) Error() string {
	return fmt.Sprintf("volume %q belongs to task %q since epoch %d; task %q may not use it any more", e.Volume, e.Owner, e.Epoch, e.Task)
}

// Is reports whether target is [ErrFenced].
func (e *FencedError) Is(target error) bool { return target == ErrFenced }
