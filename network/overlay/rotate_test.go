//go:build linux

package overlay

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestRotation(t *testing.T) {
	const day = 24 * time.Hour
	for _, tc := range []struct {
		what string
		r    rotation
		want step
	}{
		{"the first half", rotation{every: day, elapsed: day/2 - 1, quiet: day}, wait},
		{"the second half", rotation{every: day, elapsed: day / 2, quiet: day}, renew},
		{"somebody sends by the idle tunnel", rotation{every: day, elapsed: day, quiet: time.Second}, wait},
		{"somebody can be reached by it alone", rotation{every: day, elapsed: day, quiet: day, held: true}, wait},
		{"renewed", rotation{every: day, elapsed: day - 1, renewed: true, quiet: day}, wait},
		{"the end", rotation{every: day, elapsed: day, renewed: true, quiet: day}, advance},
		{"the end, of a node whose turn is later", rotation{every: day, shift: time.Minute, elapsed: day, renewed: true}, wait},
		{"seconds", rotation{every: 2 * time.Second, elapsed: time.Second, quiet: 250 * time.Millisecond}, renew},
	} {
		if got := tc.r.next(); got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.what, got, tc.want)
		}
	}
}

// modelled is a node in virtual time: what it knows of the store comes late, and
// it looks at its tunnels now and then.
type modelled struct {
	name  string
	keys  [2]Key
	made  [2]uint64
	fleet fleet
	read  int // records of the log that it has read
	met   [2]map[Key]TunnelState
	heard [2]time.Time
}

// rotating is a fleet in virtual time, in which all send to all without a pause,
// or each to those before it alone.
type rotating struct {
	t      *testing.T
	rand   *rand.Rand
	now    time.Time
	every  time.Duration
	log    []entry
	epoch  uint64 // as the store has it
	nodes  []*modelled
	works  map[[2]string]bool
	oneWay bool
}

type entry struct {
	key   string
	value []byte
}

func (w *rotating) put(key string, value any) {
	data, err := json.Marshal(value)
	check(w.t, err)
	w.log = append(w.log, entry{key, data})
}

func (w *rotating) publish(n *modelled) {
	e := ends{Underlay: netip.MustParseAddr("192.0.2.1")}
	for i, k := range n.keys {
		e.Ends[i] = end{Public: k}
	}
	w.put(keyNodes+n.name, e)
}

func (w *rotating) key() (k Key) {
	for i := range k {
		k[i] = byte(w.rand.Uint32())
	}
	return k
}

// connected reports whether two nodes know each other's keys of a tunnel.
func connected(a, b *modelled, tunnel int) bool {
	return a.fleet.nodes[b.name].Ends[tunnel].Public == b.keys[tunnel] && b.fleet.nodes[a.name].Ends[tunnel].Public == a.keys[tunnel]
}

// traffic has all send to all, and holds that whoever could be reached still is.
func (w *rotating) traffic(what string) {
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			if a == b || w.oneWay && a.name < b.name {
				continue
			}
			e := a.fleet.nodes[b.name]
			by := choose(a.fleet.epoch.tunnel(), e, a.met)
			pair := [2]string{a.name, b.name}
			switch {
			case connected(a, b, by):
				w.works[pair] = true
				b.heard[by] = w.now
			case w.works[pair]:
				w.t.Fatalf("after %s: %s sends to %s by tunnel %d, of which they do not know each other's keys any more; epochs %d and %d of %d",
					what, a.name, b.name, by, a.fleet.epoch.Number, b.fleet.epoch.Number, w.epoch)
			}
		}
	}
}

// look is what a node does when it looks at its tunnels.
func (w *rotating) look(n *modelled) string {
	for i := range n.met {
		met := map[Key]TunnelState{}
		for _, other := range w.nodes {
			key := n.fleet.nodes[other.name].Ends[i].Public
			// Handshakes are made at once where both can, and remembered until one
			// of the keys is another.
			if state := n.met[i][key]; !state.Handshake.IsZero() || other != n && connected(n, other, i) {
				met[key] = TunnelState{Handshake: w.now}
			}
		}
		n.met[i] = met
	}
	if n.fleet.epoch.Number == 0 {
		w.advance(n)
		return "a look"
	}
	idle := 1 - n.fleet.epoch.tunnel()
	r := rotation{every: w.every, elapsed: w.now.Sub(n.fleet.seen), renewed: n.made[idle] == n.fleet.epoch.Number, quiet: w.now.Sub(n.heard[idle])}
	for name, e := range n.fleet.nodes {
		r.held = r.held || name != n.name && choose(n.fleet.epoch.tunnel(), e, n.met) == idle
	}
	switch r.next() {
	case renew:
		if n.fleet.epoch.Number != w.epoch {
			return "a renewal that comes too late"
		}
		n.keys[idle], n.made[idle], n.met[idle] = w.key(), n.fleet.epoch.Number, nil
		w.publish(n)
		return fmt.Sprintf("%s renewed tunnel %d in epoch %d", n.name, idle, n.fleet.epoch.Number)
	case advance:
		w.advance(n)
	}
	return "a look"
}

func (w *rotating) advance(n *modelled) {
	if n.fleet.epoch.Number == w.epoch {
		w.epoch++
		w.put(keyEpoch, epoch{Number: w.epoch})
	}
}

// However late the nodes learn of each other's keys, and whenever they look, no
// node sends by a tunnel of which it and the other do not know the keys, once it
// could send at all; and keys do change.
func TestNoKeyChangesUnderTraffic(t *testing.T) {
	renewed := 0
	for seed := range uint64(100) {
		w := &rotating{t: t, rand: rand.New(rand.NewPCG(seed, 0)), now: time.Unix(1e9, 0), every: 16 * time.Second, works: map[[2]string]bool{}, oneWay: seed%2 == 1}
		for i := range 3 {
			n := &modelled{name: fmt.Sprintf("n%d", i), keys: [2]Key{w.key(), w.key()}, fleet: fleet{nodes: map[string]ends{}}, heard: [2]time.Time{w.now, w.now}}
			w.nodes = append(w.nodes, n)
			w.publish(n)
		}
		// One node hears of everything late: in some runs by less than half an
		// epoch, in others by more.
		late, slow := w.nodes[0], 1+w.rand.IntN(12)
		for range 3000 {
			what := "time"
			n := w.nodes[w.rand.IntN(len(w.nodes))]
			switch w.rand.IntN(3) {
			case 0:
				w.now = w.now.Add(time.Duration(w.rand.IntN(300)) * time.Millisecond)
			case 1:
				for count := 1 + w.rand.IntN(8); count > 0 && n.read < len(w.log) && (n != late || n.read < 3 || w.rand.IntN(slow*2) == 0); count-- {
					e := w.log[n.read]
					n.read++
					check(t, n.fleet.read(e.key, e.value, false, w.now))
					what = n.name + " read " + e.key
				}
			case 2:
				what = w.look(n)
			}
			w.traffic(what)
		}
		renewed += int(w.epoch)
		if want := map[bool]int{false: 6, true: 3}[w.oneWay]; len(w.works) != want {
			t.Fatalf("seed %d: %d of %d ways work", seed, len(w.works), want)
		}
	}
	if renewed < 500 {
		t.Errorf("%d epochs in 100 runs: keys hardly change", renewed)
	}
}

// Of two ends one calls the other at once, whichever that is, and again; the other
// does when it has waited for long; nobody calls who was met.
func TestWhoCalls(t *testing.T) {
	began := time.Now()
	allowed := map[string][]netip.Prefix{"other": {netip.MustParsePrefix("10.0.1.0/24")}}
	type callEnd struct {
		own, other Key
		waits      map[Key]waiting
	}
	look := func(e *callEnd, after time.Duration, met map[Key]TunnelState) (calls, anew bool) {
		t.Helper()
		nodes := map[string]ends{"other": {Ends: [2]end{1: {Public: e.other}}}, "without a part": {Ends: [2]end{1: {Public: Key{31: 1}}}}}
		peers, still, again := peersOf(nodes, allowed, 1, e.own, met, e.waits, began.Add(after))
		if len(peers) != 1 || peers[0].Public != e.other {
			t.Fatalf("the peers are %+v, want the other node alone", peers)
		}
		e.waits = still
		return peers[0].Keepalive != 0, again[e.other]
	}
	for range 100 {
		var pair [2]Key
		for i := range pair {
			private, err := MakeKey()
			check(t, err)
			pair[i] = private.Public()
		}
		low, high := &callEnd{own: pair[0], other: pair[1]}, &callEnd{own: pair[1], other: pair[0]}
		if slices.Compare(low.own[:], high.own[:]) > 0 {
			low, high = high, low
		}
		anewAt := []time.Duration{}
		for after := time.Duration(0); after <= 2*patience; after += 10 * time.Millisecond {
			calls, anew := look(low, after, nil)
			if !calls {
				t.Fatalf("after %v the end with the lower key does not call", after)
			}
			if anew {
				anewAt = append(anewAt, after)
			}
			if calls, anew := look(high, after, nil); calls != (after >= patience) || anew {
				t.Fatalf("after %v the other end calls: %v, again: %v; want once, after %v", after, calls, anew, patience)
			}
		}
		if !slices.Equal(anewAt, callAgain) {
			t.Fatalf("the end with the lower key calls again after %v, want %v", anewAt, callAgain)
		}
		for _, e := range []*callEnd{low, high} {
			if calls, anew := look(e, time.Hour, map[Key]TunnelState{e.other: {Handshake: began}}); calls || anew || len(e.waits) > 0 {
				t.Fatalf("a peer that was met is called: %v, again: %v; waited for: %v", calls, anew, e.waits)
			}
		}
	}
}
