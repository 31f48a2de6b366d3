//go:build linux

package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	daemonapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/orchestrate-go/orchestrate/runtime"
)

var (
	_ runtime.Updater = (*Runtime)(nil)
	_ runtime.Updater = (*Client)(nil)
)

// Update implements [runtime.Updater] through the container's shim.
func (r *Runtime) Update(ctx context.Context, id string, want runtime.Resources) error {
	if err := want.Validate(); err != nil {
		return err
	}
	release, err := r.take(ctx, id)
	if err != nil {
		return wrap("update container", id, err)
	}
	defer release()
	c, err := r.container(id)
	if err == nil && c.exited() {
		err = fmt.Errorf("%w: it has exited", runtime.ErrNotFound)
	}
	if err != nil {
		return wrap("update container", id, err)
	}
	if err := r.update(ctx, c, want); err != nil {
		var refused *runtime.ResourceError
		if errors.As(err, &refused) {
			return err
		}
		return wrap("update container", id, err)
	}
	return nil
}

// Update implements [runtime.Updater], as [Runtime.Update] does.
func (cl *Client) Update(ctx context.Context, id string, want runtime.Resources) error {
	return cl.r.Update(ctx, id, want)
}

func (r *Runtime) update(ctx context.Context, c *container, want runtime.Resources) error {
	if err := r.cgroups.checkCPUs(want.CPUSet); err != nil {
		return &runtime.ResourceError{ID: c.record.ID, Reason: err.Error(), Err: err}
	}
	res, err := r.cgroups.changed(want)
	if err != nil {
		return err
	}
	text, err := json.Marshal(res)
	if err != nil {
		return err
	}
	url, err := typeurl.TypeURL(&specs.LinuxResources{})
	if err != nil {
		return err
	}
	// As with a start: a call that is given up goes on in the shim.
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	_, err = c.shim.tasks.Update(call, &taskapi.UpdateTaskRequest{
		ID: c.task(), Resources: &anypb.Any{TypeUrl: url, Value: text},
	})
	switch {
	case err == nil:
	case c.exited():
		return fmt.Errorf("%w: it has exited", runtime.ErrNotFound)
	case c.shim.dead(), errdefs.IsUnavailable(errgrpc.ToNative(err)), errdefs.IsDeadlineExceeded(errgrpc.ToNative(err)):
		return err
	default:
		native := errgrpc.ToNative(err)
		return &runtime.ResourceError{ID: c.record.ID, Reason: updateReason(native), Err: native}
	}
	if r.cgroups.unified && want.MemoryRequest == 0 {
		// runc has no word for "none" there: it takes 0 for no change, and -1
		// for protection without bound.
		return os.WriteFile(filepath.Join(r.cgroups.dir("memory", c.task()), "memory.low"), []byte("0"), 0o644)
	}
	return nil
}

// updateReason is what runc says, without who says it.
func updateReason(err error) string {
	reason := err.Error()
	for _, prefix := range []string{"runc did not terminate successfully: exit status 1: ", "level=error msg="} {
		if _, after, ok := strings.Cut(reason, prefix); ok {
			reason = after
		}
	}
	return strings.Trim(strings.TrimSuffix(strings.TrimSpace(reason), ": unknown"), `"`)
}

// changed is what a running container's bounds become. In the resources of a
// start a field that is not there is no bound; to runc's update it is one that
// stays, so that each is spelt out here.
func (t cgroupTree) changed(want runtime.Resources) (*specs.LinuxResources, error) {
	quota, period, shares := int64(-1), uint64(cfsPeriod), uint64(1024)
	limit, request, pids := int64(-1), int64(-1), int64(-1)
	check := true // version 2 would rather kill than refuse
	res := &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares, Cpus: want.CPUSet},
		Memory: &specs.LinuxMemory{Limit: &limit, Reservation: &request, CheckBeforeUpdate: &check},
		Pids:   &specs.LinuxPids{Limit: &pids},
	}
	if want.CPU > 0 {
		quota = max(want.CPU*cfsPeriod/1000, 1000)
	}
	if want.CPUShares > 0 {
		shares = uint64(max(want.CPUShares*1024/1000, 2))
	}
	if want.Memory > 0 {
		limit, res.Memory.Swap = want.Memory, &limit // without a limit, runc lifts that of swap too
	}
	if want.MemoryRequest > 0 {
		request = want.MemoryRequest
	} else if t.unified {
		res.Memory.Reservation = nil
	}
	if want.Pids > 0 {
		pids = want.Pids
	}
	if want.CPUSet == "" {
		file := "cpuset.cpus"
		if t.unified {
			file = "cpuset.cpus.effective"
		}
		text, err := os.ReadFile(filepath.Join(filepath.Dir(t.dir("cpuset", "any")), file))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		res.CPU.Cpus = strings.TrimSpace(string(text))
	}
	return res, nil
}

// Update is spoken to a daemon like the rest of the task API.
func (d daemonTasks) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	return d.api.Update(ctx, &daemonapi.UpdateTaskRequest{ContainerID: r.ID, Resources: r.Resources})
}
