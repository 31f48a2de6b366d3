//go:build linux

package containerd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	daemonapi "github.com/containerd/containerd/api/services/tasks/v1"
	"google.golang.org/protobuf/types/known/emptypb"
)

// shimFor returns the way to the processes of a container: its shim when that
// can be reached, otherwise the daemon. The exit of a container that ends
// while no daemon runs is then still seen at once.
func (cl *Client) shimFor(address string) *shim {
	if address != "" && !cl.opts.viaDaemon {
		s := newShim(address)
		err := s.dial(address)
		if err == nil {
			return s
		}
		cl.r.log.Debug("a shim is spoken to through containerd", "address", address, "error", err)
	}
	return &shim{tasks: daemonTasks{api: cl.client.TaskService()}}
}

// hangUp ends the connection to a shim. It is idempotent.
func (s *shim) hangUp() {
	if s != nil && s.conn != nil {
		s.conn.Close()
	}
}

// shimAddress finds the socket of the shim of a task that was created and not
// yet started. containerd's clients are not told, but the process's parent is
// the shim, which works in the task's bundle, where containerd's
// core/runtime/v2 keeps the address. It is empty for a shim that speaks
// another protocol or is elsewhere, such as in a virtual machine.
func shimAddress(pid int, task string) string {
	parent := parentOf(pid)
	if parent <= 1 {
		return ""
	}
	bundle, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", parent))
	if err != nil || filepath.Base(bundle) != task {
		return ""
	}
	text, err := os.ReadFile(filepath.Join(bundle, "bootstrap.json"))
	if err != nil {
		return ""
	}
	var params struct {
		Version           int
		Address, Protocol string
	}
	if json.Unmarshal(text, &params) != nil || params.Version < 3 || params.Protocol != "ttrpc" {
		return ""
	}
	path, ok := strings.CutPrefix(params.Address, "unix://")
	if !ok {
		return ""
	}
	return path
}

func parentOf(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "PPid:"); ok {
			parent, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				return 0
			}
			return parent
		}
	}
	return 0
}

// daemonTasks speaks the part of a shim's task API that is used once a task
// has been created, to the daemon.
type daemonTasks struct {
	taskapi.TTRPCTaskService // nil: nothing else is called
	api                      daemonapi.TasksClient
}

func (d daemonTasks) State(ctx context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	resp, err := d.api.Get(ctx, &daemonapi.GetRequest{ContainerID: r.ID, ExecID: r.ExecID})
	if err != nil {
		return nil, err
	}
	p := resp.Process
	return &taskapi.StateResponse{ID: r.ID, ExecID: r.ExecID, Pid: p.Pid, Status: p.Status, ExitStatus: p.ExitStatus, ExitedAt: p.ExitedAt}, nil
}

func (d daemonTasks) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	return d.api.Exec(ctx, &daemonapi.ExecProcessRequest{
		ContainerID: r.ID, ExecID: r.ExecID, Terminal: r.Terminal, Spec: r.Spec,
		Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr,
	})
}

func (d daemonTasks) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	resp, err := d.api.Start(ctx, &daemonapi.StartRequest{ContainerID: r.ID, ExecID: r.ExecID})
	if err != nil {
		return nil, err
	}
	return &taskapi.StartResponse{Pid: resp.Pid}, nil
}

func (d daemonTasks) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	return d.api.Kill(ctx, &daemonapi.KillRequest{ContainerID: r.ID, ExecID: r.ExecID, Signal: r.Signal, All: r.All})
}

func (d daemonTasks) CloseIO(ctx context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	return d.api.CloseIO(ctx, &daemonapi.CloseIORequest{ContainerID: r.ID, ExecID: r.ExecID, Stdin: r.Stdin})
}

func (d daemonTasks) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	resp, err := d.api.Wait(ctx, &daemonapi.WaitRequest{ContainerID: r.ID, ExecID: r.ExecID})
	if err != nil {
		return nil, err
	}
	return &taskapi.WaitResponse{ExitStatus: resp.ExitStatus, ExitedAt: resp.ExitedAt}, nil
}

func (d daemonTasks) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	var resp *daemonapi.DeleteResponse
	var err error
	if r.ExecID != "" {
		resp, err = d.api.DeleteProcess(ctx, &daemonapi.DeleteProcessRequest{ContainerID: r.ID, ExecID: r.ExecID})
	} else {
		resp, err = d.api.Delete(ctx, &daemonapi.DeleteTaskRequest{ContainerID: r.ID})
	}
	if err != nil {
		return nil, err
	}
	return &taskapi.DeleteResponse{Pid: resp.Pid, ExitStatus: resp.ExitStatus, ExitedAt: resp.ExitedAt}, nil
}
