package orchestratetest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/internal/moment"
	networkmemory "github.com/orchestrate-go/orchestrate/network/memory"
	"github.com/orchestrate-go/orchestrate/node"
	"github.com/orchestrate-go/orchestrate/runtime"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/scheduler"
	volumememory "github.com/orchestrate-go/orchestrate/volume/memory"
)

// process is one that can be killed and started again: an agent or a control
// plane.
type process struct {
	*actor
	cancel context.CancelFunc
	done   chan struct{} // closed when Run has returned
}

// start runs what is of the process until it is killed. mu is held.
func (p *process) start(run func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(moment.In(context.Background(), p.actor))
	done := make(chan struct{})
	p.dead, p.closed, p.cancel, p.done = false, false, cancel, done
	w := p.world
	w.running.Go(func() {
		defer close(done)
		if err := run(ctx); err != nil && ctx.Err() == nil {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.broken = append(w.broken, fmt.Errorf("%s ended: %w", p.id, err))
		}
	})
}

// kill ends the process at once: nothing that it was about to do happens. mu is
// held.
func (p *process) kill() {
	if p.dead {
		return
	}
	p.dead, p.hung, p.cut = true, false, false
	p.cancel()
	p.world.drop(p.actor)
	p.world.connect(p.actor)
}

// machine is a node: its hardware, and the agent on it.
type machine struct {
	process
	node    scheduler.Node
	group   *NodeGroup
	runtime *containers
	port    *port
	volumes *volumememory.Driver // its disk: it outlives the machine's death
	off     bool                 // the machine, and not only its agent
	since   time.Duration        // when it was switched on or off last

	balancer *networkmemory.Node // the kernel's rules: they outlive the agent's death; may be nil
}

// boot switches the machine on, with nothing on it but its disk. mu is held.
func (m *machine) boot() error {
	m.off, m.since = false, m.world.since()
	if m.runtime != nil {
		m.port.unplug()
	}
	m.runtime = &containers{Runtime: runtimememory.New(runtimememory.Options{Program: m.world.scenario.Program}), machine: m,
		asking: map[string]map[string]func(){}}
	for ref, image := range m.world.scenario.Images {
		m.runtime.SetImage(ref, image)
	}
	if m.world.scenario.Balancers {
		m.balancer = networkmemory.New(networkmemory.Options{})
	}
	if m.port == nil {
		m.port = m.world.fabric.plug(m.actor)
	}
	return m.run()
}

// run starts an agent on the machine. mu is held.
func (m *machine) run() error {
	w := m.world
	opts := node.Options{
		Node: m.node, Runtime: m.runtime, Network: m.port, Namespaces: m.port, Volumes: m.volumes,
		Checkers: m.runtime.checkers(), LeaseTTL: w.scenario.NodeTTL, Logger: w.scenario.Logger,
	}
	if m.balancer != nil {
		opts.Balancer = m.balancer
	}
	if w.scenario.Agent != nil {
		w.scenario.Agent(&opts)
	}
	agent, err := node.New(client{w.shared, m.actor}, opts)
	if err != nil {
		return err
	}
	m.start(agent.Run)
	return nil
}

// kill kills the agent. Its runtime holds containers for as long as it would if
// renewals had been told one by one, and not until the one that was foretold.
func (m *machine) kill() {
	if m.dead {
		return
	}
	m.process.kill()
	var renewed time.Time
	for _, l := range m.leases {
		if l.renewed.After(renewed) {
			renewed = l.renewed
		}
	}
	if m.runtime.beyond > 0 && !renewed.IsZero() {
		_ = m.runtime.Runtime.Hold(context.Background(), m.counts(time.Until(renewed.Add(m.runtime.beyond)))) // fails with its context alone
	}
}

// die switches the machine off. mu is held.
func (m *machine) die() {
	m.kill()
	m.off, m.since = true, m.world.since()
	m.world.after(m.world.scenario.NodeTTL+time.Second, -1, "gone "+m.id, func() { m.world.view.touchedNodes[m.id] = true })
	m.runtime.down = true
	rt := m.runtime.Runtime
	m.world.running.Go(func() { rt.Close() })
}

// containers are what runs on a machine: a runtime in memory, whose calls go
// through the gate where their order shows.
type containers struct {
	*runtimememory.Runtime
	machine *machine

	// Guarded by world.mu.
	down   bool
	beyond time.Duration                // how long after a renewal that was foretold they are held; 0 when none was
	asking map[string]map[string]func() // by task and probe, who is told when that changes
}

// Hold implements [runtime.Holder].
func (c *containers) Hold(ctx context.Context, d time.Duration) error {
	c.machine.world.mu.Lock()
	if c.beyond = 0; d > always/2 {
		c.beyond = d - always
	}
	d = c.machine.counts(d)
	c.machine.world.mu.Unlock()
	return c.Runtime.Hold(ctx, d)
}

// Fileless says that nobody reads the small files of a simulated container.
func (c *containers) Fileless() {}

// enter waits for the turn of a call that shows. One of a hung machine waits
// with all others.
func (c *containers) enter(ctx context.Context, key string, takes time.Duration) error {
	return c.machine.enter(ctx, doing, key, takes, nil)
}

// Pull implements [runtime.Runtime].
func (c *containers) Pull(ctx context.Context, ref string, opts runtime.PullOptions) (runtime.Image, error) {
	w := c.machine.world
	takes := time.Duration(0)
	if present, err := c.Runtime.Images(ctx); err == nil && !slices.ContainsFunc(present, func(i runtime.Image) bool { return i.Ref == ref }) {
		w.mu.Lock()
		takes = w.pullTime(c.machine)
		w.mu.Unlock()
	}
	var failure error
	err := c.machine.enter(ctx, doing, "pull "+ref+" "+moment.Subject(ctx), takes, func() error {
		failure = w.pullFails(c.machine, ref, takes > 0)
		return nil
	})
	if err == nil {
		err = failure
	}
	if err != nil {
		return runtime.Image{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	return c.Runtime.Pull(ctx, ref, opts)
}

// Start implements [runtime.Runtime].
func (c *containers) Start(ctx context.Context, spec runtime.Spec) error {
	w := c.machine.world
	err := c.machine.enter(ctx, doing, "start "+spec.ID, w.scenario.Delays.Start, func() error {
		w.starting(c.machine, spec.Labels)
		return nil
	})
	if err != nil {
		return err
	}
	return c.Runtime.Start(ctx, spec)
}

// all lists containers without a turn at the gate: it is not the agent that asks.
func (c *containers) all(labels map[string]string) []runtime.Container {
	list, _ := c.Runtime.List(context.Background(), labels) // fails with its context alone
	return list
}

// Kill implements [runtime.Runtime].
func (c *containers) Kill(ctx context.Context, id string, signal runtime.Signal) error {
	if err := c.enter(ctx, fmt.Sprintf("kill %s %d", id, signal), 0); err != nil {
		return err
	}
	return c.Runtime.Kill(ctx, id, signal)
}

// Remove implements [runtime.Runtime].
func (c *containers) Remove(ctx context.Context, id string) error {
	if err := c.enter(ctx, "remove "+id, 0); err != nil {
		return err
	}
	return c.Runtime.Remove(ctx, id)
}

// checkers are of every kind of check, and answer what the simulation says.
func (c *containers) checkers() map[string]health.Checker {
	k := checker{c}
	return map[string]health.Checker{health.KindHTTP: k, health.KindTCP: k, health.KindGRPC: k, health.KindExec: k}
}

// plane is a control plane.
type plane struct {
	process
	options []orchestrate.Option
	fleet   *orchestrate.Fleet
}

// boot starts the control plane. mu is held.
func (p *plane) boot() error {
	w := p.world
	opts := []orchestrate.Option{orchestrate.WithID(p.id), orchestrate.WithLostAfter(w.scenario.LostAfter)}
	if w.scenario.Logger != nil {
		opts = append(opts, orchestrate.WithLogger(w.scenario.Logger))
	}
	opts = append(opts, w.trafficOptions()...)
	opts = append(opts, w.options()...)
	fleet, err := orchestrate.New(client{w.shared, p.actor}, opts...)
	if err != nil {
		return err
	}
	p.fleet = fleet
	p.start(fleet.Run)
	return nil
}
