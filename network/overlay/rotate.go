//go:build linux

package overlay

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Keys of the store for encrypted networks, beside those of [Keys].
const (
	keyTunnels = "/tunnels/"
	keyEpoch   = keyTunnels + "epoch"  // which tunnels are in use; any node
	keyNodes   = keyTunnels + "nodes/" // NODE -> ends; that node alone
)

// Rights are the keys of the store that the overlay of a node reads, and those
// that it writes and reads, in the form of orchestrate.NodeKeys. Nobody but a
// node itself can say by which key it is known, if the store holds to these.
func Rights(node string) (read, write []string) {
	return []string{Keys, keyTunnels}, []string{Keys, keyEpoch, keyNodes + node}
}

// ends are a node's ends of the two tunnels.
type ends struct {
	Underlay netip.Addr `json:"underlay"`
	Ends     [2]end     `json:"ends"`
}

type end struct {
	Public Key    `json:"public"`
	Port   uint16 `json:"port"`
}

// epoch says which of the two tunnels is in use, the one of Number % 2, and
// since when.
type epoch struct {
	Number uint64    `json:"number"`
	Since  time.Time `json:"since"`
}

func (e epoch) tunnel() int { return int(e.Number % 2) }

// fleet is what the store says about the encryption of all nodes.
type fleet struct {
	nodes map[string]ends
	epoch epoch
	seen  time.Time // when this node learnt of the epoch, by its own clock
}

// read takes one record, or that it is gone.
func (f *fleet) read(key string, value []byte, gone bool, now time.Time) error {
	node, ofNode := strings.CutPrefix(key, keyNodes)
	switch {
	case ofNode && gone:
		delete(f.nodes, node)
	case ofNode:
		var e ends
		if err := json.Unmarshal(value, &e); err != nil {
			delete(f.nodes, node) // as long as it cannot be read, nothing goes there
			return err
		}
		f.nodes[node] = e
	case key == keyEpoch && !gone:
		var e epoch
		if err := json.Unmarshal(value, &e); err != nil {
			return err
		}
		if e.Number != f.epoch.Number {
			f.epoch, f.seen = e, now
		}
	}
	return nil
}

// keepalive is how often a peer is called that has not answered since one of the
// two keys is new.
const keepalive = 25 * time.Second

// waiting is what is known of a peer that has not been met with these keys.
type waiting struct {
	since time.Time
	calls int // that this end has made
}

// Calls of WireGuard that cross can undo each other, and it makes the next ones after
// five seconds, at both ends at once. So the end whose key is the lower calls, at
// once and again, and the other only if it has waited for long.
var callAgain = []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second}

const patience = 3 * time.Second

// due is how many calls an end should have made that has waited for so long. Later
// ones are WireGuard's own.
func due(own, peer Key, waited time.Duration) (calls int) {
	switch {
	case slices.Compare(own[:], peer[:]) < 0:
		calls = 1
		for _, at := range callAgain {
			if waited >= at {
				calls++
			}
		}
	case waited >= patience:
		calls = 1
	}
	return calls
}

// peersOf returns the peers of a tunnel: every node that has an end of it and a
// part of a network. A peer that was never met with these keys is called, so that a
// session is there before the tunnel is used; and if it does not know this node's
// new key yet, it calls itself when it does. Those that are to be called again have
// to be taken away first.
func peersOf(nodes map[string]ends, allowed map[string][]netip.Prefix, tunnel int, own Key, met map[Key]TunnelState, before map[Key]waiting, now time.Time) (peers []TunnelPeer, still map[Key]waiting, again map[Key]bool) {
	still, again = map[Key]waiting{}, map[Key]bool{}
	for node, e := range nodes {
		if len(allowed[node]) == 0 {
			continue
		}
		public := e.Ends[tunnel].Public
		p := TunnelPeer{Public: public, Endpoint: netip.AddrPortFrom(e.Underlay, e.Ends[tunnel].Port), Allowed: allowed[node]}
		if met[public].Handshake.IsZero() {
			w, known := before[public]
			if !known {
				w.since = now
			}
			calls := due(own, public, now.Sub(w.since))
			if calls > 0 {
				p.Keepalive = keepalive
			}
			if w.calls > 0 && calls > w.calls {
				again[public] = true
			}
			w.calls = calls
			still[public] = w
		}
		peers = append(peers, p)
	}
	slices.SortFunc(peers, func(a, b TunnelPeer) int { return slices.Compare(a.Public[:], b.Public[:]) })
	return peers, still, again
}

// choose returns the tunnel by which a node is sent to: the one in use, unless
// the peer was met by the other alone. So no packet goes where it would wait for
// a peer that has yet to learn of a key.
func choose(use int, e ends, met [2]map[Key]TunnelState) int {
	other := 1 - use
	if met[use][e.Ends[use].Public].Handshake.IsZero() && !met[other][e.Ends[other].Public].Handshake.IsZero() {
		return other
	}
	return use
}

// rotation is what a node knows when it decides about its keys.
type rotation struct {
	every time.Duration // how long a tunnel is in use
	shift time.Duration // this node's own share of time, so that not all act at once

	elapsed time.Duration // since the epoch began
	renewed bool          // the idle tunnel's key was made in this epoch
	quiet   time.Duration // since when nothing came by the idle tunnel
	held    bool          // a peer that answers can be reached by the idle tunnel alone
}

// step is what is to be done about keys.
type step int

const (
	wait    step = iota
	renew        // make a new key for the idle tunnel
	advance      // begin the next epoch
)

// next decides. In the first half of an epoch the idle tunnel serves those that
// have not come over. In the second it has a new key, with which all meet before
// the next epoch has them use it. So no key changes that something depends on;
// rather the change waits.
func (r rotation) next() step {
	switch {
	case !r.renewed && r.elapsed >= r.every/2 && r.quiet >= r.grace() && !r.held:
		return renew
	case r.renewed && r.elapsed >= r.every+r.shift:
		return advance
	default:
		return wait
	}
}

// grace is for how long nothing must have come by a tunnel that is to be idle.
func (r rotation) grace() time.Duration { return min(r.every/8, time.Minute) }

// allowedOf returns the parts of networks that each node has.
func allowedOf(peers map[string]map[string]slice, cut func(name string, index int) []netip.Prefix) map[string][]netip.Prefix {
	allowed := map[string][]netip.Prefix{}
	for name, of := range peers {
		for key, s := range of {
			_, index, _ := splitKey(key)
			allowed[s.Node] = append(allowed[s.Node], cut(name, index)...)
		}
	}
	for _, prefixes := range allowed {
		slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
			return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
		})
	}
	return allowed
}
