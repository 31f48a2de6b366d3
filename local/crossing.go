//go:build linux

package local

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/node"
)

// crossing is where the nodes of a machine meet that share its balancer and its
// names. Each says what it knows of all endpoints, and what one knows holds: they
// learn of a change one after another, and in between nothing may be missing.
// But an endpoint that its own node takes away is gone at once, whatever the
// others have yet to hear.
type crossing struct {
	balancer network.Balancer
	names    node.Resolver

	programming sync.Mutex // held while the balancer is programmed

	mu    sync.Mutex // guards what follows
	owner map[netip.Addr]string
	// withdrawn are addresses that their nodes have taken away, with the nodes
	// that have not been heard since without them.
	withdrawn map[netip.Addr]map[string]bool
	views     map[string]*view // of the nodes whose agents run
	moved     chan struct{}    // closed and made anew when a view is known, or a node comes or goes
}

// view is what a node knows.
type view struct {
	known bool // rules are
	rules []network.Rule
	zones []node.Zone
}

func newCrossing(b network.Balancer, names node.Resolver) *crossing {
	return &crossing{
		balancer: b, names: names,
		owner: map[netip.Addr]string{}, withdrawn: map[netip.Addr]map[string]bool{},
		views: map[string]*view{}, moved: make(chan struct{}),
	}
}

// move tells who waits. c.mu is held.
func (c *crossing) move() {
	close(c.moved)
	c.moved = make(chan struct{})
}

// join makes a node count whose agent starts.
func (c *crossing) join(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.views[name] = new(view)
	c.move()
}

// leave makes it count no more: of its endpoints others know best then.
func (c *crossing) leave(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.views, name)
	for a := range c.withdrawn {
		c.heard(name, a)
	}
	c.move()
}

// first reports whether a node is the first of those that count.
func (c *crossing) first(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for other := range c.views {
		if other < name {
			return false
		}
	}
	return true
}

// own notes whose addresses these are.
func (c *crossing) own(name string, addresses []netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range addresses {
		c.owner[a.Addr()] = name
		delete(c.withdrawn, a.Addr()) // if it was another task's
	}
}

// heard notes that a node does not name a withdrawn address any more. c.mu is
// held.
func (c *crossing) heard(name string, a netip.Addr) {
	delete(c.withdrawn[a], name)
	if len(c.withdrawn[a]) == 0 {
		delete(c.withdrawn, a)
	}
}

// take makes rules what a node knows, and sees what it has taken away. A node that
// has just started takes away all of its own that it does not name. c.mu is held.
func (c *crossing) take(name string, v *view, rules []network.Rule) {
	names := map[netip.Addr]bool{}
	for _, r := range rules {
		for _, e := range r.Endpoints {
			names[e.Addr()] = true
		}
	}
	withdraw := func(a netip.Addr) {
		waits := map[string]bool{}
		for other := range c.views {
			if other != name {
				waits[other] = true
			}
		}
		if len(waits) > 0 { // else nobody names it any more
			c.withdrawn[a] = waits
		}
	}
	if v.known {
		for _, r := range v.rules {
			for _, e := range r.Endpoints {
				if a := e.Addr(); c.owner[a] == name && !names[a] {
					withdraw(a)
				}
			}
		}
	} else {
		for a, owner := range c.owner {
			if owner == name && !names[a] {
				withdraw(a)
			}
		}
	}
	for a := range c.withdrawn {
		switch {
		case c.owner[a] == name && names[a]:
			delete(c.withdrawn, a)
		case c.owner[a] != name && !names[a]:
			c.heard(name, a)
		}
	}
	v.rules = rules
}

// program takes a node's rules and makes those of all nodes true. It waits until
// each node that runs has said what it knows: an agent that starts would
// otherwise cut off the tasks that others have yet to adopt.
func (c *crossing) program(ctx context.Context, name string, rules []network.Rule) error {
	c.mu.Lock()
	v := c.views[name]
	if v == nil {
		c.mu.Unlock()
		return context.Canceled // its agent has ended
	}
	c.take(name, v, rules)
	if !v.known {
		v.known = true
		c.move()
	}
	for !c.allKnown() {
		moved := c.moved
		c.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
		c.mu.Lock()
	}
	c.mu.Unlock()

	c.programming.Lock()
	defer c.programming.Unlock()
	c.mu.Lock()
	merged := c.mergeRules(name)
	c.mu.Unlock()
	for {
		err := c.balancer.Program(ctx, merged)
		var conflict *network.ConflictError
		if !errors.As(err, &conflict) {
			return err
		}
		// A frontend that this node has given up and another has not yet.
		before := len(merged)
		merged = slices.DeleteFunc(merged, func(r network.Rule) bool {
			return slices.Contains(conflict.Services, r.Service) && !slices.ContainsFunc(rules, func(o network.Rule) bool {
				return frontendOf(o) == frontendOf(r)
			})
		})
		if len(merged) == before {
			return err
		}
	}
}

func (c *crossing) allKnown() bool {
	for _, v := range c.views {
		if !v.known {
			return false
		}
	}
	return true
}

// order returns the nodes that run, the one that asks first. c.mu is held.
func (c *crossing) order(first string) []string {
	var names []string
	for name := range c.views {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if (a == first) != (b == first) {
			if a == first {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	return names
}

type frontend struct {
	service  string
	protocol network.Protocol
	address  netip.Addr
	hostIP   netip.Addr
	port     uint16
}

func frontendOf(r network.Rule) frontend {
	return frontend{r.Service, r.Protocol, r.Address, r.HostIP, r.Port}
}

// mergeRules is what all nodes know together: every frontend that one of them
// has, each with every endpoint but the withdrawn. c.mu is held.
func (c *crossing) mergeRules(first string) []network.Rule {
	var merged []network.Rule
	index := map[frontend]int{}
	for _, name := range c.order(first) {
		for _, r := range c.views[name].rules {
			i, ok := index[frontendOf(r)]
			if !ok {
				i = len(merged)
				index[frontendOf(r)] = i
				own := r
				own.Endpoints = nil
				merged = append(merged, own)
			}
			for _, e := range r.Endpoints {
				if c.withdrawn[e.Addr()] == nil && !slices.Contains(merged[i].Endpoints, e) {
					merged[i].Endpoints = append(merged[i].Endpoints, e)
				}
			}
		}
	}
	return merged
}

// answer takes a node's names and serves those of all nodes.
func (c *crossing) answer(name string, zones []node.Zone) error {
	c.mu.Lock()
	v := c.views[name]
	if v == nil {
		c.mu.Unlock()
		return context.Canceled
	}
	v.zones = zones
	merged := c.mergeZones(name)
	c.mu.Unlock()
	return c.names.Set(merged)
}

// mergeZones is for names what mergeRules is for traffic. c.mu is held.
func (c *crossing) mergeZones(first string) []node.Zone {
	type service struct{ network, namespace, name string }
	zones := map[string]*node.Zone{}
	services := map[service]*node.ZoneService{}
	var order []service
	for _, name := range c.order(first) {
		for _, z := range c.views[name].zones {
			if zones[z.Network] == nil {
				own := z
				own.Services = nil
				zones[z.Network] = &own
			}
			for _, s := range z.Services {
				key := service{z.Network, s.Namespace, s.Name}
				if services[key] == nil {
					own := s
					own.Tasks = nil
					services[key] = &own
					order = append(order, key)
				}
				for _, t := range s.Tasks {
					if len(t.Addresses) > 0 && c.withdrawn[t.Addresses[0]] == nil {
						services[key].Tasks = append(services[key].Tasks, t)
					}
				}
			}
		}
	}
	for _, key := range order {
		s := services[key]
		if len(s.Virtual) == 0 && len(s.Tasks) == 0 {
			continue
		}
		slices.SortStableFunc(s.Tasks, func(a, b node.ZoneTask) int { return cmp.Compare(a.Slot, b.Slot) })
		s.Tasks = slices.CompactFunc(s.Tasks, func(a, b node.ZoneTask) bool {
			return a.Slot == b.Slot && slices.Equal(a.Addresses, b.Addresses)
		})
		z := zones[key.network]
		z.Services = append(z.Services, *s)
	}
	var list []node.Zone
	for _, z := range zones {
		slices.SortFunc(z.Services, func(a, b node.ZoneService) int {
			return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
		})
		list = append(list, *z)
	}
	slices.SortFunc(list, func(a, b node.Zone) int { return strings.Compare(a.Network, b.Network) })
	return list
}
