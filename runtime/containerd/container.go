//go:build linux

package containerd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// record is what a container's bundle remembers of it, for the next process.
// It lies in State: a reboot ends both the container and the record.
type record struct {
	ID     string
	Labels map[string]string
	Image  string
	Chain  string // of the layers below its own
	Shim   string // ID of its shim
	Group  string
	Run    int // number of its log files
	// LogLimit is in bytes.
	LogLimit int64
	Started  time.Time
	PID      int
	Exit     *runtime.Exit // once it has exited
	// Task is its ID in its shim; ID when empty.
	Task string `json:",omitempty"`
}

const recordFile = "container.json"

// container is one container that exists.
type container struct {
	record record // never changes; info adds what does
	shim   *shim
	pidfd  int           // of the first process; -1 when it has exited
	done   chan struct{} // closed by the waiter, once exit is set

	exit runtime.Exit

	mu       sync.Mutex // guards pidfd and released
	released bool       // the shim was given back
}

// save appends the record to the file of its bundle, of which the last whole
// line counts: what a process that was killed had begun to write has no newline
// at its end. To append costs a tenth of what a new file does.
func (r *Runtime) save(rec record) error {
	text, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(r.bundle(rec.ID), recordFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(slices.Concat([]byte("\n"), text, []byte("\n")))
	return errors.Join(err, f.Close())
}

// saved returns the record of a container's bundle.
func (r *Runtime) saved(id string) (rec record, err error) {
	text, err := os.ReadFile(filepath.Join(r.bundle(id), recordFile))
	if err != nil {
		return rec, err
	}
	text = bytes.TrimRight(text[:bytes.LastIndexByte(text, '\n')+1], "\n")
	if err := json.Unmarshal(text[bytes.LastIndexByte(text, '\n')+1:], &rec); err != nil {
		return rec, fmt.Errorf("the record of container %s: %w", id, err)
	}
	return rec, nil
}

// group is what its shim has it under: a container without one is its own.
func (c *container) group() string { return firstOf(c.record.Group, c.record.ID) }

func (c *container) task() string { return firstOf(c.record.Task, c.record.ID) }

func (c *container) exited() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (c *container) info() runtime.Container {
	info := runtime.Container{
		ID: c.record.ID, Labels: maps.Clone(c.record.Labels), Image: c.record.Image,
		State: runtime.Running, PID: c.record.PID, Started: c.record.Started,
	}
	if c.exited() {
		info.State, info.PID, info.Exit = runtime.Exited, 0, c.exit
	}
	return info
}

// signal sends a signal to the first process. The pidfd names the process and
// no later one with the same number, and costs no run of runc.
func (c *container) signal(sig runtime.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd < 0 {
		return nil
	}
	err := unix.PidfdSendSignal(c.pidfd, unix.Signal(sig), nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// watch waits for the container's exit until the runtime is closed. It is
// the one that sets exit and closes done.
func (r *Runtime) watch(c *container) {
	r.wg.Go(func() {
		resp, err := c.shim.tasks.Wait(r.ctx, &taskapi.WaitRequest{ID: c.record.ID})
		var exit runtime.Exit
		switch {
		case err == nil:
			exit = runtime.Exit{Code: int(resp.ExitStatus), At: resp.ExitedAt.AsTime()}
		case r.ctx.Err() != nil:
			c.closePidfd()
			return
		default:
			// The shim is gone, and with it the parent of the container. Its
			// processes may live on; a container that nobody watches must
			// not.
			r.log.Error("a shim died; its container is killed", "container", c.record.ID, "error", err)
			r.runcDelete(c.record.ID)
			exit = runtime.Exit{Code: 128 + int(runtime.SIGKILL), At: time.Now()}
		}
		exit.OOMKilled = r.cgroups.oomKills(c.record.ID) > 0
		r.finish(c, exit)
	})
}

// finish makes the exit known, on disk first.
func (r *Runtime) finish(c *container, exit runtime.Exit) {
	c.closePidfd()
	rec := c.record
	rec.Exit = &exit
	if err := r.save(rec); err != nil {
		// The shim still knows the exit code while it lives.
		r.log.Warn("the exit of a container is not recorded", "container", rec.ID, "error", err)
	}
	// gofail: var exitRecorded struct{}
	// die()
	c.exit = exit
	close(c.done)
}

// release gives the container's shim back, once.
func (c *container) release(ctx context.Context, p *shimPool) {
	c.mu.Lock()
	first := !c.released
	c.released = true
	c.mu.Unlock()
	if first {
		p.release(ctx, c.shim, c.group())
	}
}

func (c *container) closePidfd() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd >= 0 {
		unix.Close(c.pidfd)
		c.pidfd = -1
	}
}

// adopt finds the containers that an earlier process started.
func (r *Runtime) adopt() error {
	dirs, err := os.ReadDir(r.bundles())
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	limit := make(chan struct{}, 16)
	for _, d := range dirs {
		wg.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			r.adoptOne(d.Name())
		})
	}
	wg.Wait()
	// gofail: var containersAdopted struct{}
	// die()
	if err := r.shims.adoptIdle(); err != nil {
		return err
	}
	return r.removeStrayLayers()
}

// adoptOne takes over the container of a bundle, or clears up after a start
// that did not come to its end.
func (r *Runtime) adoptOne(id string) {
	rec, err := r.saved(id)
	if err != nil || rec.ID != id {
		r.clear(id, nil)
		return
	}
	if rec.Run > 0 {
		if err := r.watchLogs(rec); err != nil {
			r.log.Warn("the logs of a container are not watched", "container", id, "error", err)
		}
	}
	c := &container{record: rec, pidfd: -1, done: make(chan struct{})}
	sh, shimErr := r.shims.find(rec.Shim)
	if shimErr == nil {
		c.shim = sh
		r.shims.use(sh, c.group())
	}
	switch {
	case rec.Exit != nil:
		c.exit = *rec.Exit
		close(c.done)
	case shimErr != nil && rec.PID == 0:
		r.clear(id, nil)
		return
	case shimErr != nil:
		r.runcDelete(id)
		r.finish(c, runtime.Exit{Code: 128 + int(runtime.SIGKILL), At: time.Now(), OOMKilled: r.cgroups.oomKills(id) > 0})
	default:
		pid := 0
		state, err := sh.tasks.State(r.ctx, &taskapi.StateRequest{ID: id})
		if err == nil {
			pid = int(state.Pid)
		}
		if err != nil || state.Status == tasktypes.Status_CREATED {
			// Start had not come to its end.
			if err := r.abort(id); err != nil {
				r.log.Error("a start that was cut off is not ended", "container", id, "error", err)
			}
			r.clear(id, c)
			return
		}
		if rec.PID == 0 {
			// It had, but for the record.
			rec.PID, rec.Started = pid, time.Now()
			c.record = rec
		}
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			c.pidfd = fd
		}
		// The process was the shim's child, unreaped, when it was asked for
		// its state after the descriptor was opened: the descriptor is of it.
		if state, err = sh.tasks.State(r.ctx, &taskapi.StateRequest{ID: id}); err != nil || state.Status == tasktypes.Status_STOPPED {
			c.closePidfd()
		}
		r.watch(c)
		if err == nil && state.Status == tasktypes.Status_STOPPED {
			<-c.done // at once: what ended while nobody was there is not listed as running
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.containers[id] = c
}

// removeStrayLayers deletes the writable layers that no container owns, such
// as all of them after a reboot.
func (r *Runtime) removeStrayLayers() error {
	dirs, err := os.ReadDir(filepath.Join(r.root, "containers"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if r.containers[d.Name()] == nil {
			if err := os.RemoveAll(r.layer(d.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Wait implements [runtime.Runtime].
func (r *Runtime) Wait(ctx context.Context, id string) (runtime.Exit, error) {
	fail := func(err error) (runtime.Exit, error) { return runtime.Exit{}, wrap("wait for container", id, err) }
	c, err := r.container(id)
	if err != nil {
		return fail(err)
	}
	select {
	case <-c.done:
		return c.exit, nil
	case <-ctx.Done():
		return fail(ctx.Err())
	case <-r.ctx.Done():
		return fail(runtime.ErrClosed)
	}
}

// Kill implements [runtime.Runtime].
func (r *Runtime) Kill(ctx context.Context, id string, signal runtime.Signal) error {
	if err := ctx.Err(); err != nil {
		return wrap("kill container", id, err)
	}
	c, err := r.container(id)
	if errors.Is(err, runtime.ErrNotFound) {
		return nil
	}
	if err == nil {
		// SIGKILL of the first process ends all of its PID namespace
		// (pid_namespaces(7)).
		err = c.signal(signal)
	}
	if err != nil {
		return wrap("kill container", id, err)
	}
	return nil
}
