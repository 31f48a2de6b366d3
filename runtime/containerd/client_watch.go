//go:build linux

package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// watch waits for the container's exit until the Client is closed.
func (cl *Client) watch(c *container) {
	r := cl.r
	r.wg.Go(func() {
		for {
			resp, err := c.shim.tasks.Wait(r.store.with(r.ctx), &taskapi.WaitRequest{ID: c.task()})
			switch {
			case err == nil:
				cl.ended(c, resp.ExitStatus, resp.ExitedAt.AsTime())
				return
			case r.ctx.Err() != nil:
				c.closePidfd()
				return
			case c.shim.conn != nil || errdefs.IsNotFound(errgrpc.ToNative(err)):
				cl.lost(c, err)
				return
			}
			// The daemon ended in the middle of the call.
			_ = pause(r.ctx) // its end is seen by the next call
		}
	})
}

// ended makes an exit known that a shim has told.
func (cl *Client) ended(c *container, status uint32, at time.Time) {
	cl.r.finish(c, runtime.Exit{Code: int(status), At: at, OOMKilled: cl.r.cgroups.oomKills(c.task()) > 0})
}

// lost ends a container whose shim is gone: it died, or somebody had the
// daemon delete the task. Nobody is left who could tell the exit code, and a
// container that nobody watches must not run on.
func (cl *Client) lost(c *container, cause error) {
	cl.r.log.Error("a shim is gone; its container is killed", "container", c.record.ID, "error", cause)
	kills := cl.r.cgroups.oomKills(c.task())
	if err := c.signal(runtime.SIGKILL); err != nil {
		cl.r.log.Error("a container without a shim is not killed", "container", c.record.ID, "error", err)
	}
	cl.r.cgroups.kill(c.task())
	cl.r.finish(c, runtime.Exit{Code: 128 + int(runtime.SIGKILL), At: time.Now(), OOMKilled: kills > 0})
}

// adopt finds the containers that an earlier Client of this Root started, and
// clears up after the starts and removals that did not come to their end.
func (cl *Client) adopt(ctx context.Context) error {
	filter := fmt.Sprintf("labels.%q==%s", labelRoot, strconv.Quote(cl.r.root))
	list, err := cl.client.ContainerService().List(ctx, filter)
	if err != nil {
		return err
	}
	// Of several with one ID the last is meant.
	slices.SortFunc(list, func(a, b containers.Container) int { return b.CreatedAt.Compare(a.CreatedAt) })
	var wg sync.WaitGroup
	limit := make(chan struct{}, 16)
	known := map[string]bool{}
	errs := make([]error, len(list))
	for i, found := range list {
		rec, ok := cl.recordOf(found)
		ok = ok && !known[rec.ID]
		if ok {
			known[rec.ID] = true
		}
		wg.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			if ok {
				errs[i] = cl.adoptOne(ctx, found, rec)
				return
			}
			errs[i] = cl.deleteContainer(found.ID, false)
		})
	}
	wg.Wait()
	dirs, err := os.ReadDir(cl.r.bundles())
	if err := errors.Join(append(errs, err)...); err != nil {
		return err
	}
	for _, d := range dirs {
		if !known[d.Name()] {
			// The daemon never had it, or has it no more.
			if err := os.RemoveAll(cl.r.bundle(d.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// recordOf returns what is remembered of a container: on disk, or, for what
// was known when it was made, in the daemon. It is false for one whose ID was
// started again.
func (cl *Client) recordOf(found containers.Container) (rec record, ok bool) {
	ext := found.Extensions[recordExtension]
	if ext == nil || json.Unmarshal(ext.GetValue(), &rec) != nil || rec.Task != found.ID || !runtime.ValidID(rec.ID) {
		return rec, false
	}
	saved, err := cl.r.saved(rec.ID)
	if err != nil {
		return rec, true
	}
	return saved, saved.Task == rec.Task
}

func (cl *Client) adoptOne(ctx context.Context, found containers.Container, rec record) error {
	c := &container{record: rec, pidfd: -1, done: make(chan struct{}), shim: cl.shimFor(rec.Shim)}
	if rec.Exit != nil {
		c.exit = *rec.Exit
		close(c.done)
		return cl.adopted(c)
	}
	state, err := c.shim.tasks.State(ctx, &taskapi.StateRequest{ID: c.task()})
	switch {
	case err != nil && !errdefs.IsNotFound(errgrpc.ToNative(err)):
		c.shim.hangUp()
		return fmt.Errorf("state of container %s: %w", rec.ID, errgrpc.ToNative(err))
	case err != nil && rec.PID == 0, err == nil && state.Status == tasktypes.Status_CREATED:
		// Start had not come to its end, or the machine was started anew.
		return cl.clear(rec.ID, c)
	case err != nil:
		if err := cl.adopted(c); err != nil {
			return err
		}
		cl.lost(c, err)
		return nil
	}
	if rec.PID == 0 {
		// Start had, but for the record; or State was deleted.
		var oci specs.Spec
		if err := json.Unmarshal(found.Spec.GetValue(), &oci); err != nil {
			return fmt.Errorf("spec of container %s: %w", rec.ID, err)
		}
		if err := cl.saveNew(rec, &oci); err != nil {
			return err
		}
	}
	if rec.Started.IsZero() {
		rec.Started = found.CreatedAt
	}
	if rec.Shim == "" {
		c.record.Shim = shimAddress(int(state.Pid), c.task())
		c.shim = cl.shimFor(c.record.Shim)
	}
	if err := cl.running(c, int(state.Pid), rec.Started); err != nil {
		return err
	}
	// The process was the shim's child, unreaped, when it was asked for after
	// the descriptor was opened: the descriptor is of it.
	state, err = c.shim.tasks.State(ctx, &taskapi.StateRequest{ID: c.task()})
	stopped := err == nil && state.Status == tasktypes.Status_STOPPED
	if err != nil || stopped {
		c.closePidfd()
	}
	if err := cl.adopted(c); err != nil {
		return err
	}
	if stopped {
		// So that it is not listed as running until watch has seen it.
		cl.ended(c, state.ExitStatus, state.ExitedAt.AsTime())
		return nil
	}
	cl.watch(c)
	return nil
}

// adopted makes a container known.
func (cl *Client) adopted(c *container) error {
	if c.record.Run > 0 {
		if err := cl.r.watchLogs(c.record); err != nil {
			cl.r.log.Warn("the logs of a container are not watched", "container", c.record.ID, "error", err)
		}
	}
	cl.r.mu.Lock()
	defer cl.r.mu.Unlock()
	cl.r.containers[c.record.ID] = c
	return nil
}
