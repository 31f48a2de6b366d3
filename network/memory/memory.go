package memory

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/orchestrate-go/orchestrate/network"
)

// Options of a Node. The zero value is a node where nothing fails.
type Options struct {
	// Hook is called before each method does anything, outside all locks.
	// What it returns, if not nil, the method returns without having
	// changed anything; what it waits for, the method waits for.
	Hook func(ctx context.Context, call Call) error
	// Listening says who of the node itself listens on a port, for the
	// conflict with a published one; "" for nobody.
	Listening func(protocol network.Protocol, port uint16) string
}

// Call is one method call as a hook sees it.
type Call struct {
	Method    string // of the interfaces of package network, such as "Attach"
	Network   string
	Task      string
	Namespace string // ID for Create and Delete, path for Attach and Detach
}

// Node is the network of one node. Its methods are those of network.Driver,
// network.Namespaces and network.Balancer, safe for concurrent use.
type Node struct {
	options Options
	state   *state

	mu     sync.Mutex // guards closed
	closed bool
}

var (
	_ network.Driver     = (*Node)(nil)
	_ network.Namespaces = (*Node)(nil)
	_ network.Balancer   = (*Node)(nil)
)

// state is what a kernel would keep over a restart of the program.
type state struct {
	mu          sync.Mutex // guards what follows
	networks    map[string]*subnets
	attachments map[key]*attachment
	namespaces  map[string]map[string]string // sysctls by ID
	rules       []network.Rule
	programs    int
	picks       map[string]int    // connections so far by frontend
	counts      map[string]uint64 // and by service, of the rules that count
}

type subnets struct {
	network.Network
	pools []*network.Pool // in the order of Subnets
}

// key names an attachment: one task's interface on one network.
type key struct{ network, task, iface string }

type attachment struct {
	network.Attachment
	result network.Interface
}

const pathPrefix = "/memory/netns/"

// New returns a node without networks.
func New(options Options) *Node {
	return &Node{options: options, state: &state{
		networks:    map[string]*subnets{},
		attachments: map[key]*attachment{},
		namespaces:  map[string]map[string]string{},
		picks:       map[string]int{},
		counts:      map[string]uint64{},
	}}
}

// Reopen returns a new handle on the same node, as a program gets that
// restarts; n keeps working unless it is closed.
func (n *Node) Reopen() *Node { return &Node{options: n.options, state: n.state} }

// Close makes every later call on this handle return network.ErrClosed. The
// node stays as it is.
func (n *Node) Close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	return nil
}

// begin runs what comes before every method.
func (n *Node) begin(ctx context.Context, call Call) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.options.Hook != nil {
		if err := n.options.Hook(ctx, call); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return network.ErrClosed
	}
	return ctx.Err()
}

// Ensure implements network.Driver.
func (n *Node) Ensure(ctx context.Context, nw network.Network) error {
	if err := n.begin(ctx, Call{Method: "Ensure", Network: nw.Name}); err != nil {
		return err
	}
	if err := nw.Validate(); err != nil {
		return err
	}
	nw.Subnets, nw.Virtual, nw.Options = slices.Clone(nw.Subnets), slices.Clone(nw.Virtual), maps.Clone(nw.Options)
	s := n.state
	s.mu.Lock()
	defer s.mu.Unlock()
	others := make([]network.Network, 0, len(s.networks))
	for _, other := range s.networks {
		others = append(others, other.Network)
	}
	if err := nw.Overlaps(others); err != nil {
		return err
	}
	if old, ok := s.networks[nw.Name]; ok {
		err := nw.Changes(old.Network)
		if err == nil {
			old.Network = nw
			return nil
		}
		if len(s.attached(nw.Name)) > 0 {
			return err
		}
	}
	made := &subnets{Network: nw}
	for _, prefix := range nw.Subnets {
		pool, err := network.NewPool(prefix)
		if err != nil {
			return err
		}
		made.pools = append(made.pools, pool)
	}
	s.networks[nw.Name] = made
	return nil
}

// Remove implements network.Driver.
func (n *Node) Remove(ctx context.Context, name string) error {
	if err := n.begin(ctx, Call{Method: "Remove", Network: name}); err != nil {
		return err
	}
	n.state.mu.Lock()
	defer n.state.mu.Unlock()
	if tasks := n.state.attached(name); len(tasks) > 0 {
		return &network.InUseError{Network: name, Tasks: tasks}
	}
	delete(n.state.networks, name)
	return nil
}

// attached returns the tasks on a network, sorted. The caller holds mu.
func (s *state) attached(name string) []string {
	var tasks []string
	for k := range s.attachments {
		if k.network == name {
			tasks = append(tasks, k.task)
		}
	}
	slices.Sort(tasks)
	return slices.Compact(tasks)
}

// Attach implements network.Driver.
func (n *Node) Attach(ctx context.Context, a network.Attachment) (network.Interface, error) {
	if err := n.begin(ctx, Call{Method: "Attach", Network: a.Network, Task: a.Task, Namespace: a.Namespace}); err != nil {
		return network.Interface{}, err
	}
	if err := a.Validate(); err != nil {
		return network.Interface{}, err
	}
	s := n.state
	s.mu.Lock()
	defer s.mu.Unlock()
	nw, ok := s.networks[a.Network]
	if !ok {
		return network.Interface{}, fmt.Errorf("attach task %s to network %q: %w", a.Task, a.Network, network.ErrNoNetwork)
	}
	if _, ok := s.namespaces[strings.TrimPrefix(a.Namespace, pathPrefix)]; !ok {
		return network.Interface{}, fmt.Errorf("attach task %s to network %q: %s: %w", a.Task, a.Network, a.Namespace, network.ErrNoNamespace)
	}
	k := key{a.Network, a.Task, a.Interface}
	if had, ok := s.attachments[k]; ok {
		return cloneInterface(had.result), nil
	}
	addrs, err := take(nw, a.Addresses)
	if err != nil {
		return network.Interface{}, fmt.Errorf("attach task %s to network %q: %w", a.Task, a.Network, err)
	}
	iface := network.Interface{Name: a.Interface, Gateways: nw.Gateways(), MAC: mac(k)}
	for i, addr := range addrs {
		iface.Addresses = append(iface.Addresses, netip.PrefixFrom(addr, nw.Subnets[i].Bits()))
	}
	a.Addresses = addrs
	s.attachments[k] = &attachment{Attachment: a, result: iface}
	return cloneInterface(iface), nil
}

// take takes an address of each subnet, or none of any.
func take(nw *subnets, asked []netip.Addr) ([]netip.Addr, error) {
	wanted, err := nw.Split(asked)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for i, pool := range nw.pools {
		addr := wanted[i]
		if addr.IsValid() {
			err = pool.Claim(addr)
		} else {
			addr, err = pool.Take()
		}
		if err != nil {
			for j, got := range addrs {
				nw.pools[j].Free(got)
			}
			return nil, err
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

// mac derives a locally administered address from an attachment's name.
func mac(k key) string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%s/%s", k.network, k.task, k.iface)
	b := h.Sum(nil)
	return fmt.Sprintf("02:%02x:%02x:%02x:%02x:%02x", b[1], b[2], b[3], b[4], b[5])
}

func cloneInterface(i network.Interface) network.Interface {
	i.Addresses, i.Gateways = slices.Clone(i.Addresses), slices.Clone(i.Gateways)
	return i
}

// Detach implements network.Driver.
func (n *Node) Detach(ctx context.Context, a network.Attachment) error {
	if err := n.begin(ctx, Call{Method: "Detach", Network: a.Network, Task: a.Task, Namespace: a.Namespace}); err != nil {
		return err
	}
	s := n.state
	s.mu.Lock()
	defer s.mu.Unlock()
	k := key{a.Network, a.Task, a.Interface}
	had, ok := s.attachments[k]
	if !ok {
		return nil
	}
	for i, pool := range s.networks[a.Network].pools {
		pool.Free(had.Addresses[i])
	}
	delete(s.attachments, k)
	return nil
}

// Attachments implements network.Driver, sorted by network, task and
// interface.
func (n *Node) Attachments(ctx context.Context) ([]network.Attachment, error) {
	if err := n.begin(ctx, Call{Method: "Attachments"}); err != nil {
		return nil, err
	}
	n.state.mu.Lock()
	defer n.state.mu.Unlock()
	all := make([]network.Attachment, 0, len(n.state.attachments))
	for _, a := range n.state.attachments {
		got := a.Attachment
		got.Addresses = slices.Clone(got.Addresses)
		all = append(all, got)
	}
	network.SortAttachments(all)
	return all, nil
}
