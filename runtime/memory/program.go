package memory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// Program is what a container's process does, as data: the zero value starts
// at once, runs until SIGTERM, SIGINT, SIGQUIT, SIGHUP or SIGKILL, and ends
// with 128 + the signal's number.
type Program struct {
	// StartTime is how long Start takes.
	StartTime time.Duration
	// StartErr makes Start fail with a *[runtime.StartError] of this cause.
	StartErr error
	// StartErrPermanent says that trying again does not help.
	StartErrPermanent bool

	// Life is how long the process runs before it exits by itself with Code.
	// Zero is for ever; a negative one exits at once.
	Life time.Duration
	Code int
	// OOM makes the end of Life a kill for want of memory.
	OOM bool

	// StopTime is how long the process takes to end after a signal that is
	// not SIGKILL. A negative one ignores such signals.
	StopTime time.Duration
	// StopCode is the exit code after such a signal; 0 is 128 + its number.
	StopCode int

	// Uses is memory that the process holds, in bytes: a smaller limit gets it
	// killed, at its start or by an Update.
	Uses int64

	// Output is written to the log, each at its time after the start.
	Output []Output

	// Exec answers Exec; nil runs Run when that is set and succeeds
	// otherwise.
	Exec func(ctx context.Context, exec runtime.Exec) (exitCode int, err error)
	// Stats answers Stats.
	Stats runtime.Stats
	// Load, when not nil, is how many thousandths of a core the process uses at
	// the moment. Stats adds them up from call to call, from the start on.
	Load func() float64

	// Run, when not nil, is the process itself and replaces Life, Code, OOM,
	// StopTime, StopCode and Output. It returns the exit code. It must end
	// when ctx ends, which is SIGKILL.
	Run func(ctx context.Context, p *Process) int
}

// Output is one line that a program writes.
type Output struct {
	After  time.Duration // from the start
	Stream string        // "stdout" when empty
	Text   string
}

// Exits is a Program that runs for life and exits with code.
func Exits(life time.Duration, code int) Program {
	if life == 0 {
		life = -1
	}
	return Program{Life: life, Code: code}
}

func (p Program) startError(id string) error {
	return &runtime.StartError{
		ID: id, Reason: p.StartErr.Error(), Permanent: p.StartErrPermanent, Err: p.StartErr,
	}
}

// Process is what Program.Run sees of its container.
type Process struct {
	Spec    runtime.Spec
	Args    []string // entrypoint and arguments
	Env     []string
	Stdin   io.Reader // of an Exec; empty otherwise
	Stdout  io.Writer
	Stderr  io.Writer
	Signals <-chan runtime.Signal // all but SIGKILL

	oom func()
}

// OOM marks the container as having lost a process for want of memory.
func (p *Process) OOM() { p.oom() }

// container is one container. Its life is one run: Start of an exited ID
// makes a new one.
type container struct {
	spec    runtime.Spec
	program Program
	config  runtime.Image
	log     *logBuffer
	pid     int
	started time.Time
	signals chan runtime.Signal
	done    chan struct{}      // closed by end, with result set
	cancel  context.CancelFunc // SIGKILL to Program.Run

	mu       sync.Mutex
	ended    bool
	oomed    bool
	stopping bool
	result   runtime.Exit
	timers   []*time.Timer
	cpu      time.Duration // of Program.Load, until measured
	measured time.Time
}

func newContainer(spec runtime.Spec, p Program, log *logBuffer, pid int, config runtime.Image) *container {
	spec.Labels = maps.Clone(spec.Labels)
	return &container{
		spec: spec, program: p, config: config, log: log, pid: pid, started: time.Now(),
		signals: make(chan runtime.Signal, 16), done: make(chan struct{}), cancel: func() {},
	}
}

// run starts the process. It returns at once; wg counts the goroutine of a
// program that is a function.
func (c *container) run(wg *sync.WaitGroup) {
	p := c.program
	if p.Run != nil {
		ctx, cancel := context.WithCancel(context.Background())
		c.cancel = cancel
		wg.Go(func() {
			defer cancel()
			code := p.Run(ctx, c.process(c.args(), c.log.writer("stdout"), c.log.writer("stderr")))
			c.mu.Lock()
			oom := c.oomed
			c.mu.Unlock()
			c.log.flush()
			c.end(code, oom)
		})
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range p.Output {
		stream := o.Stream
		if stream == "" {
			stream = "stdout"
		}
		if o.After <= 0 {
			c.log.line(stream, []byte(o.Text))
			continue
		}
		c.timers = append(c.timers, time.AfterFunc(o.After, func() { c.log.line(stream, []byte(o.Text)) }))
	}
	finish := func() {
		if p.OOM {
			c.end(128+int(runtime.SIGKILL), true)
			return
		}
		c.end(p.Code, false)
	}
	switch {
	case c.tooBigLocked():
		c.endLocked(128+int(runtime.SIGKILL), true)
	case p.Life > 0:
		c.timers = append(c.timers, time.AfterFunc(p.Life, finish))
	case p.Life < 0:
		c.endLocked(p.Code, p.OOM)
	}
}

func (c *container) tooBigLocked() bool {
	limit := c.spec.Resources.Memory
	return limit > 0 && c.program.Uses > limit
}

func (c *container) args() []string {
	entrypoint, args := c.config.Entrypoint, c.config.Command
	if c.spec.Entrypoint != nil {
		entrypoint, args = c.spec.Entrypoint, nil
	}
	if c.spec.Args != nil {
		args = c.spec.Args
	}
	return slices.Concat(entrypoint, args)
}

func (c *container) process(args []string, stdout, stderr io.Writer) *Process {
	c.mu.Lock()
	spec := c.spec // an Update may be under way
	c.mu.Unlock()
	return &Process{
		Spec: spec, Args: args, Env: slices.Concat(c.config.Env, c.spec.Env),
		Stdin: strings.NewReader(""), Stdout: stdout, Stderr: stderr, Signals: c.signals,
		oom: func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.oomed = true
		},
	}
}

func (c *container) signal(s runtime.Signal) {
	if s == runtime.SIGKILL {
		c.end(128+int(s), false)
		return
	}
	if c.program.Run != nil {
		select {
		case c.signals <- s:
		default: // as the kernel does with a signal that is pending already
		}
		return
	}
	switch s {
	case runtime.SIGTERM, runtime.SIGINT, runtime.SIGQUIT, runtime.SIGHUP:
	default:
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	code := c.program.StopCode
	if code == 0 {
		code = 128 + int(s)
	}
	switch {
	case c.program.StopTime < 0 || c.stopping || c.ended:
	case c.program.StopTime == 0:
		c.endLocked(code, false)
	default:
		c.stopping = true
		c.timers = append(c.timers, time.AfterFunc(c.program.StopTime, func() { c.end(code, false) }))
	}
}

// end ends the process; only the first call counts.
func (c *container) end(code int, oom bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endLocked(code, oom)
}

func (c *container) endLocked(code int, oom bool) {
	if c.ended {
		return
	}
	c.ended = true
	c.result = runtime.Exit{Code: code, At: time.Now(), OOMKilled: oom || c.oomed}
	for _, t := range c.timers {
		t.Stop()
	}
	c.cancel()
	close(c.done)
}

func (c *container) exit() runtime.Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.result
}

func (c *container) info() runtime.Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	info := runtime.Container{
		ID: c.spec.ID, Labels: maps.Clone(c.spec.Labels), Image: c.spec.Image,
		State: runtime.Running, PID: c.pid, Started: c.started,
	}
	if c.ended {
		info.State, info.PID, info.Exit = runtime.Exited, 0, c.result
	}
	return info
}

// Exec implements [runtime.Execer].
func (r *Runtime) Exec(ctx context.Context, id string, exec runtime.Exec) (int, error) {
	fail := func(err error) (int, error) { return 0, fmt.Errorf("exec in container %s: %w", id, err) }
	if err := r.ask(Op{Method: "Exec", ID: id}); err != nil {
		return fail(err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	if len(exec.Args) == 0 {
		return 0, &runtime.SpecError{Field: "Exec.Args", Reason: "is empty: want a command"}
	}
	c, err := r.container(id)
	if err != nil {
		return fail(err)
	}
	if c.info().State != runtime.Running {
		return fail(errNotRunning)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type result struct {
		code int
		err  error
	}
	answer := make(chan result, 1)
	go func() { // ends with ctx, as Program demands
		code, err := c.exec(ctx, exec)
		answer <- result{code, err}
	}()
	select {
	case a := <-answer:
		if a.err != nil {
			return fail(a.err)
		}
		return a.code, nil
	case <-c.done: // the kernel kills what is left in the PID namespace
		cancel(nil)
		<-answer
		return 128 + int(runtime.SIGKILL), nil
	case <-ctx.Done():
		<-answer
		return fail(ctx.Err())
	}
}

func (c *container) exec(ctx context.Context, exec runtime.Exec) (int, error) {
	if c.program.Exec != nil {
		return c.program.Exec(ctx, exec)
	}
	if c.program.Run == nil {
		return 0, ctx.Err()
	}
	p := c.process(exec.Args, orDiscard(exec.Stdout), orDiscard(exec.Stderr))
	if exec.Terminal {
		p.Stderr = p.Stdout
	}
	p.Env = append(p.Env, exec.Env...)
	p.Signals = nil
	if exec.Stdin != nil {
		p.Stdin = exec.Stdin
	}
	return c.program.Run(ctx, p), nil
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// Stats implements [runtime.StatsReader] with what the program says.
func (r *Runtime) Stats(_ context.Context, id string) (runtime.Stats, error) {
	c, err := r.container(id)
	if err == nil && c.info().State != runtime.Running {
		err = errNotRunning
	}
	if err != nil {
		return runtime.Stats{}, fmt.Errorf("stats of container %s: %w", id, err)
	}
	s := c.program.Stats
	s.At = time.Now()
	if c.program.Load != nil {
		s.CPU += c.burnt(s.At, c.program.Load())
	}
	if s.MemoryLimit == 0 {
		s.MemoryLimit = c.resources().Memory
	}
	return s, nil
}

// burnt is the CPU time used until now, of which the last part was used at a
// rate in thousandths of a core.
func (c *container) burnt(now time.Time, load float64) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.measured.IsZero() {
		c.measured = c.started
	}
	c.cpu += time.Duration(float64(now.Sub(c.measured)) * load / 1000)
	c.measured = now
	return c.cpu
}

// ErrCommandNotFound is a ready StartErr: the image has no such program.
var ErrCommandNotFound = errors.New("executable file not found in $PATH")
