//go:build linux

package wireguard

import (
	"net/netip"
	"slices"
	"time"

	"github.com/orchestrate-go/orchestrate/network/overlay"
)

// changes are what leads from one configuration of a tunnel to another.
type changes struct {
	anew  bool // a new private key: all peers begin anew
	port  bool // the port is another
	peers []change
}

// change is what is new about a peer: nil, or empty, where nothing is.
type change struct {
	public          overlay.Key
	remove          bool
	endpoint        netip.AddrPort
	keepalive       *time.Duration
	allow, disallow []netip.Prefix
	allowed         []netip.Prefix // all that is allowed then
}

func between(old, want overlay.TunnelConfig) changes {
	c := changes{anew: old.Private != want.Private, port: old.Port != want.Port}
	had := map[overlay.Key]overlay.TunnelPeer{}
	if !c.anew {
		for _, p := range old.Peers {
			had[p.Public] = p
		}
	}
	// Those that go are first: what they were allowed may be another's now.
	kept := map[overlay.Key]bool{}
	for _, p := range want.Peers {
		kept[p.Public] = true
	}
	for _, p := range old.Peers {
		if !c.anew && !kept[p.Public] {
			c.peers = append(c.peers, change{public: p.Public, remove: true})
		}
	}
	for _, p := range want.Peers {
		o, known := had[p.Public]
		n := change{public: p.Public, allowed: p.Allowed}
		if p.Endpoint != o.Endpoint {
			n.endpoint = p.Endpoint
		}
		if p.Keepalive != o.Keepalive {
			n.keepalive = &p.Keepalive
		}
		n.allow, n.disallow = without(p.Allowed, o.Allowed), without(o.Allowed, p.Allowed)
		if !known || n.endpoint.IsValid() || n.keepalive != nil || len(n.allow)+len(n.disallow) > 0 {
			c.peers = append(c.peers, n)
		}
	}
	return c
}

// without returns what is in a and not in b.
func without(a, b []netip.Prefix) []netip.Prefix {
	var rest []netip.Prefix
	for _, p := range a {
		if !slices.Contains(b, p) {
			rest = append(rest, p)
		}
	}
	return rest
}
