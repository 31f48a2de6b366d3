//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/machine"
)

// Destroy removes every service and network, waits until nothing of them is
// left, closes the fleet and deletes its folder: state, images, logs, and the
// data of all volumes. When it returns nil, the machine is as if the fleet had
// never been, and a second call does nothing. After an error, open the fleet
// again to go on.
func (f *Fleet) Destroy(ctx context.Context) error {
	f.mu.Lock()
	destroyed := f.destroyed
	f.mu.Unlock()
	if destroyed {
		return nil
	}
	for _, a := range f.nodes { // what a stopped one has must be released too
		if err := f.runNode(a); err != nil {
			return err
		}
	}
	if err := f.removeServices(ctx); err != nil {
		return err
	}
	f.stop()
	err := errors.Join(f.Err(), f.clear(ctx))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("destroy fleet in %q: %w", f.dir, err)
	}
	if err := machine.RemoveFolder(f.dir); err != nil {
		return fmt.Errorf("destroy fleet in %q: %w", f.dir, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.destroyed = true
	return nil
}

// removeServices removes all services and jobs, and waits for their ends and those of
// services that were removed before.
func (f *Fleet) removeServices(ctx context.Context) error {
	services, err := f.List(ctx, "")
	if err != nil {
		return err
	}
	tasks, err := f.Tasks(ctx, "")
	if err != nil {
		return err
	}
	var names []string
	for _, s := range services {
		names = append(names, s.Namespace+"/"+s.Name)
	}
	crons, err := f.CronJobs(ctx, "")
	if err != nil {
		return err
	}
	for _, c := range crons {
		if err := f.Apply(ctx, orchestrate.Removal{Kind: orchestrate.KindCronJob, Name: c.Namespace + "/" + c.Name}); err != nil {
			return err
		}
	}
	jobs, err := f.Jobs(ctx, "")
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.CronJob != "" {
			continue // the leader removes it
		}
		names = append(names, j.Namespace+"/"+j.Name)
	}
	if err := f.Remove(ctx, names...); err != nil {
		return err
	}
	for _, t := range tasks {
		names = append(names, t.Namespace+"/"+t.Service)
	}
	for _, name := range names {
		if _, err := f.Wait(ctx, name); err != nil && !errors.Is(err, orchestrate.ErrNotFound) {
			return fmt.Errorf("wait for the end of %s: %w", name, err)
		}
	}
	return nil
}

// clear removes what is in the kernel and all volumes.
func (f *Fleet) clear(ctx context.Context) error {
	return errors.Join(machine.RemoveContainers(ctx, f.runtime), f.network.Purge(ctx), machine.RemoveVolumes(ctx, f.volumes))
}
