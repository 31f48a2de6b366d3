package memory

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/orchestrate-go/orchestrate/network"
)

// ErrRefused is a connection to a frontend that has no endpoint, or to what
// is no frontend.
var ErrRefused = errors.New("connection refused")

// Program implements network.Balancer.
func (n *Node) Program(ctx context.Context, rules []network.Rule) error {
	if err := n.begin(ctx, Call{Method: "Program"}); err != nil {
		return err
	}
	canonical, err := network.Canonical(rules)
	if err != nil {
		return err
	}
	if n.options.Listening != nil {
		for _, r := range canonical {
			if r.Address.IsValid() {
				continue
			}
			if who := n.options.Listening(r.Protocol, r.Port); who != "" {
				return &network.ConflictError{Frontend: r.Frontend(), Services: []string{r.Service, who}}
			}
		}
	}
	n.state.mu.Lock()
	defer n.state.mu.Unlock()
	n.state.rules = canonical
	n.state.programs++
	return nil
}

// Rules returns what was programmed last, in the form of network.Canonical.
func (n *Node) Rules() []network.Rule {
	n.state.mu.Lock()
	defer n.state.mu.Unlock()
	rules := slices.Clone(n.state.rules)
	for i := range rules {
		rules[i].Endpoints = slices.Clone(rules[i].Endpoints)
	}
	return rules
}

// Programs returns how often Program succeeded.
func (n *Node) Programs() int {
	n.state.mu.Lock()
	defer n.state.mu.Unlock()
	return n.state.programs
}

// Dial returns the endpoint that a new connection from client to address
// would reach: round-robin over a rule's endpoints, or by the client's
// address where the rule has affinity. With no endpoint it is [ErrRefused].
// Every unicast address that is not virtual counts as one of the node.
func (n *Node) Dial(protocol network.Protocol, client netip.Addr, address netip.AddrPort) (netip.AddrPort, error) {
	n.state.mu.Lock()
	defer n.state.mu.Unlock()
	for _, r := range n.state.rules {
		if !serves(r, protocol, address) {
			continue
		}
		if r.Count {
			n.state.counts[r.Service]++
		}
		var endpoints []netip.AddrPort // a published port's are of both families
		for _, e := range r.Endpoints {
			if e.Addr().Is4() == address.Addr().Unmap().Is4() {
				endpoints = append(endpoints, e)
			}
		}
		if len(endpoints) == 0 {
			break
		}
		if r.SourceAffinity {
			h := fnv.New32a()
			b := client.Unmap().As16()
			_, _ = h.Write(b[:]) // never fails
			return endpoints[int(h.Sum32()%uint32(len(endpoints)))], nil
		}
		picks := n.state.picks[r.Frontend()]
		n.state.picks[r.Frontend()]++
		return endpoints[picks%len(endpoints)], nil
	}
	return netip.AddrPort{}, fmt.Errorf("dial %s %s: %w", protocol, address, ErrRefused)
}

// Connections implements network.Counter: what Dial was asked for.
func (n *Node) Connections(ctx context.Context) (map[string]uint64, error) {
	if err := n.begin(ctx, Call{Method: "Connections"}); err != nil {
		return nil, err
	}
	n.state.mu.Lock()
	defer n.state.mu.Unlock()
	counts := map[string]uint64{}
	for _, r := range n.state.rules {
		if r.Count {
			counts[r.Service] = n.state.counts[r.Service]
		}
	}
	return counts, nil
}

func serves(r network.Rule, protocol network.Protocol, address netip.AddrPort) bool {
	addr := address.Addr().Unmap()
	if r.Protocol != protocol || r.Port != address.Port() || !r.Takes(addr.Is4()) {
		return false
	}
	if r.Address.IsValid() {
		return r.Address == addr
	}
	return !r.HostIP.IsValid() || r.HostIP.IsUnspecified() || r.HostIP == addr
}
