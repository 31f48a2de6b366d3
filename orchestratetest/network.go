package orchestratetest

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/orchestrate-go/orchestrate/network"
)

// fabric is the network of the whole fleet: each network's addresses are taken
// from one pool, as if every node had its slice of it.
type fabric struct {
	world *world
	pools map[string][]*network.Pool // by network; guarded by world.mu
}

// port is one node's side of it: a driver and the namespaces of its tasks. What
// it holds is guarded by world.mu.
type port struct {
	fabric     *fabric
	actor      *actor
	networks   map[string]network.Network
	attached   map[string]*attachment // by network, task and interface
	namespaces map[string]bool
}

type attachment struct {
	network.Attachment
	result network.Interface
}

var (
	_ network.Driver     = (*port)(nil)
	_ network.Namespaces = (*port)(nil)
)

func (f *fabric) plug(a *actor) *port {
	return &port{fabric: f, actor: a, networks: map[string]network.Network{}, attached: map[string]*attachment{}, namespaces: map[string]bool{}}
}

// unplug gives back all addresses of a machine that is gone. mu is held.
func (p *port) unplug() {
	for _, key := range sortedKeys(p.attached) {
		p.free(key)
	}
	p.namespaces = map[string]bool{}
	p.networks = map[string]network.Network{}
}

func (p *port) free(key string) {
	a := p.attached[key]
	delete(p.attached, key)
	for i, pool := range p.fabric.pools[a.Network] {
		if i < len(a.result.Addresses) {
			pool.Free(a.result.Addresses[i].Addr())
		}
	}
}

// Ensure implements network.Driver.
func (p *port) Ensure(_ context.Context, n network.Network) error {
	if err := n.Validate(); err != nil {
		return err
	}
	w := p.fabric.world
	w.mu.Lock()
	defer w.mu.Unlock()
	p.networks[n.Name] = n
	if p.fabric.pools[n.Name] == nil {
		var pools []*network.Pool
		for _, prefix := range n.Subnets {
			pool, err := network.NewPool(prefix)
			if err != nil {
				return err
			}
			pools = append(pools, pool)
		}
		p.fabric.pools[n.Name] = pools
	}
	return nil
}

// Remove implements network.Driver.
func (p *port) Remove(_ context.Context, name string) error {
	w := p.fabric.world
	w.mu.Lock()
	defer w.mu.Unlock()
	var tasks []string
	for _, a := range p.attached {
		if a.Network == name {
			tasks = append(tasks, a.Task)
		}
	}
	if len(tasks) > 0 {
		slices.Sort(tasks)
		return &network.InUseError{Network: name, Tasks: tasks}
	}
	delete(p.networks, name)
	return nil
}

// Attach implements network.Driver.
func (p *port) Attach(ctx context.Context, a network.Attachment) (iface network.Interface, err error) {
	if err := a.Validate(); err != nil {
		return iface, err
	}
	key := a.Network + "/" + a.Task + "/" + a.Interface
	err = p.actor.enter(ctx, doing, "attach "+key, p.fabric.world.scenario.Delays.Attach, func() error {
		fail := func(err error) error {
			return fmt.Errorf("attach task %s to network %q: %w", a.Task, a.Network, err)
		}
		if had := p.attached[key]; had != nil {
			iface = had.result
			return nil
		}
		n, ok := p.networks[a.Network]
		if !ok {
			return fail(network.ErrNoNetwork)
		}
		if !p.namespaces[strings.TrimPrefix(a.Namespace, namespacePath)] {
			return fail(network.ErrNoNamespace)
		}
		made := network.Interface{Name: a.Interface, Gateways: n.Gateways()}
		for i, pool := range p.fabric.pools[a.Network] {
			addr, err := pool.Take()
			if err != nil {
				for j, got := range made.Addresses {
					p.fabric.pools[a.Network][j].Free(got.Addr())
				}
				return fail(err)
			}
			made.Addresses = append(made.Addresses, netip.PrefixFrom(addr, n.Subnets[i].Bits()))
		}
		p.attached[key] = &attachment{a, made}
		iface = made
		return nil
	})
	return iface, err
}

// Detach implements network.Driver.
func (p *port) Detach(ctx context.Context, a network.Attachment) error {
	key := a.Network + "/" + a.Task + "/" + a.Interface
	return p.actor.enter(ctx, doing, "detach "+key, 0, func() error {
		if p.attached[key] != nil {
			p.free(key)
		}
		return nil
	})
}

// Attachments implements network.Driver.
func (p *port) Attachments(context.Context) ([]network.Attachment, error) {
	w := p.fabric.world
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []network.Attachment
	for _, a := range p.attached {
		all = append(all, a.Attachment)
	}
	network.SortAttachments(all)
	return all, nil
}

const namespacePath = "/simulated/netns/"

// Create implements network.Namespaces.
func (p *port) Create(_ context.Context, id string, _ map[string]string) (string, error) {
	w := p.fabric.world
	w.mu.Lock()
	defer w.mu.Unlock()
	p.namespaces[id] = true
	return namespacePath + id, nil
}

// Delete implements network.Namespaces.
func (p *port) Delete(_ context.Context, id string) error {
	w := p.fabric.world
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(p.namespaces, id)
	return nil
}

// List implements network.Namespaces.
func (p *port) List(context.Context) ([]string, error) {
	w := p.fabric.world
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(p.namespaces)), nil
}
