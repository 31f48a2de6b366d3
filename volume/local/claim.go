//go:build linux

package local

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/orchestrate-go/orchestrate/volume"
)

// Claim implements [volume.Fencer]. It ends the mounts of other tasks as their
// Unmount would. A container that still runs with one of them keeps its own view
// of it, which nothing short of its end can take away: for a folder of this
// machine that is the agent's part, and a claim is what it comes before.
func (d *Driver) Claim(ctx context.Context, c volume.Claim) error {
	if errs := c.Validate(); len(errs) > 0 {
		return errs[0]
	}
	if err := checkMount(volume.Mount{Volume: c.Volume, Task: c.Task}); err != nil {
		return err
	}
	unlock, err := d.keyed.lock(ctx, "v:"+c.Volume)
	if err != nil {
		return err
	}
	defer unlock()
	e := d.get(c.Volume)
	if e == nil {
		return fmt.Errorf("claim volume %q: %w", c.Volume, volume.ErrNotFound)
	}
	if err := e.Claim.Refuses(c); err != nil {
		return err
	}
	if e.Claim != c {
		// The claim comes first: who loses it must not mount again.
		next := e.record
		next.Claim = c
		d.step("claim: record")
		if err := next.write(d.path("volumes", c.Volume)); err != nil {
			return fmt.Errorf("claim volume %q: %w", c.Volume, err)
		}
		d.set(func() { e.record = next })
	}
	for _, m := range slices.SortedFunc(maps.Keys(e.mounts), compareMounts) {
		if m.Task == c.Task {
			continue
		}
		if err := d.unmount(e, m); err != nil {
			return fmt.Errorf("claim volume %q: end the mount of task %q: %w", c.Volume, m.Task, err)
		}
	}
	return nil
}

func compareMounts(a, b volume.Mount) int {
	return volume.CompareBinds(volume.Bind{Task: a.Task, ReadOnly: a.ReadOnly}, volume.Bind{Task: b.Task, ReadOnly: b.ReadOnly})
}

// Reach implements [volume.Reacher].
func (d *Driver) Reach() map[string]string { return maps.Clone(d.reach) }
