//go:build linux

package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	runcopts "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/runtime"
)

func wrap(doing, id string, err error) error { return fmt.Errorf("%s %s: %w", doing, id, err) }

// Start implements [runtime.Runtime].
func (r *Runtime) Start(ctx context.Context, spec runtime.Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	release, err := r.take(ctx, spec.ID)
	if err != nil {
		return wrap("start container", spec.ID, err)
	}
	defer release()
	if old, err := r.container(spec.ID); err == nil {
		if !old.exited() {
			return nil
		}
		if err := r.remove(ctx, old); err != nil {
			return wrap("start container", spec.ID, fmt.Errorf("replace the old one: %w", err))
		}
	}
	if err := r.holds(&spec); err != nil {
		return wrap("start container", spec.ID, err)
	}
	if err := r.engine.start(ctx, spec); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		var start *runtime.StartError
		if errors.As(err, &start) {
			return err
		}
		return wrap("start container", spec.ID, err)
	}
	return nil
}

func (r *Runtime) start(ctx context.Context, spec runtime.Spec) (err error) {
	b, release, err := r.useImage(ctx, spec.Image)
	if err != nil {
		return fmt.Errorf("image %q: %w", spec.Image, err)
	}
	defer release()
	oci, err := r.ociSpec(ctx, spec, b)
	if err != nil {
		return err
	}
	text, err := json.Marshal(oci)
	if err != nil {
		return err
	}
	sh, err := r.shims.acquire(ctx, firstOf(spec.Group, spec.ID))
	if err != nil {
		return err
	}
	// gofail: var shimAcquired struct{}
	// die()
	c := &container{shim: sh, pidfd: -1, done: make(chan struct{})}
	c.record = record{
		ID: spec.ID, Labels: spec.Labels, Image: spec.Image, Chain: b.chain, Shim: sh.id, Group: spec.Group,
	}
	defer func() {
		if err != nil {
			r.clear(spec.ID, c)
		}
	}()
	rootfs, err := r.makeLayer(spec.ID, b)
	if err != nil {
		return err
	}
	// gofail: var layerMade struct{}
	// die()
	stdout, stderr, err := r.makeLogs(spec, &c.record)
	if err != nil {
		return err
	}
	// gofail: var logsMade struct{}
	// die()
	dir := r.bundle(spec.ID)
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o711); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600); err != nil {
		return err
	}
	// gofail: var bundleWritten struct{}
	// die()
	if err := r.save(c.record); err != nil {
		return err
	}
	// gofail: var recordSaved struct{}
	// die()
	options, err := typeurl.MarshalAnyToProto(&runcopts.Options{BinaryName: r.bin.runc, Root: r.runcRoot()})
	if err != nil {
		return err
	}
	err = r.seeThrough(ctx, spec.ID, func(ctx context.Context) error {
		_, err := sh.tasks.Create(ctx, &taskapi.CreateTaskRequest{
			ID: spec.ID, Bundle: dir, Rootfs: rootfs, Terminal: spec.Terminal,
			Stdout: stdout, Stderr: stderr, Options: options,
		})
		return err
	})
	if err != nil {
		return r.shimError(sh, spec, err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// gofail: var taskCreated struct{}
	// die()
	var started *taskapi.StartResponse
	err = r.seeThrough(ctx, spec.ID, func(ctx context.Context) (err error) {
		started, err = sh.tasks.Start(ctx, &taskapi.StartRequest{ID: spec.ID})
		return err
	})
	if err != nil {
		return r.shimError(sh, spec, err)
	}
	// gofail: var taskStarted struct{}
	// die()
	c.record.PID, c.record.Started = int(started.Pid), time.Now()
	if fd, err := unix.PidfdOpen(c.record.PID, 0); err == nil {
		c.pidfd = fd
	}
	if err := r.save(c.record); err != nil {
		return err
	}
	// gofail: var startRecorded struct{}
	// die()
	r.mu.Lock()
	r.containers[spec.ID] = c
	r.watch(c)
	r.mu.Unlock()
	r.shims.fill()
	return nil
}

// shimError is startError of a call of a shim. One that does not answer gets
// no more containers.
func (r *Runtime) shimError(sh *shim, spec runtime.Spec, err error) error {
	if errors.Is(err, errNoAnswer) {
		r.log.Error("a shim does not answer; it gets no more containers", "shim", sh.id)
		r.shims.doubt(sh)
	}
	return startError(spec, err)
}

// useImage looks an image up and keeps its layers from being deleted until
// release.
func (r *Runtime) useImage(ctx context.Context, ref string) (_ *bundle, release func(), err error) {
	b, err := r.store.lookup(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	chain := b.chain
	r.mu.Lock()
	r.chains[chain]++
	r.mu.Unlock()
	release = func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.chains[chain]--; r.chains[chain] == 0 {
			delete(r.chains, chain)
		}
	}
	// It may have been removed, or come to mean another image, just before it
	// was counted.
	b, err = r.store.lookup(ctx, ref)
	if err == nil && b.chain != chain {
		err = fmt.Errorf("%q was changed meanwhile", ref)
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	return b, release, nil
}

// makeLayer makes the writable layer of a container over its image's: two
// folders. It returns the mount for its root filesystem.
func (r *Runtime) makeLayer(id string, b *bundle) ([]*types.Mount, error) {
	dir := r.layer(id)
	upper, work := filepath.Join(dir, "fs"), filepath.Join(dir, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	if len(b.lower) == 0 {
		return []*types.Mount{{Type: "bind", Source: upper, Options: []string{"rbind", "rw"}}}, nil
	}
	// The root folder's mode comes from the image, as the upper one hides it.
	var st unix.Stat_t
	if err := unix.Stat(b.lower[0], &st); err != nil {
		return nil, err
	}
	if err := os.Chmod(upper, os.FileMode(st.Mode&0o777)); err != nil {
		return nil, err
	}
	if err := os.Lchown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return nil, err
	}
	return []*types.Mount{{
		Type: "overlay", Source: "overlay",
		Options: append([]string{
			"lowerdir=" + strings.Join(b.lower, ":"), "upperdir=" + upper, "workdir=" + work,
		}, b.extra...),
	}}, nil
}

// startError tells what can be tried again from what cannot, by what runc
// says: it has no codes.
func startError(spec runtime.Spec, err error) error {
	err = errgrpc.ToNative(err)
	reason := err.Error()
	for _, prefix := range []string{"OCI runtime create failed: ", "OCI runtime start failed: ", "runc create failed: ", "unable to start container process: "} {
		if _, after, ok := strings.Cut(reason, prefix); ok {
			reason = after
		}
	}
	reason = strings.TrimSuffix(reason, ": unknown")
	permanent := false
	for _, s := range []string{
		"executable file not found", "no such file or directory", "permission denied", "is a directory",
		"exec format error", "not a directory", "invalid argument", "is not a valid arch for seccomp",
	} {
		permanent = permanent || strings.Contains(reason, s)
	}
	if strings.Contains(reason, "too many open files") && !strings.Contains(reason, "in system") {
		// Its own limit, which holds for what runc still has to do.
		permanent = permanent || slices.ContainsFunc(spec.Ulimits, func(u runtime.Ulimit) bool { return u.Name == "nofile" })
	}
	return &runtime.StartError{ID: spec.ID, Reason: reason, Permanent: permanent, Err: err}
}

// Remove implements [runtime.Runtime].
func (r *Runtime) Remove(ctx context.Context, id string) error {
	release, err := r.take(ctx, id)
	if err != nil {
		return wrap("remove container", id, err)
	}
	defer release()
	c, err := r.container(id)
	if errors.Is(err, runtime.ErrNotFound) {
		return nil
	}
	if err == nil {
		err = r.remove(ctx, c)
	}
	if err != nil {
		return wrap("remove container", id, err)
	}
	return nil
}

// remove kills and deletes a container. The caller has its turn.
func (r *Runtime) remove(ctx context.Context, c *container) error {
	if err := c.signal(runtime.SIGKILL); err != nil {
		return err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ctx.Done():
		return runtime.ErrClosed
	}
	if err := r.engine.clear(c.record.ID, c); err != nil {
		return err
	}
	r.mu.Lock()
	delete(r.containers, c.record.ID)
	r.mu.Unlock()
	if r.store.orphaned(ctx, c.record.Image, c.record.Chain) {
		// Its image was removed while it ran.
		return r.store.forget(ctx, r.chainsInUse())
	}
	return nil
}

// clear deletes all that a start makes, as far as it is there: the task, the
// mount, the cgroup, the bundle and the layer. It goes on after the caller's
// context has ended, for half a container helps nobody.
func (r *Runtime) clear(id string, c *container) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c.closePidfd()
	deleted := false
	if c != nil && c.shim != nil {
		_, err := c.shim.tasks.Kill(ctx, &taskapi.KillRequest{ID: id, Signal: uint32(unix.SIGKILL), All: true})
		if c.exited() {
			err = nil
		}
		if err == nil {
			_, err = c.shim.tasks.Wait(ctx, &taskapi.WaitRequest{ID: id})
		}
		if err == nil {
			_, err = c.shim.tasks.Delete(ctx, &taskapi.DeleteRequest{ID: id})
		}
		// A shim that does not know the container may have been cut off in
		// the middle of making it: runc can know it all the same.
		deleted = err == nil
		c.release(ctx, r.shims)
	}
	// gofail: var taskDeleted struct{}
	// die()
	if !deleted {
		r.runcDelete(id)
	}
	// By now the shim has written all of the output.
	r.logs.remove(id)
	// gofail: var logsClosed struct{}
	// die()
	if err := mount.UnmountRecursive(filepath.Join(r.bundle(id), "rootfs"), unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount its root: %w", err)
	}
	// gofail: var rootUnmounted struct{}
	// die()
	r.cgroups.remove(id)
	r.letGo(id)
	err := os.RemoveAll(r.layer(id))
	// gofail: var layerRemoved struct{}
	// die()
	return errors.Join(err, os.RemoveAll(r.bundle(id)))
}

// runcDelete kills and deletes a container without its shim.
func (r *Runtime) runcDelete(id string) {
	if _, err := os.Stat(filepath.Join(r.runcRoot(), namespace, id)); err != nil {
		return
	}
	// runc takes a process for ended whose first thread has, and waits.
	r.cgroups.kill(id)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.bin.runc, "--root", filepath.Join(r.runcRoot(), namespace), "delete", "--force", id)
	if out, err := cmd.CombinedOutput(); err != nil {
		r.log.Error("runc cannot delete a container", "container", id, "error", err, "output", string(out))
	}
}
