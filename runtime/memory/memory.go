package memory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// Options configures a Runtime. The zero value is a machine on which every
// image can be pulled at once and every process runs until it is told to end.
type Options struct {
	// Program is what the containers of images run that were not set with
	// SetImage.
	Program Program
	// Strict makes references that were not set with SetImage unknown.
	Strict bool
}

// Runtime is an in-memory [runtime.Runtime] with every ability but that of an
// Importer. It plays the machine, and the registry that it pulls from: it
// outlives the agents that use it, so a test restarts an agent by making a new
// one on the same Runtime.
type Runtime struct {
	opts Options

	mu         sync.Mutex
	closed     bool
	images     map[string]Image       // what a registry has, by reference
	contents   map[string]Image       // and by digest, for ever
	sets       map[string]int         // how often a reference was set
	present    map[string]Image       // what references that were pulled mean here
	containers map[string]*container  // by ID
	starting   map[string]*chanCloser // Starts under way, by ID
	logs       map[string]*logBuffer  // by container ID
	fault      func(Op) error
	pids       int
	hold       hold
	wg         sync.WaitGroup // processes that run a Go function
}

// chanCloser is a channel that its one owner closes when a start has ended.
type chanCloser struct{ done chan struct{} }

var (
	_ runtime.Runtime     = (*Runtime)(nil)
	_ runtime.Execer      = (*Runtime)(nil)
	_ runtime.LogReader   = (*Runtime)(nil)
	_ runtime.StatsReader = (*Runtime)(nil)
	_ runtime.ImageLister = (*Runtime)(nil)
	_ runtime.Resolver    = (*Runtime)(nil)
	_ runtime.Updater     = (*Runtime)(nil)
	_ runtime.Holder      = (*Runtime)(nil)
)

// New returns a Runtime without images or containers.
func New(opts Options) *Runtime {
	return &Runtime{
		opts:       opts,
		images:     map[string]Image{},
		contents:   map[string]Image{},
		sets:       map[string]int{},
		present:    map[string]Image{},
		containers: map[string]*container{},
		starting:   map[string]*chanCloser{},
		logs:       map[string]*logBuffer{},
	}
}

// Op is a call of a Runtime's method that is about to have its effect or has
// had it.
type Op struct {
	// Method is "Pull", "Resolve", "Start", "Update", "Wait", "Kill",
	// "Remove", "List", "Exec" or "Hold".
	Method string
	ID     string // of the container; empty for Pull, Resolve, List and Hold
	Ref    string // of the image, for Pull, Resolve and Start
	// Done is false before the effect. It is true after it, where an error
	// stands for a caller that died before it learned of the success.
	Done bool
}

// SetFault has every call ask fault, which may block and may return an error
// for the call to fail with. A nil fault ends it.
func (r *Runtime) SetFault(fault func(Op) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = fault
}

func (r *Runtime) ask(op Op) error {
	r.mu.Lock()
	fault, closed := r.fault, r.closed
	r.mu.Unlock()
	if closed && !op.Done {
		return runtime.ErrClosed
	}
	if fault == nil {
		return nil
	}
	return fault(op)
}

// Close kills every container and waits for their processes to end. Calls
// after it return [runtime.ErrClosed].
func (r *Runtime) Close() error {
	r.mu.Lock()
	r.closed = true
	if r.hold.timer != nil {
		r.hold.timer.Stop()
	}
	all := slices.Collect(maps.Values(r.containers))
	r.mu.Unlock()
	for _, c := range all {
		c.end(128+int(runtime.SIGKILL), false)
	}
	r.wg.Wait()
	return nil
}

// Start implements [runtime.Runtime].
func (r *Runtime) Start(ctx context.Context, spec runtime.Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("start container %s: %w", spec.ID, err) }
	if err := r.ask(Op{Method: "Start", ID: spec.ID, Ref: spec.Image}); err != nil {
		return fail(err)
	}
	mine := &chanCloser{done: make(chan struct{})}
	for {
		if err := ctx.Err(); err != nil {
			return fail(err)
		}
		r.mu.Lock()
		other := r.starting[spec.ID]
		if other == nil {
			r.starting[spec.ID] = mine
			r.mu.Unlock()
			break
		}
		r.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
		}
	}
	defer func() {
		r.mu.Lock()
		delete(r.starting, spec.ID)
		r.mu.Unlock()
		close(mine.done)
	}()

	r.mu.Lock()
	old := r.containers[spec.ID]
	image, present := r.present[spec.Image]
	program := image.Program
	r.mu.Unlock()
	if old != nil && old.info().State == runtime.Running {
		return nil
	}
	if !present {
		return fail(runtime.ErrImageNotFound)
	}
	if err := sleep(ctx, program.StartTime); err != nil {
		return fail(err)
	}
	if program.StartErr != nil {
		return program.startError(spec.ID)
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return fail(runtime.ErrClosed)
	}
	if _, held := spec.Labels[runtime.LabelHeld]; held && r.isOver() {
		r.mu.Unlock()
		return fail(runtime.ErrNotHeld)
	}
	r.pids++
	log := r.logs[spec.ID]
	if log == nil {
		log = newLogBuffer()
		r.logs[spec.ID] = log
	}
	log.limit(spec.Logs)
	c := newContainer(spec, program, log, 1000+r.pids, image.Config)
	r.containers[spec.ID] = c
	c.run(&r.wg)
	r.mu.Unlock()
	if err := r.ask(Op{Method: "Start", ID: spec.ID, Ref: spec.Image, Done: true}); err != nil {
		return fail(err)
	}
	return nil
}

// Wait implements [runtime.Runtime].
func (r *Runtime) Wait(ctx context.Context, id string) (runtime.Exit, error) {
	fail := func(err error) (runtime.Exit, error) {
		return runtime.Exit{}, fmt.Errorf("wait for container %s: %w", id, err)
	}
	if err := r.ask(Op{Method: "Wait", ID: id}); err != nil {
		return fail(err)
	}
	c, err := r.container(id)
	if err != nil {
		return fail(err)
	}
	select {
	case <-c.done:
		return c.exit(), nil
	case <-ctx.Done():
		return fail(ctx.Err())
	}
}

// Kill implements [runtime.Runtime].
func (r *Runtime) Kill(ctx context.Context, id string, signal runtime.Signal) error {
	err := r.ask(Op{Method: "Kill", ID: id})
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("kill container %s: %w", id, err)
	}
	if c, err := r.container(id); err == nil {
		c.signal(signal)
	}
	if err := r.ask(Op{Method: "Kill", ID: id, Done: true}); err != nil {
		return fmt.Errorf("kill container %s: %w", id, err)
	}
	return nil
}

// Remove implements [runtime.Runtime].
func (r *Runtime) Remove(ctx context.Context, id string) error {
	err := r.ask(Op{Method: "Remove", ID: id})
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	if c, err := r.container(id); err == nil {
		c.end(128+int(runtime.SIGKILL), false)
		r.mu.Lock()
		if r.containers[id] == c {
			delete(r.containers, id)
		}
		r.mu.Unlock()
	}
	if err := r.ask(Op{Method: "Remove", ID: id, Done: true}); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	return nil
}

// List implements [runtime.Runtime].
func (r *Runtime) List(ctx context.Context, labels map[string]string) ([]runtime.Container, error) {
	err := r.ask(Op{Method: "List"})
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	r.mu.Lock()
	all := slices.Collect(maps.Values(r.containers))
	r.mu.Unlock()
	var list []runtime.Container
	for _, c := range all {
		info := c.info()
		if includes(info.Labels, labels) {
			list = append(list, info)
		}
	}
	slices.SortFunc(list, func(a, b runtime.Container) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// Crash ends a container's process from outside with an exit code, as a
// failing program would. Unknown and exited containers are left alone.
func (r *Runtime) Crash(id string, code int) {
	if c, err := r.container(id); err == nil {
		c.end(code, false)
	}
}

// OOM has the kernel kill a container's process for want of memory.
func (r *Runtime) OOM(id string) {
	if c, err := r.container(id); err == nil {
		c.end(128+int(runtime.SIGKILL), true)
	}
}

func (r *Runtime) container(id string) (*container, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil {
		return nil, runtime.ErrNotFound
	}
	return c, nil
}

func includes(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// sleep waits for d or the context's end.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errNotRunning = errors.New("the container is not running")
