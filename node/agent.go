package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/volume"
)

// Options configure an [Agent].
type Options struct {
	// Node is what the agent says of its machine: at least the ID and the
	// capacity. It is ready as long as the agent runs.
	Node scheduler.Node
	// Version of the application, for its operators.
	Version string
	// Address is where control planes on other machines reach this node's tasks,
	// HOST:PORT, if package remote serves there.
	Address string

	// Runtime runs the containers. Required.
	Runtime runtime.Runtime
	// Network, Namespaces and Balancer connect tasks. Required, but only
	// together: without any of them every task runs in a namespace of its
	// runtime's, without addresses.
	Network    network.Driver
	Namespaces network.Namespaces
	Balancer   network.Balancer
	// Resolver answers names on the node's networks; when nil, tasks
	// resolve names as the node does.
	Resolver Resolver
	// Volumes provides named volumes. Binds prepares paths of the host; when
	// nil the driver does if it can, else bind mounts are refused.
	Volumes volume.Driver
	Binds   volume.Binder

	// Checkers are further health checkers by name; see [health.Options].
	Checkers map[string]health.Checker
	// Credentials are for image pulls.
	Credentials func(ctx context.Context, host string) (runtime.Credentials, error)

	// Dir holds the small files that tasks get, such as resolv.conf.
	// Required, unless the runtime is [runtime.Fileless].
	Dir string
	// LeaseTTL is how long after the agent's death its node counts as alive;
	// default 5 s. Where all nodes together would renew their leases more often
	// than the store is to bear, it is longer; see
	// [orchestrate.WithRenewalLimit].
	LeaseTTL time.Duration
	// FenceGrace is how long tasks that must not run twice have for their stop
	// when the agent stops them because its lease could not be renewed; default
	// 10 s. Where the runtime is a [runtime.Holder], the node then promises the
	// control plane by when they have stopped, which depends on this and on
	// LeaseTTL, and they can be replaced elsewhere; see [ClockDrift]. Negative
	// leaves them running, and promises nothing.
	FenceGrace time.Duration
	// Logger; nil discards.
	Logger *slog.Logger
}

// Resolver serves names to tasks.
type Resolver interface {
	// Set replaces everything it answers.
	Set(zones []Zone) error
}

// Searcher is a [Resolver] that has a search list for tasks. Without one, the
// resolver of a container makes its own of what follows the first dot in the
// hostname, and would ask the world for each short name.
type Searcher interface {
	// Search returns the domains that a name of one label in a task of a
	// namespace is completed with, in order.
	Search(namespace string) []string
}

// Zone is what is answered to the tasks of one network.
type Zone struct {
	Network  string
	Subnets  []netip.Prefix
	Listen   []netip.Addr // the node's addresses on the network
	Internal bool         // without a way to the world
	Services []ZoneService
}

// ZoneService is one service on a network.
type ZoneService struct {
	Namespace string
	Name      string
	Virtual   []netip.Addr // its virtual addresses; none without ports
	Tasks     []ZoneTask   // the ready ones, by slot, and those that have names
	Ports     []ZonePort
}

// ZoneTask is a ready task.
type ZoneTask struct {
	Slot      int
	Addresses []netip.Addr
	// Name is that of a stateful service's slot, a DNS label such as "db-0".
	// It stands for the addresses whether the task is ready or not.
	Name    string
	Unready bool // it has a name and nothing else
}

// ZonePort is a port at the virtual addresses.
type ZonePort struct {
	Name     string // may be empty
	Protocol string // "tcp" or "udp"
	Port     uint16
}

// Agent runs the tasks of one node. Make it with [New].
type Agent struct {
	opts    Options
	store   store.Store
	log     *slog.Logger
	monitor *health.Monitor
	out     *outbox
	traffic *traffic
	nets    *networks
	tenure  *tenure
	slots   *slots
	meter   *meter
	census  *census

	mu       sync.Mutex // guards what follows
	tasks    map[string]*task
	assigned map[string]record.Task
	lease    store.Lease
	running  bool
	adopted  chan struct{} // closed when the tasks of the first snapshot were adopted
	wg       sync.WaitGroup
}

// New returns an agent for the node that opts describes. It does nothing until
// Run. Missing options are refused with an [*OptionError].
func New(s store.Store, opts Options) (*Agent, error) {
	switch {
	case s == nil:
		return nil, &OptionError{"store", "is nil; open one with store/bolt or store/etcd"}
	case opts.Runtime == nil:
		return nil, &OptionError{"Runtime", "is nil; open one with runtime/containerd"}
	case opts.Dir == "" && !fileless(opts.Runtime):
		return nil, &OptionError{"Dir", "is empty; name a folder of the agent's own"}
	case (opts.Network == nil) != (opts.Namespaces == nil):
		return nil, &OptionError{"Network", "needs Namespaces, and the other way round"}
	}
	opts.Node.Ready = true
	if err := opts.Node.Validate(); err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	if opts.LeaseTTL == 0 {
		opts.LeaseTTL = DefaultLeaseTTL
	}
	if opts.FenceGrace == 0 {
		opts.FenceGrace = DefaultFenceGrace
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if b, ok := opts.Volumes.(volume.Binder); ok && opts.Binds == nil {
		opts.Binds = b
	}
	a := &Agent{
		opts:     opts,
		store:    s,
		log:      opts.Logger.With("node", opts.Node.ID),
		tasks:    map[string]*task{},
		assigned: map[string]record.Task{},
		adopted:  make(chan struct{}),
	}
	a.monitor = health.NewMonitor(health.Options{Checkers: opts.Checkers})
	a.out = newOutbox(s, a.log, opts.Node.ID, a.leaseID)
	a.nets = newNetworks(opts.Network, a.log)
	a.traffic = newTraffic(a)
	a.slots = newSlots(a)
	a.opts.Node.Topology = a.slots.topology(opts.Node.Topology)
	a.tenure = newTenure(a)
	a.meter = newMeter(a)
	a.census = newCensus()
	return a, nil
}

// OptionError is an option that is missing or wrong.
type OptionError struct{ Option, Reason string }

func (e *OptionError) Error() string { return fmt.Sprintf("node: option %s %s", e.Option, e.Reason) }

// errRunning is Run called twice.
var errRunning = errors.New("node: the agent runs already; make another with New")

// Run registers the node, runs what is assigned to it and reports. It blocks
// until ctx ends; the tasks run on after it. It returns nil when ctx ended, or
// why it could not go on.
//
// While the store cannot be reached, tasks run on and are restarted when they
// fail.
func (a *Agent) Run(ctx context.Context) error {
	a.mu.Lock()
	if a.running {
		a.mu.Unlock()
		return errRunning
	}
	a.running = true
	a.mu.Unlock()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	loops := map[string]func(context.Context) error{
		"register": a.register,
		"monitor":  a.monitor.Run,
		"outbox":   a.out.run,
		"networks": a.nets.run,
		"traffic":  a.traffic.run,
		"meter":    a.meter.run,
		"tasks": func(ctx context.Context) error {
			return a.follow(ctx, record.Key(record.Tasks, a.id(), ""), assignments{a, ctx})
		},
		"census":   func(ctx context.Context) error { return a.follow(ctx, record.Fleet, a.census) },
		"netspecs": func(ctx context.Context) error { return a.follow(ctx, record.Networks, a.nets) },
	}
	if a.traffic.used() {
		loops["frontends"] = func(ctx context.Context) error { return a.follow(ctx, record.Frontends, &a.traffic.frontends) }
		loops["endpoints"] = func(ctx context.Context) error { return a.follow(ctx, record.Endpoints, &a.traffic.endpoints) }
	}
	var wg sync.WaitGroup
	for name, loop := range loops {
		wg.Go(func() {
			if err := loop(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("node %s: %s: %w", a.id(), name, err))
			}
		})
	}
	wg.Wait()
	a.tenure.end()
	a.wg.Wait() // the supervisors
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

func (a *Agent) id() string { return a.opts.Node.ID }

// follow mirrors a prefix of the store for as long as ctx lasts, over all
// failures of the store.
func (a *Agent) follow(ctx context.Context, prefix string, f store.Follower) error {
	delay := time.Duration(0)
	for {
		began := time.Now()
		err := store.Follow(ctx, a.store, prefix, f)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(began) > time.Minute {
			delay = 0
		}
		delay = min(max(2*delay, 50*time.Millisecond), 5*time.Second)
		a.log.Warn("cannot follow the store; trying again", "prefix", prefix, "error", err, "in", delay)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay):
		}
	}
}
