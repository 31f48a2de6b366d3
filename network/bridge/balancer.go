//go:build linux

package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
)

// balance is what the table says about services, as this driver wrote it. The
// zero value is that nothing is known: an earlier driver may have written
// anything.
type balance struct {
	known  bool
	rules  map[frontend]network.Rule
	chains map[string]bool // the choices' chains that are there
	// hairpin counts the rules' endpoints by address.
	hairpin map[netip.Addr]int
}

// frontend is what tells rules apart.
type frontend struct {
	protocol network.Protocol
	address  netip.Addr
	hostIP   netip.Addr
	port     uint16
}

func frontendOf(r network.Rule) frontend {
	return frontend{r.Protocol, r.Address, r.HostIP, r.Port}
}

// Program implements network.Balancer. One nftables transaction changes what
// differs from the last call; rules that are the same cost nothing in the
// kernel. The first call after Open replaces whatever an earlier driver left,
// in one transaction too: connections that are established keep their
// endpoint by connection tracking.
//
// After it, connection tracking forgets what would still lead to a withdrawn
// endpoint: UDP flows, which have no end of their own, and TCP connections
// that the endpoint has not answered yet, whose client will try again. One that
// was under way in that moment goes nowhere, and is tried again too.
//
// A published port that a process of the node listens on is refused when it
// is first published. A frontend whose endpoint answers a SYN with a reset is
// silent instead, and the client tries again after a second: that hides the
// moment between the death of a task and its withdrawal, and makes an
// endpoint with no listener look slow instead of closed.
func (d *Driver) Program(ctx context.Context, rules []network.Rule) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	canonical, err := network.Canonical(rules)
	if err != nil {
		return err
	}
	d.balancing.Lock()
	defer d.balancing.Unlock()
	if err := d.begin(ctx); err != nil { // closed while waiting
		return err
	}
	if err := d.program(canonical); err != nil {
		return fmt.Errorf("program balancer: %w", err)
	}
	return nil
}

func (d *Driver) program(rules []network.Rule) error {
	next, changed, gone := d.balance.compare(rules)
	var added []network.Rule
	for _, f := range changed {
		if _, had := d.balance.rules[f]; !had {
			added = append(added, next[f])
		}
	}
	if err := d.checkListeners(added); err != nil {
		return err
	}
	here, current, err := d.table.exists()
	if err != nil {
		return err
	}
	if here && current {
		if err := d.followBridgeFilter(); err != nil {
			return err
		}
	}
	if !here || !current || !d.balance.known {
		return d.replaceAll(next)
	}
	if len(changed)+len(gone) == 0 {
		return nil
	}
	err = d.change(next, changed, gone)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) {
		// Somebody else changed the table.
		d.log.Warn("nft table is not as this driver left it; replacing it", "table", d.table.name, "error", err)
		err = d.replaceAll(next)
	}
	return err
}

// compare returns rules by frontend, which of them are new or other than
// before, and which of before are gone.
func (b *balance) compare(rules []network.Rule) (next map[frontend]network.Rule, changed, gone []frontend) {
	next = make(map[frontend]network.Rule, len(rules))
	for _, r := range rules {
		f := frontendOf(r)
		next[f] = r
		if old, had := b.rules[f]; !had || !sameEndpoints(old, r) {
			changed = append(changed, f)
		}
	}
	for f := range b.rules {
		if _, stays := next[f]; !stays {
			gone = append(gone, f)
		}
	}
	return next, changed, gone
}

// sameEndpoints reports whether two rules of one frontend do the same.
func sameEndpoints(a, b network.Rule) bool {
	return a.SourceAffinity == b.SourceAffinity && a.Count == b.Count && slices.Equal(a.Endpoints, b.Endpoints)
}

// replaceAll writes everything about services anew, and what is about
// networks too where the table has to be made.
func (d *Driver) replaceAll(next map[frontend]network.Rule) error {
	c, fresh, err := d.table.begin()
	if err != nil {
		return err
	}
	loopback6 := d.loopback6()
	if fresh {
		d.networks.RLock()
		err = d.table.addNetworks(c, slices.Collect(maps.Values(d.nets)), loopback6)
		d.networks.RUnlock()
		if err != nil {
			return err
		}
	}
	for _, name := range serviceSets {
		c.FlushSet(d.table.sets[name+"4"])
		c.FlushSet(d.table.sets[name+"6"])
	}
	after := balance{known: true, rules: next, chains: map[string]bool{}, hairpin: map[netip.Addr]int{}}
	e := newEdit()
	for _, r := range next {
		e.put(elementsOf(r))
		count(after.hairpin, r, 1)
	}
	for addr := range after.hairpin {
		e.put(hairpin(addr))
	}
	if err := d.table.apply(c, e, after.chains); err != nil {
		return err
	}
	if err := d.table.flush(c); err != nil {
		return err
	}
	if fresh {
		d.table.note(loopback6, "") // written, but not from here on known
	}
	// gofail: var rulesReplaced struct{}
	// die()
	d.balance = after
	return d.forgetFlows(slices.Collect(maps.Values(next)), nil, true)
}

// change writes what is different.
func (d *Driver) change(next map[frontend]network.Rule, changed, gone []frontend) error {
	e, counts := d.balance.edit(next, changed, gone)
	chains := maps.Clone(d.balance.chains)
	c, err := d.table.open()
	if err != nil {
		return err
	}
	if err := d.table.apply(c, e, chains); err != nil {
		return err
	}
	if err := d.table.flush(c); err != nil {
		return err
	}
	// gofail: var rulesChanged struct{}
	// die()
	var now, before []network.Rule
	for _, f := range slices.Concat(changed, gone) {
		if old, had := d.balance.rules[f]; had {
			before = append(before, old)
		}
		if r, has := next[f]; has {
			now = append(now, r)
		}
	}
	d.balance.rules, d.balance.chains = next, chains
	for addr, n := range counts {
		if d.balance.hairpin[addr] += n; d.balance.hairpin[addr] == 0 {
			delete(d.balance.hairpin, addr)
		}
	}
	return d.forgetFlows(now, before, false)
}

// edit returns what to take from the table and put into it when rules become
// next, and the change of the hairpin counts.
func (b *balance) edit(next map[frontend]network.Rule, changed, gone []frontend) (*edit, map[netip.Addr]int) {
	e, counts := newEdit(), map[netip.Addr]int{}
	for _, f := range slices.Concat(changed, gone) {
		if old, had := b.rules[f]; had {
			e.take(elementsOf(old))
			count(counts, old, -1)
		}
		if r, has := next[f]; has {
			e.put(elementsOf(r))
			count(counts, r, 1)
		}
	}
	for addr, n := range counts {
		switch had := b.hairpin[addr]; {
		case had == 0 && n > 0:
			e.put(hairpin(addr))
		case had > 0 && had+n == 0:
			e.take(hairpin(addr))
		}
	}
	return e, counts
}

// count adds a rule's endpoints to counts, or takes them off.
func count(counts map[netip.Addr]int, r network.Rule, n int) {
	for _, e := range r.Endpoints {
		counts[e.Addr()] += n
	}
}

// element is one element of a map or set about services. Maps lead to a
// choice's chain or to an endpoint.
type element struct {
	set, key string
}

type value struct {
	chain choice // n is 0 where the value is data or nothing
	data  string
}

// elementsOf returns everything that the table says about a rule.
func elementsOf(r network.Rule) map[element]value {
	elements := make(map[element]value, len(r.Endpoints)+2)
	for _, ipv4 := range []bool{true, false} {
		if !r.Takes(ipv4) {
			continue
		}
		f := suffix(ipv4)
		var endpoints []netip.AddrPort
		for _, e := range r.Endpoints {
			if e.Addr().Is4() == ipv4 {
				endpoints = append(endpoints, e)
			}
		}
		set, address := mapVirtual, r.Address
		all := !address.IsValid() && (!r.HostIP.IsValid() || r.HostIP.IsUnspecified())
		switch {
		case all:
			set, address = mapAll, netip.IPv6Unspecified()
			if ipv4 {
				address = netip.IPv4Unspecified()
			}
		case !address.IsValid():
			set, address = mapHost, r.HostIP
		}
		ports := portKey(r.Protocol, r.Port)
		key := string(address.AsSlice()) + ports
		if r.Count && all {
			elements[element{setCountedAll + f, ports}] = value{}
		} else if r.Count {
			elements[element{setCounted + f, key}] = value{}
		}
		if len(endpoints) == 0 {
			// An address of the node needs no help to refuse: nobody listens.
			if set == mapVirtual {
				elements[element{setRefused + f, key}] = value{}
			}
			continue
		}
		c := choice{ipv4: ipv4, all: all, affinity: r.SourceAffinity, n: len(endpoints)}
		if all {
			elements[element{set + f, ports}] = value{chain: c}
		} else {
			elements[element{set + f, key}] = value{chain: c}
		}
		for i, e := range endpoints {
			elements[element{mapEndpoints + f, key + indexKey(i)}] = value{data: string(e.Addr().AsSlice()) + portOf(e.Port())}
		}
	}
	return elements
}

// hairpin returns the element by which an endpoint's connections to itself are
// known.
func hairpin(addr netip.Addr) map[element]value {
	key := string(addr.AsSlice())
	return map[element]value{{setHairpin + suffix(addr.Is4()), key + key}: {}}
}

// portKey is protocol and port as parts of a key: each part of a key is
// padded to four bytes.
func portKey(p network.Protocol, port uint16) string {
	number := byte(unix.IPPROTO_TCP)
	if p == network.UDP {
		number = unix.IPPROTO_UDP
	}
	return string([]byte{number, 0, 0, 0}) + portOf(port)
}

func portOf(port uint16) string { return string([]byte{byte(port >> 8), byte(port), 0, 0}) }

// edit is a difference: elements to take and to put.
type edit struct {
	old, new map[element]value
}

func newEdit() *edit { return &edit{map[element]value{}, map[element]value{}} }

func (e *edit) take(elements map[element]value) { maps.Copy(e.old, elements) }
func (e *edit) put(elements map[element]value)  { maps.Copy(e.new, elements) }

// difference leaves out what is taken and put back as it was.
func (e *edit) difference() (gone, come map[element]value) {
	gone, come = map[element]value{}, map[element]value{}
	for el, v := range e.old {
		if now, stays := e.new[el]; !stays || now != v {
			gone[el] = v
		}
	}
	for el, v := range e.new {
		if old, had := e.old[el]; !had || old != v {
			come[el] = v
		}
	}
	return gone, come
}

// apply adds an edit to a transaction: what goes first, then the chains that
// are needed and not in chains yet, then what comes.
func (t *table) apply(c *nftables.Conn, e *edit, chains map[string]bool) error {
	gone, come := e.difference()
	del, add := map[string][]nftables.SetElement{}, map[string][]nftables.SetElement{}
	for el := range gone {
		del[el.set] = append(del[el.set], nftables.SetElement{Key: []byte(el.key)})
	}
	for set, elements := range del {
		if err := t.del(c, set, elements); err != nil {
			return err
		}
	}
	for el, v := range come {
		add[el.set] = append(add[el.set], v.element(el.key))
		if name := v.chain.chain(); v.chain.n > 0 && !chains[name] {
			chains[name] = true
			chain := t.choiceChain(v.chain)
			c.AddChain(chain.Chain)
			// The chain may be there, of an earlier driver, with or without
			// its rule.
			c.FlushChain(chain.Chain)
			for _, exprs := range chain.rules {
				c.AddRule(&nftables.Rule{Table: t.nft, Chain: chain.Chain, Exprs: exprs})
			}
		}
	}
	for set, elements := range add {
		if err := t.add(c, set, elements); err != nil {
			return err
		}
	}
	return nil
}
