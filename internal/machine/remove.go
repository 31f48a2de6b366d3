//go:build linux

package machine

import (
	"context"
	"errors"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/volume"
	"github.com/orchestrate-go/orchestrate/volume/local"
)

// RemoveContainers removes all containers of a runtime: also what belongs to a task
// that nobody knows any more, and that an agent had no time to release.
func RemoveContainers(ctx context.Context, r runtime.Runtime) error {
	containers, err := r.List(ctx, nil)
	errs := []error{err}
	for _, c := range containers {
		errs = append(errs, r.Remove(ctx, c.ID))
	}
	return errors.Join(errs...)
}

// RemoveVolumes releases and removes all volumes of a driver, with their data.
func RemoveVolumes(ctx context.Context, d *local.Driver) error {
	binds, err := d.Binds(ctx)
	errs := []error{err}
	for _, b := range binds {
		errs = append(errs, d.Unbind(ctx, b))
	}
	volumes, err := d.List(ctx)
	errs = append(errs, err)
	for _, v := range volumes {
		for _, task := range v.Tasks {
			errs = append(errs, d.Unmount(ctx, volume.Mount{Volume: v.Name, Task: task}))
		}
		errs = append(errs, d.Remove(ctx, v.Name))
	}
	return errors.Join(errs...)
}
