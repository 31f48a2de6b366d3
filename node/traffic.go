package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/moment"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/store"
)

// traffic programs the node's balancer and names: the services' frontends from
// the store, the endpoints of other nodes from the store, and this node's own
// endpoints as its tasks say, without a way around through the store.
type traffic struct {
	agent     *Agent
	log       *slog.Logger
	wake      chan struct{}
	urgent    atomic.Bool // what it was woken for cannot wait; see pace
	frontends frontends
	endpoints endpoints
	acks      *acks

	mu      sync.Mutex               // guards what follows, and both mirrors
	local   map[string]localEndpoint // by task
	waiting []change                 // not yet programmed
	refused map[string]error         // frontends that cannot be programmed, by service
	leaving map[string][]string      // keys of endpoints that wait for the other nodes, by task
}

// localEndpoint is a ready task of this node.
type localEndpoint struct {
	task      record.Task
	addresses map[string][]netip.Addr
	served    func(error) // told once it has traffic; nil when nobody asks
	unready   bool        // it has a name, and no traffic
	leaving   bool        // it is unready for good
}

// change waits for the next programming.
type change struct {
	service string
	task    string
	done    chan struct{} // closed when it is programmed
}

// frontends and endpoints are followers of their prefixes.
type frontends struct {
	*traffic
	all  map[string]record.Frontend // by NS/NAME
	seen bool
}

type endpoints struct {
	*traffic
	all     map[string]remote // by key
	seen    bool
	nodes   map[string]int // how many each node has, itself included
	at      int64          // revision of the newest change
	changed chan struct{}  // closed and made anew with each change
}

type remote struct {
	network, service string
	revision         int64 // of the record
	record.Endpoint
}

func newTraffic(a *Agent) *traffic {
	t := &traffic{
		agent: a, log: a.log, wake: make(chan struct{}, 1),
		local: map[string]localEndpoint{}, refused: map[string]error{}, leaving: map[string][]string{}, acks: &acks{agent: a},
	}
	t.frontends = frontends{traffic: t, all: map[string]record.Frontend{}}
	t.endpoints = endpoints{traffic: t, all: map[string]remote{}, nodes: map[string]int{}, changed: make(chan struct{})}
	a.nets.onSpecs = t.kick
	return t
}

// used reports whether anything is programmed. Without a balancer and a resolver
// a node publishes its endpoints, and has no use for those of others.
func (t *traffic) used() bool { return t.agent.opts.Balancer != nil || t.agent.opts.Resolver != nil }

func (t *traffic) kick() {
	t.urgent.Store(true)
	t.later()
}

// later is kick for what can wait a little.
func (t *traffic) later() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// set gives a task traffic. served is called, without the traffic's lock held,
// once the node sends connections to it, or with why it cannot.
func (t *traffic) set(rec record.Task, addresses map[string][]netip.Addr, served func(error)) {
	t.mu.Lock()
	e := localEndpoint{task: rec, addresses: maps.Clone(addresses), served: served}
	t.local[rec.ID] = e
	t.mu.Unlock()
	t.publish(e)
	t.kick()
}

// name has the name of a slot stand for its task, which may not be ready yet.
func (t *traffic) name(rec record.Task, addresses map[string][]netip.Addr) {
	t.mu.Lock()
	_, known := t.local[rec.ID]
	e := localEndpoint{task: rec, addresses: maps.Clone(addresses), unready: true}
	if !known {
		t.local[rec.ID] = e
	}
	t.mu.Unlock()
	if !known {
		t.publish(e)
		t.kick()
	}
}

// publish tells the other nodes.
func (t *traffic) publish(e localEndpoint) {
	for n, addrs := range e.addresses {
		rec := e.record(addrs)
		rec.Node = t.agent.id()
		t.agent.out.put(endpointKey(t.agent.id(), n, &e.task), rec, true)
	}
}

// record is what other nodes learn of e on one network.
func (e *localEndpoint) record(addresses []netip.Addr) record.Endpoint {
	rec := record.Endpoint{
		Task: e.task.ID, Slot: e.task.Slot, Revision: e.task.Revision, Hash: e.task.Hash, Addresses: addresses, NotReady: e.unready,
		Leaving: e.leaving,
	}
	if e.task.Fenced() {
		rec.Name = record.SlotName(e.task.Service, e.task.Slot)
	}
	return rec
}

// withdraw takes a task's traffic away, and does not wait for it. The name of a
// slot stays.
func (t *traffic) withdraw(task string) { t.remove(task, false, false) }

// withdrawn takes a task's traffic away and returns when no new connection
// goes to it from this node. The error is that ctx ended.
func (t *traffic) withdrawn(ctx context.Context, task string) error {
	done := t.remove(task, true, false)
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// remove takes a task's traffic away, and its name with it if that is asked for.
// With ask, the other nodes are asked to acknowledge it. The channel is closed
// once this node has programmed it; nil when there is nothing to program.
func (t *traffic) remove(task string, name, ask bool) <-chan struct{} {
	t.mu.Lock()
	e, ok := t.local[task]
	if !ok {
		// It may have been withdrawn a moment ago: then that is waited for.
		defer t.mu.Unlock()
		for _, c := range t.waiting {
			if c.task == task {
				return c.done
			}
		}
		return nil
	}
	delete(t.local, task)
	keep := e.task.Fenced() && !name
	if keep {
		e.unready, e.served = true, nil
		t.local[task] = e
	}
	c := change{service: service(e.task), task: task, done: make(chan struct{})}
	t.waiting = append(t.waiting, c)
	if ask && !e.unready {
		for n := range e.addresses {
			t.leaving[task] = append(t.leaving[task], endpointKey(t.agent.id(), n, &e.task))
		}
	}
	t.mu.Unlock()
	switch {
	case keep:
		t.publish(e)
	case ask && !e.unready:
		e.unready, e.leaving = true, true
		t.publish(e)
	default:
		for n := range e.addresses {
			t.agent.out.delete(endpointKey(t.agent.id(), n, &e.task))
		}
	}
	t.kick()
	return c.done
}

func service(t record.Task) string { return t.Namespace + "/" + t.Service }

// run programs every change. The first time it waits until everything is
// known, so that the rules of an earlier agent hold until then.
func (t *traffic) run(ctx context.Context) error {
	select {
	case <-t.agent.adopted:
	case <-ctx.Done():
		return ctx.Err()
	}
	var again <-chan time.Time
	var rested time.Time // until when what can wait does
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.wake:
		case <-again:
		}
		if rest := time.Until(rested); rest > 0 && !t.urgent.Load() {
			again = time.After(rest)
			continue
		}
		again = nil
		if err := moment.Settle(ctx, moment.Traffic, t.wake); err != nil {
			return err
		}
		t.mu.Lock()
		known := t.frontends.seen && t.endpoints.seen || !t.used()
		t.mu.Unlock()
		if !known {
			continue // its snapshot wakes us
		}
		t.urgent.Store(false)
		began := time.Now()
		err := t.program(ctx)
		rested = pace(began, time.Now())
		if err != nil && ctx.Err() == nil {
			failures++
			delay := delayAfter(failures, 50*time.Millisecond, 10*time.Second)
			t.log.Error("cannot program the balancer; trying again", "error", err, "in", delay)
			again = time.After(delay)
			continue
		}
		failures = 0
		t.mu.Lock()
		if len(t.refused) > 0 {
			again = time.After(refusedRetry)
		}
		t.mu.Unlock()
	}
}

// maxRest is how long an endpoint of another node that is new waits at most.
const maxRest = 250 * time.Millisecond

// pace is until when what can wait does, after a programming. Each looks at all
// endpoints, and while many tasks start there are as many changes, on each of all
// nodes: so it takes no more than a fiftieth of one processor, or four turns a
// second.
func pace(began, ended time.Time) time.Time {
	return ended.Add(min(49*ended.Sub(began), maxRest))
}

// refusedRetry is after what time a published port is tried again that a
// process of the host has taken: nothing tells when that process ends.
const refusedRetry = 2 * time.Second

// program makes balancer and names what the records say now.
func (t *traffic) program(ctx context.Context) error {
	t.mu.Lock()
	var rules []network.Rule
	var zones []Zone
	if t.used() {
		all := t.backends()
		rules, zones = t.rules(all), t.zones(all)
	}
	revision, asked := t.endpoints.at, t.endpoints.asked()
	waiting := t.waiting
	t.waiting = nil
	var served []localEndpoint
	for id, e := range t.local {
		if e.served != nil && t.reachable(e) {
			served = append(served, e)
			e.served = nil
			t.local[id] = e
		}
	}
	t.mu.Unlock()

	// gofail: var rulesKnown struct{}
	// die()
	refused, err := t.install(ctx, rules)
	// gofail: var rulesInstalled struct{}
	// die()
	if err == nil && t.agent.opts.Resolver != nil {
		if err := t.agent.opts.Resolver.Set(zones); err != nil && ctx.Err() == nil {
			// Names can wait; traffic by address works.
			t.log.Error("cannot serve names", "error", err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range served {
		if err == nil && refused[service(e.task)] == nil {
			continue
		}
		// It is told again when that has changed.
		if now, ok := t.local[e.task.ID]; ok && now.served == nil {
			now.served = e.served
			t.local[e.task.ID] = now
		}
	}
	if err != nil {
		t.waiting = append(waiting, t.waiting...)
		return err
	}
	changed := !maps.EqualFunc(refused, t.refused, func(a, b error) bool { return a.Error() == b.Error() })
	t.refused = refused
	t.acknowledge(revision, asked)
	for _, c := range waiting {
		close(c.done)
	}
	// Whoever is told takes its own lock, under which it may call set.
	t.mu.Unlock()
	for _, e := range served {
		e.served(refused[service(e.task)])
	}
	if changed && len(refused) > 0 {
		for s, err := range refused {
			t.log.Error("a service cannot be published", "service", s, "error", err)
		}
	}
	t.mu.Lock()
	return nil
}

// reachable reports whether all that leads to an endpoint is known: the
// virtual addresses of its service, if it has ports. t.mu is held.
func (t *traffic) reachable(e localEndpoint) bool {
	if !e.task.Frontend || !t.used() {
		return true
	}
	_, ok := t.frontends.all[service(e.task)]
	return ok
}

// install programs rules. Those of a service whose frontend is taken are left
// out and named, so that one bad service does not stop the others.
func (t *traffic) install(ctx context.Context, rules []network.Rule) (refused map[string]error, err error) {
	refused = map[string]error{}
	if t.agent.opts.Balancer == nil {
		return refused, nil
	}
	for {
		err := t.agent.opts.Balancer.Program(ctx, rules)
		var conflict *network.ConflictError
		if !errors.As(err, &conflict) || len(conflict.Services) == 0 {
			return refused, err
		}
		// Of two services the one that was there before keeps the frontend;
		// the control plane refuses a second one, so this is a race at most.
		// Others may be no services of ours, but processes of the node.
		published := func(name string) func(network.Rule) bool {
			return func(r network.Rule) bool { return r.Service == name && !r.Address.IsValid() }
		}
		loser := ""
		for _, name := range conflict.Services {
			if slices.ContainsFunc(rules, published(name)) {
				loser = name
			}
		}
		if loser == "" {
			return refused, err
		}
		rules = slices.DeleteFunc(slices.Clone(rules), published(loser))
		refused[loser] = fmt.Errorf("publish %s: %w", loser, err)
	}
}

// backends lists the ready endpoints of every service by network. This node's
// own name no node.
func (t *traffic) backends() map[string]map[string][]record.Endpoint {
	all := map[string]map[string][]record.Endpoint{}
	add := func(service, network string, e record.Endpoint) {
		if all[service] == nil {
			all[service] = map[string][]record.Endpoint{}
		}
		all[service][network] = append(all[service][network], e)
	}
	for _, e := range t.endpoints.all {
		if e.Node != t.agent.id() { // our own are known better
			add(e.service, e.network, e.Endpoint)
		}
	}
	for _, e := range t.local {
		for n, addrs := range e.addresses {
			add(service(e.task), n, e.record(addrs))
		}
	}
	for service, nets := range all {
		held := t.frontends.all[service].Held
		for network, es := range nets {
			es = serving(es, held)
			nets[network] = es
			slices.SortFunc(es, func(a, b record.Endpoint) int {
				return cmp.Or(cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.Task, b.Task))
			})
		}
	}
	return all
}

// serving leaves away the endpoints of templates that take no traffic. Where no
// other is ready they stay: to serve is better than to refuse, and what is known
// here may be a moment old.
func serving(es []record.Endpoint, held []string) []record.Endpoint {
	if len(held) == 0 {
		return es
	}
	isHeld := func(e record.Endpoint) bool { return e.Hash != "" && slices.Contains(held, e.Hash) }
	if !slices.ContainsFunc(es, func(e record.Endpoint) bool { return !e.NotReady && !isHeld(e) }) {
		return es
	}
	return slices.DeleteFunc(es, isHeld)
}

// rules are what the balancer is to do. t.mu is held.
func (t *traffic) rules(all map[string]map[string][]record.Endpoint) []network.Rule {
	var rules []network.Rule
	for _, name := range slices.Sorted(maps.Keys(t.frontends.all)) {
		fe := t.frontends.all[name]
		for _, p := range fe.Ports {
			to := func(net string, local bool) (addrs []netip.AddrPort) {
				for _, e := range all[name][net] {
					if e.NotReady || local && e.Node != "" {
						continue
					}
					for _, a := range e.Addresses {
						addrs = append(addrs, netip.AddrPortFrom(a, p.Port))
					}
				}
				return addrs
			}
			for _, net := range slices.Sorted(maps.Keys(fe.Addresses)) {
				for _, vip := range fe.Addresses[net] {
					rules = append(rules, network.Rule{
						Service: name, Protocol: network.Protocol(p.Protocol),
						Address: vip, Port: p.Virtual, Endpoints: to(net, false), Count: fe.Measure > 0,
					})
				}
			}
			if p.Published == 0 {
				continue
			}
			host, _ := netip.ParseAddr(p.HostIP)
			var backends []netip.AddrPort
			for _, net := range slices.Sorted(maps.Keys(fe.Addresses)) {
				if backends = to(net, p.Local); len(backends) > 0 {
					break // a task of several networks is one endpoint
				}
			}
			rules = append(rules, network.Rule{
				Service: name, Protocol: network.Protocol(p.Protocol),
				HostIP: host, Port: p.Published, Endpoints: backends, Count: fe.Measure > 0,
			})
		}
	}
	return rules
}

// zones are the services of every network of the node. t.mu is held.
func (t *traffic) zones(all map[string]map[string][]record.Endpoint) []Zone {
	var zones []Zone
	for _, spec := range t.agent.nets.made() {
		z := Zone{Network: spec.Name, Subnets: spec.Subnets, Listen: t.agent.nets.gateways(spec.Name), Internal: spec.Internal}
		here := map[string]bool{}
		for s, fe := range t.frontends.all {
			if len(fe.Addresses[spec.Name]) > 0 {
				here[s] = true
			}
		}
		for s, nets := range all {
			if len(nets[spec.Name]) > 0 {
				here[s] = true
			}
		}
		for _, s := range slices.Sorted(maps.Keys(here)) {
			ns, name, _ := strings.Cut(s, "/")
			fe := t.frontends.all[s]
			zs := ZoneService{Namespace: ns, Name: name, Virtual: fe.Addresses[spec.Name]}
			for _, e := range all[s][spec.Name] {
				if e.Leaving && e.Name == "" {
					continue
				}
				zs.Tasks = append(zs.Tasks, ZoneTask{Slot: e.Slot, Addresses: e.Addresses, Name: e.Name, Unready: e.NotReady})
			}
			for _, p := range fe.Ports {
				zs.Ports = append(zs.Ports, ZonePort{Name: p.Name, Protocol: p.Protocol, Port: p.Virtual})
			}
			z.Services = append(z.Services, zs)
		}
		zones = append(zones, z)
	}
	slices.SortFunc(zones, func(a, b Zone) int { return strings.Compare(a.Network, b.Network) })
	return zones
}

// Reset takes the frontends of the snapshot.
func (f *frontends) Reset(s store.Snapshot) error {
	f.mu.Lock()
	clear(f.all)
	for _, item := range s.Items {
		f.read(item)
	}
	f.seen = true
	f.mu.Unlock()
	f.kick()
	f.agent.meter.kick()
	return nil
}

// Apply follows one commit.
func (f *frontends) Apply(b store.Batch) error {
	f.mu.Lock()
	for _, c := range b.Changes {
		if c.Deleted {
			delete(f.all, strings.TrimPrefix(c.Item.Key, record.Frontends))
		} else {
			f.read(c.Item)
		}
	}
	f.mu.Unlock()
	f.kick()
	f.agent.meter.kick()
	return nil
}

func (f *frontends) read(item store.Item) {
	var rec record.Frontend
	if err := json.Unmarshal(item.Value, &rec); err != nil {
		f.log.Error("cannot read a frontend's record", "key", item.Key, "error", err)
		return
	}
	f.all[strings.TrimPrefix(item.Key, record.Frontends)] = rec
}

// Reset takes the endpoints of the snapshot.
func (e *endpoints) Reset(s store.Snapshot) error {
	e.mu.Lock()
	clear(e.all)
	clear(e.nodes)
	for _, item := range s.Items {
		e.read(item)
	}
	e.seen = true
	e.moved(s.Revision)
	e.mu.Unlock()
	e.kick()
	return nil
}

// moved notes how new the mirror is. e.mu is held.
func (e *endpoints) moved(revision int64) {
	e.at = revision
	close(e.changed)
	e.changed = make(chan struct{})
}

// asked is the revision of the newest endpoint of another node that waits for an
// acknowledgement; 0 when there is none. e.mu is held.
func (e *endpoints) asked() (newest int64) {
	for _, r := range e.all {
		if r.Leaving && r.Node != e.agent.id() {
			newest = max(newest, r.revision)
		}
	}
	return newest
}

// Apply follows one commit. Those of this node change nothing here.
func (e *endpoints) Apply(b store.Batch) error {
	e.mu.Lock()
	foreign, fewer := false, false // fewer that take traffic, which cannot wait
	for _, c := range b.Changes {
		before, had := e.all[c.Item.Key]
		if c.Deleted {
			e.drop(c.Item.Key)
			foreign = foreign || had && before.Node != e.agent.id()
		} else {
			foreign = e.read(c.Item) || foreign
		}
		fewer = fewer || had && !before.NotReady
	}
	e.moved(b.Revision)
	e.mu.Unlock()
	switch {
	case foreign && fewer:
		e.kick()
	case foreign:
		e.later()
	}
	return nil
}

// drop forgets an endpoint. e.mu is held.
func (e *endpoints) drop(key string) {
	if old, had := e.all[key]; had {
		delete(e.all, key)
		if e.nodes[old.Node]--; e.nodes[old.Node] == 0 {
			delete(e.nodes, old.Node)
		}
	}
}

// read reports whether the endpoint is of another node.
func (e *endpoints) read(item store.Item) bool {
	parts := record.Split(item.Key, record.Endpoints, 5)
	if parts == nil {
		return false
	}
	var rec record.Endpoint
	if err := json.Unmarshal(item.Value, &rec); err != nil {
		e.log.Error("cannot read an endpoint's record", "key", item.Key, "error", err)
		return false
	}
	rec.Node = parts[0] // what the node may write under, whatever it says
	e.drop(item.Key)
	e.nodes[rec.Node]++
	e.all[item.Key] = remote{network: parts[1], service: parts[2] + "/" + parts[3], revision: item.Revision, Endpoint: rec}
	return rec.Node != e.agent.id()
}
