package memory

import (
	"context"
	"fmt"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// Update implements [runtime.Updater]. A process that holds more memory than
// the new limit is killed for it, see Program.Uses; a kernel that refuses is a
// fault of the test's.
func (r *Runtime) Update(ctx context.Context, id string, want runtime.Resources) error {
	if err := want.Validate(); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("update container %s: %w", id, err) }
	err := r.ask(Op{Method: "Update", ID: id})
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return fail(err)
	}
	c, err := r.container(id)
	if err != nil {
		return fail(err)
	}
	if !c.update(want) {
		return fail(fmt.Errorf("%w: it has exited", runtime.ErrNotFound))
	}
	if err := r.ask(Op{Method: "Update", ID: id, Done: true}); err != nil {
		return fail(err)
	}
	return nil
}

// Resources returns what a container may use now, as the last Start or Update
// of it said; the zero value for one that is not there.
func (r *Runtime) Resources(id string) runtime.Resources {
	c, err := r.container(id)
	if err != nil {
		return runtime.Resources{}
	}
	return c.resources()
}

// update changes the bounds of a container that runs.
func (c *container) update(want runtime.Resources) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return false
	}
	c.spec.Resources = want
	if c.tooBigLocked() {
		c.endLocked(128+int(runtime.SIGKILL), true)
	}
	return true
}

func (c *container) resources() runtime.Resources {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spec.Resources
}
