//go:build linux

package containerd

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/fifo"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/runtime"
)

var _ runtime.Execer = (*Runtime)(nil)

var errNotRunning = errors.New("the container is not running")

// Exec implements [runtime.Execer]. It does not wait for a Read of Stdin that
// goes on after the process has ended. A command that cannot be started is a
// *[runtime.StartError].
func (r *Runtime) Exec(ctx context.Context, id string, exec runtime.Exec) (int, error) {
	done, err := r.enter()
	if err != nil {
		return 0, wrap("exec in container", id, err)
	}
	defer done()
	code, err := r.exec(ctx, id, exec)
	if err != nil {
		var start *runtime.StartError
		var spec *runtime.SpecError
		if errors.As(err, &start) || errors.As(err, &spec) {
			return 0, err
		}
		return 0, wrap("exec in container", id, err)
	}
	return code, nil
}

func (r *Runtime) exec(ctx context.Context, id string, exec runtime.Exec) (int, error) {
	if len(exec.Args) == 0 {
		return 0, &runtime.SpecError{Field: "Exec.Args", Reason: "is empty: want a command"}
	}
	if exec.Dir != "" && !path.IsAbs(exec.Dir) {
		return 0, &runtime.SpecError{Field: "Exec.Dir", Reason: "is not absolute: " + exec.Dir}
	}
	c, err := r.container(id)
	if err != nil {
		return 0, err
	}
	if c.exited() {
		return 0, errNotRunning
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	process, err := r.execSpec(id, exec)
	if err != nil {
		return 0, err
	}
	spec, err := typeurl.MarshalAnyToProto(process)
	if err != nil {
		return 0, err
	}
	execID := strings.ToLower(rand.Text())
	streams, err := openStreams(ctx, filepath.Join(r.state, "x", execID), exec)
	if err != nil {
		return 0, err
	}
	defer streams.close()

	// A call of the shim that is given up goes on in the shim. So the context
	// ends the process instead, and with it the calls.
	tasks, task := c.shim.tasks, c.task()
	call := context.WithoutCancel(ctx)
	if _, err := tasks.Exec(call, &taskapi.ExecProcessRequest{
		ID: task, ExecID: execID, Terminal: exec.Terminal, Spec: spec,
		Stdin: streams.stdin, Stdout: streams.stdout, Stderr: streams.stderr,
	}); err != nil {
		return 0, execError(c, err)
	}
	deleted := false
	defer func() {
		if !deleted {
			tasks.Delete(call, &taskapi.DeleteRequest{ID: task, ExecID: execID})
		}
	}()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if _, err := tasks.Start(call, &taskapi.StartRequest{ID: task, ExecID: execID}); err != nil {
		return 0, execError(c, err)
	}
	streams.copyStdin(exec.Stdin, func() {
		tasks.CloseIO(call, &taskapi.CloseIORequest{ID: task, ExecID: execID, Stdin: true})
	})
	stop := context.AfterFunc(ctx, func() {
		tasks.Kill(call, &taskapi.KillRequest{ID: task, ExecID: execID, Signal: uint32(unix.SIGKILL)})
	})
	resp, err := tasks.Wait(call, &taskapi.WaitRequest{ID: task, ExecID: execID})
	stop()
	if err != nil {
		return 0, execError(c, err)
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	// Deleting waits for the shim's end of the output, for two seconds at
	// most: a process left in the background may hold it for ever.
	deleted = true
	if _, err := tasks.Delete(call, &taskapi.DeleteRequest{ID: task, ExecID: execID}); err != nil && !errdefs.IsNotFound(errgrpc.ToNative(err)) && !c.exited() {
		return 0, execError(c, err)
	}
	return int(resp.ExitStatus), streams.wait()
}

// execError tells an exec that failed because its container ended from one
// that cannot work.
func execError(c *container, err error) error {
	native := errgrpc.ToNative(err)
	switch {
	case c.exited(), errdefs.IsFailedPrecondition(native), errdefs.IsNotFound(native):
		return errNotRunning
	case strings.Contains(native.Error(), "container not running"), strings.Contains(native.Error(), "cannot exec in a stopped"):
		return errNotRunning
	}
	return startError(runtime.Spec{ID: c.record.ID}, err)
}

// execSpec is the container's own process, changed as exec says.
func (r *Runtime) execSpec(id string, exec runtime.Exec) (*specs.Process, error) {
	text, err := os.ReadFile(filepath.Join(r.bundle(id), "config.json"))
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, err
	}
	p := spec.Process
	p.Args, p.Terminal = exec.Args, exec.Terminal
	p.Env = mergeEnv(p.Env, exec.Env)
	if exec.Terminal {
		p.Env = mergeEnv([]string{"TERM=xterm"}, p.Env)
	}
	p.Cwd = firstOf(exec.Dir, p.Cwd)
	if exec.User != "" {
		// The files as the container has them now.
		rootfs := []string{filepath.Join(r.bundle(id), "rootfs")}
		p.User, err = resolveUser(exec.User, func(name string) ([][]string, error) { return readTable(rootfs, name) })
		if err != nil {
			return nil, &runtime.StartError{ID: id, Reason: err.Error(), Permanent: true, Err: err}
		}
	}
	return p, nil
}

// execStreams are the named pipes between the shim and this process.
type execStreams struct {
	dir                   string
	stdin, stdout, stderr string // paths; empty for none
	in                    io.WriteCloser
	out                   []io.ReadCloser
	copies                sync.WaitGroup
	writing               sync.Mutex
	mu                    sync.Mutex
	err                   error // of the caller's writers; guarded by mu
}

// oneAtATime lets a caller give one writer for both outputs.
type oneAtATime struct {
	mu *sync.Mutex
	w  io.Writer
}

func (w oneAtATime) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(p)
}

func openStreams(ctx context.Context, dir string, exec runtime.Exec) (_ *execStreams, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &execStreams{dir: dir}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	// The pipes stay open beyond the caller's context, which ends the process
	// and with it them.
	ctx = context.WithoutCancel(ctx)
	if exec.Stdin != nil {
		s.stdin = filepath.Join(dir, "in")
		if s.in, err = fifo.OpenFifo(ctx, s.stdin, unix.O_WRONLY|unix.O_CREAT|unix.O_NONBLOCK, 0o600); err != nil {
			return nil, err
		}
	}
	outputs := []struct {
		path *string
		name string
		to   io.Writer
	}{{&s.stdout, "out", exec.Stdout}, {&s.stderr, "err", exec.Stderr}}
	if exec.Terminal {
		outputs = outputs[:1]
	}
	for _, o := range outputs {
		*o.path = filepath.Join(dir, o.name)
		f, err := fifo.OpenFifo(ctx, *o.path, unix.O_RDONLY|unix.O_CREAT|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, err
		}
		s.out = append(s.out, f)
		to := io.Discard
		if o.to != nil {
			to = oneAtATime{&s.writing, o.to}
		}
		s.copies.Go(func() { s.copy(to, f) })
	}
	return s, nil
}

// copy copies a pipe to its end, also past a writer that fails: the process
// must not block.
func (s *execStreams) copy(to io.Writer, from io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && to != nil {
			if _, werr := to.Write(buf[:n]); werr != nil {
				s.mu.Lock()
				s.err = errors.Join(s.err, werr)
				s.mu.Unlock()
				to = nil
			}
		}
		if err != nil {
			return
		}
	}
}

func (s *execStreams) copyStdin(from io.Reader, closed func()) {
	if from == nil {
		return
	}
	go func() { // ends with the caller's reader, or at its next Read after close
		io.Copy(s.in, from)
		s.in.Close()
		closed()
	}()
}

// wait waits for the end of the output.
func (s *execStreams) wait() error {
	s.copies.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *execStreams) close() {
	if s.in != nil {
		s.in.Close()
	}
	for _, f := range s.out {
		f.Close()
	}
	s.copies.Wait()
	os.RemoveAll(s.dir)
}
