//go:build linux

package containerd

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	daemonapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/orchestrate-go/orchestrate/runtime"
)

const (
	// labelRoot marks the daemon's containers that belong to a Client, with
	// its Root.
	labelRoot = "orchestrate.root"
	// labelID says which of the Client's containers it is.
	labelID = "orchestrate.id"
	// recordExtension is where a container carries its record.
	recordExtension = "orchestrate.record"
)

// newTask is what the daemon will know a container by: each start has its own
// name, so that what is left of another of the same ID, or is just being
// deleted, is not in its way. containerd takes no name with two separators in
// succession, as in "a--b", which an ID may have.
func newTask(id string) string {
	const suffix = 8
	if identifiers.Validate(id) != nil || len(id) > 76-1-suffix {
		id = "id-" + shortHash(id)
	}
	return id + "-" + strings.ToLower(rand.Text()[:suffix])
}

// start implements engine. What the daemon's end cut off is undone and done
// again when it is back, unless the container may have run by then: that is
// the caller's to decide.
func (cl *Client) start(ctx context.Context, spec runtime.Spec) error {
	for {
		ran, err := cl.startOnce(ctx, spec)
		if err == nil || ran || !errdefs.IsUnavailable(err) {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

func (cl *Client) startOnce(ctx context.Context, spec runtime.Spec) (ran bool, err error) {
	r := cl.r
	b, release, err := r.useImage(ctx, spec.Image)
	if err != nil {
		return false, fmt.Errorf("image %q: %w", spec.Image, err)
	}
	defer release()
	oci, err := r.ociSpec(ctx, spec, b)
	if err != nil {
		return false, err
	}
	if err := cl.undoAgain(spec.ID); err != nil {
		return false, err
	}
	c := &container{pidfd: -1, done: make(chan struct{})}
	c.record = record{
		ID: spec.ID, Task: newTask(spec.ID), Labels: spec.Labels, Image: spec.Image, Chain: b.chain, Group: spec.Group,
	}
	oci.Linux.CgroupsPath = r.cgroups.of(c.task())
	defer func() {
		if err != nil {
			if undoErr := cl.clear(spec.ID, c); undoErr != nil {
				r.log.Error("what a failed start made is left for now", "container", spec.ID, "error", undoErr)
				r.mu.Lock()
				cl.undone[spec.ID] = c
				r.mu.Unlock()
			}
		}
	}()
	stdout, stderr, err := r.makeLogs(spec, &c.record)
	if err != nil {
		return false, err
	}
	if err := cl.saveNew(c.record, oci); err != nil {
		return false, err
	}
	rootfs, err := cl.create(ctx, c.record, oci)
	if err != nil {
		return false, err
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	var created *daemonapi.CreateTaskResponse
	err = r.seeThrough(ctx, c.task(), func(ctx context.Context) (err error) {
		created, err = cl.client.TaskService().Create(ctx, &daemonapi.CreateTaskRequest{
			ContainerID: c.task(), Rootfs: mount.ToProto(rootfs), Terminal: spec.Terminal, Stdout: stdout, Stderr: stderr,
		})
		return err
	})
	if err != nil {
		return false, daemonError(spec, err)
	}
	c.record.Shim = shimAddress(int(created.Pid), c.task())
	c.shim = cl.shimFor(c.record.Shim)
	if err := ctx.Err(); err != nil {
		return false, err
	}
	var started *daemonapi.StartResponse
	err = r.seeThrough(ctx, c.task(), func(ctx context.Context) (err error) {
		started, err = cl.client.TaskService().Start(ctx, &daemonapi.StartRequest{ContainerID: c.task()})
		return err
	})
	if err != nil {
		return true, daemonError(spec, err)
	}
	if err := cl.running(c, int(started.Pid), time.Now()); err != nil {
		return true, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.containers[spec.ID] = c
	cl.watch(c)
	return true, nil
}

// saveNew writes down what Exec and the next Connect need to know.
func (cl *Client) saveNew(rec record, oci *specs.Spec) error {
	text, err := json.Marshal(oci)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cl.r.bundle(rec.ID), 0o711); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(cl.r.bundle(rec.ID), "config.json"), text, 0o600); err != nil {
		return err
	}
	return cl.r.save(rec)
}

// running notes a container's process.
func (cl *Client) running(c *container, pid int, started time.Time) error {
	c.record.PID, c.record.Started = pid, started
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		c.pidfd = fd
	}
	// Where Exec finds the container's own files of users.
	link := filepath.Join(cl.r.bundle(c.record.ID), "rootfs")
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(fmt.Sprintf("/proc/%d/root", pid), link); err != nil {
		return err
	}
	return cl.r.save(c.record)
}

// undoAgain deletes what a failed start of an ID left because the daemon was
// not there.
func (cl *Client) undoAgain(id string) error {
	cl.r.mu.Lock()
	c := cl.undone[id]
	cl.r.mu.Unlock()
	if c == nil {
		return nil
	}
	if err := cl.clear(id, c); err != nil {
		return fmt.Errorf("delete what is left of an earlier start: %w", err)
	}
	cl.r.mu.Lock()
	defer cl.r.mu.Unlock()
	delete(cl.undone, id)
	return nil
}

// create makes the container in the daemon, with its writable layer. The
// record comes first: it keeps the layer from the collector, and a crash at
// any later point leaves something that the next Connect finds.
func (cl *Client) create(ctx context.Context, rec record, oci *specs.Spec) ([]mount.Mount, error) {
	ctx = cl.r.store.with(ctx)
	spec, err := typeurl.MarshalAny(oci)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(rec)
	if err != nil {
		return nil, err
	}
	marks := map[string]string{labelRoot: cl.r.root, labelID: rec.ID}
	for k, v := range rec.Labels {
		// For those who look at the daemon; the record has all of them.
		if _, own := marks[k]; !own && labels.Validate(k, v) == nil && !labels.IsReserved(k) {
			marks[k] = v
		}
	}
	if _, err := cl.client.ContainerService().Create(ctx, containers.Container{
		ID: rec.Task, Labels: marks, Image: rec.Image, Spec: spec,
		Runtime:     containers.RuntimeInfo{Name: cl.runtime, Options: cl.runtimeConfig},
		Snapshotter: cl.opts.Snapshotter, SnapshotKey: rec.Task,
		Extensions: map[string]typeurl.Any{recordExtension: &anypb.Any{TypeUrl: recordExtension, Value: text}},
	}); err != nil {
		return nil, err
	}
	// A daemon that starts takes a shim whose process has ended for a leak
	// and deletes it, and with it the exit code. One that has a sandbox of
	// the name it leaves alone. The sandbox is this entry and nothing more.
	_, err = cl.client.SandboxStore().Create(ctx, sandbox.Sandbox{
		ID: rec.Task, Labels: map[string]string{labelRoot: cl.r.root}, Runtime: sandbox.RuntimeOpts{Name: cl.runtime},
	})
	if err != nil && !errdefs.IsAlreadyExists(err) && !errdefs.IsNotImplemented(err) {
		return nil, fmt.Errorf("keep its exit code: %w", err)
	}
	mark := snapshots.WithLabels(map[string]string{labelRoot: cl.r.root})
	rootfs, err := cl.r.store.snap.Prepare(ctx, rec.Task, rec.Chain, mark)
	if errdefs.IsNotFound(err) {
		// Another user of the daemon deleted the image's layers.
		cl.r.store.drop(rec.Chain)
	}
	if err != nil {
		return nil, fmt.Errorf("writable layer: %w", err)
	}
	return rootfs, nil
}

// daemonError tells an error of the daemon from one of the container.
func daemonError(spec runtime.Spec, err error) error {
	native := errgrpc.ToNative(err)
	for _, s := range []string{"failed to start shim", "failed to resolve runtime path"} {
		if strings.Contains(native.Error(), s) {
			return native
		}
	}
	if errdefs.IsUnavailable(native) || errdefs.IsDeadlineExceeded(native) {
		return native
	}
	return startError(spec, err)
}

// deleteTask has the daemon delete the process of a container. While the
// daemon itself deletes it, as when its shim died, it fails with all sorts of
// errors.
func (cl *Client) deleteTask(ctx context.Context, task string) (err error) {
	for range undoTries {
		_, err = cl.client.TaskService().Delete(ctx, &daemonapi.DeleteTaskRequest{ContainerID: task})
		if err == nil {
			return nil
		}
		if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
			return nil
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	return fmt.Errorf("delete its task: %w", err)
}

const (
	// retryDelay is how long after a failed call the daemon is asked again.
	// While none runs the call itself waits.
	retryDelay = 100 * time.Millisecond
	undoTries  = 50
)

func pause(ctx context.Context) error {
	retry := time.NewTimer(retryDelay)
	defer retry.Stop()
	select {
	case <-retry.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// killShim kills a container's shim that containerd has forgotten: it does so
// when it dies right after it started one.
func (cl *Client) killShim(task string) error {
	want := []string{"-namespace", cl.r.store.ns, "-id", task, "-address", cl.opts.Address}
	return killByArgs(func(args []string) bool {
		i := slices.Index(args, want[0])
		return i > 0 && len(args)-i >= len(want) && slices.Equal(args[i:i+len(want)], want)
	})
}

// clear implements engine.
func (cl *Client) clear(id string, c *container) error {
	c.closePidfd()
	if err := cl.deleteContainer(c.task(), c.exited()); err != nil {
		return err
	}
	c.shim.hangUp()
	// By now the shim has written all of the output.
	cl.r.logs.remove(id)
	return os.RemoveAll(cl.r.bundle(id))
}

// deleteContainer deletes all that the daemon, its shim and runc have of a
// container, as far as it is there.
func (cl *Client) deleteContainer(task string, exited bool) error {
	ctx, cancel := context.WithTimeout(cl.r.store.with(context.Background()), 30*time.Second)
	defer cancel()
	if !exited {
		tasks := daemonTasks{api: cl.client.TaskService()}
		_, err := tasks.Kill(ctx, &taskapi.KillRequest{ID: task, Signal: uint32(unix.SIGKILL), All: true})
		if err == nil {
			_, err = tasks.Wait(ctx, &taskapi.WaitRequest{ID: task})
		}
		if err != nil && !errdefs.IsNotFound(errgrpc.ToNative(err)) {
			cl.r.log.Debug("containerd did not kill a container that is to be deleted", "container", task, "error", err)
		}
	}
	if err := cl.deleteTask(ctx, task); err != nil {
		return err
	}
	if !exited {
		if err := cl.killShim(task); err != nil {
			return err
		}
	}
	for _, step := range []struct {
		what   string
		delete func(context.Context, string) error
	}{
		{"its writable layer", cl.r.store.snap.Remove},
		{"its sandbox's entry", cl.client.SandboxStore().Delete},
		// The last: what is left is found by it.
		{"it", cl.client.ContainerService().Delete},
	} {
		err := step.delete(ctx, task)
		for errdefs.IsUnavailable(err) && pause(ctx) == nil {
			err = step.delete(ctx, task)
		}
		if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsNotImplemented(err) {
			return fmt.Errorf("delete %s in containerd: %w", step.what, err)
		}
	}
	// What a runc that was killed half-way left.
	cl.r.cgroups.remove(task)
	return os.RemoveAll(filepath.Join(cl.r.runcRoot(), cl.r.store.ns, task))
}
