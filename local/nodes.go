//go:build linux

package local

import (
	"context"
	"fmt"
	"path/filepath"
	goruntime "runtime"
	"slices"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/machine"
	"github.com/orchestrate-go/orchestrate/node"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// WithNodes lets the machine stand for further nodes beside its first one, so
// that a program can try what needs several: spreading, draining, the loss of
// a node. Each has an agent of its own and an equal share of the capacity; they
// share the kernel, the images, the networks and the volumes, so every volume
// is at hand on every node. A name is as [WithNode] wants it.
func WithNodes(further ...string) Option {
	return func(o *options) { o.further = append(o.further, further...) }
}

// agent is one node of the machine and, while it runs, its agent.
type agent struct {
	name  string
	share *share // nil where there is no other node

	// Guarded by Fleet.mu; all nil while the node is stopped.
	running *node.Agent
	cancel  context.CancelFunc
	done    chan struct{} // closed when Run has returned
}

// makeNodes prepares the machine's nodes without starting them.
func (f *Fleet) makeNodes() error {
	names := append([]string{f.nodeID}, f.opts.further...)
	if sorted := slices.Sorted(slices.Values(names)); len(slices.Compact(sorted)) < len(names) {
		return fmt.Errorf("the nodes %q: a name is given twice; give each node its own", names)
	}
	crossing := newCrossing(f.network, f.names)
	for _, name := range names {
		a := &agent{name: name}
		if len(names) > 1 {
			a.share = &share{node: name, nodes: names, store: f.store, crossing: crossing}
			a.share.held.log = f.opts.logger
			a.share.join() // before any of them runs: see crossing.program
		}
		f.nodes = append(f.nodes, a)
	}
	return nil
}

// newAgent makes the agent of one node of the machine.
func (f *Fleet) newAgent(a *agent) (*node.Agent, error) {
	o := &f.opts
	opts := node.Options{
		Node: scheduler.Node{
			ID: a.name, Hostname: o.host, Labels: o.labels, Capacity: split(o.capacity, len(f.nodes)),
			Platform: scheduler.Platform{OS: goruntime.GOOS, Arch: goruntime.GOARCH},
		},
		Runtime: f.runtime, Network: f.network, Namespaces: f.network, Balancer: f.network,
		Resolver: f.names, Volumes: f.volumes, Checkers: machine.Checkers(o.checkers),
		Credentials: o.credentials, Dir: filepath.Join(f.dir, "node"), Logger: o.logger,
		// Alone, no other node could take over what this one stops.
		FenceGrace: -1,
	}
	if s := a.share; s != nil {
		network := sharedNetwork{f.network, s}
		opts.Runtime = sharedRuntime{f.runtime, s}
		opts.Network, opts.Namespaces, opts.Balancer = network, network, network
		opts.Resolver = sharedNames{f.names, s}
		opts.Volumes = sharedVolumes{f.volumes, s}
		opts.FenceGrace = node.DefaultFenceGrace
		if a.name != f.nodeID {
			opts.Dir = filepath.Join(f.dir, "nodes", a.name)
		}
	}
	return node.New(f.store, opts)
}

// split is one node's part of what the machine has.
func split(r scheduler.Resources, n int) scheduler.Resources {
	r.CPU, r.Memory, r.Disk = r.CPU/int64(n), r.Memory/int64(n), r.Disk/int64(n)
	return r
}

// runNode starts the agent of a node, unless it runs.
func (f *Fleet) runNode(a *agent) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a.running != nil {
		return nil
	}
	if f.ctx.Err() != nil {
		return orchestrate.ErrClosed
	}
	made, err := f.newAgent(a)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(f.ctx)
	done := make(chan struct{})
	a.running, a.cancel, a.done = made, cancel, done
	if a.share != nil {
		a.share.join()
	}
	f.loops.Go(func() {
		defer close(done)
		defer cancel()
		err := made.Run(ctx)
		if a.share != nil {
			a.share.leave()
		}
		if err != nil && ctx.Err() == nil {
			f.fail(err)
		}
	})
	return nil
}

// NodeIDs are the IDs of the nodes that this machine stands for, its first one
// first.
func (f *Fleet) NodeIDs() []string {
	var names []string
	for _, a := range f.nodes {
		names = append(names, a.name)
	}
	return names
}

// StopNode ends the agent of one of [Fleet.NodeIDs], as if the node had lost its
// connection: its containers run on, and nobody hears of them, restarts them or
// stops them until [Fleet.StartNode]; but those of stateful services end by
// themselves, so that their slots can be taken over. It returns when the agent
// has ended. A
// node that is stopped already is no error; one that is not of this machine is
// an [*orchestrate.NameError].
func (f *Fleet) StopNode(name string) error {
	a, err := f.nodeNamed(name)
	if err != nil {
		return err
	}
	f.mu.Lock()
	cancel, done := a.cancel, a.done
	f.mu.Unlock()
	if cancel == nil {
		return nil
	}
	cancel()
	<-done
	f.mu.Lock()
	defer f.mu.Unlock()
	if a.done == done { // else it was started again
		a.running, a.cancel, a.done = nil, nil, nil
	}
	return nil
}

// StartNode starts the agent of a node that was stopped: it adopts what runs
// there. A node that runs is no error.
func (f *Fleet) StartNode(name string) error {
	a, err := f.nodeNamed(name)
	if err != nil {
		return err
	}
	return f.runNode(a)
}

func (f *Fleet) nodeNamed(name string) (*agent, error) {
	if err := f.closed(); err != nil {
		return nil, err
	}
	for _, a := range f.nodes {
		if a.name == name {
			return a, nil
		}
	}
	return nil, &orchestrate.NameError{Kind: "node", Name: name}
}

// access reaches the tasks of a node.
func (f *Fleet) access(name string) (orchestrate.Access, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.nodes {
		if a.name == name && a.running != nil {
			return a.running, nil
		}
	}
	return nil, fmt.Errorf("node %s: %w", name, orchestrate.ErrNoAccess)
}
