package orchestrate

import (
	"fmt"
	"net/netip"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// Default pools of addresses; see [WithAddressPools]. The IPv6 one is a unique
// local prefix (RFC 4193).
var (
	DefaultPool4 = netip.MustParsePrefix("10.96.0.0/12")
	DefaultPool6 = netip.MustParsePrefix("fd6f:7263:6800::/48")
)

// WithAddressPools sets where networks without subnets of their own take them
// from, and all networks the virtual addresses of their services: an IPv4
// prefix of at most 18 bits, of which a network takes 19, and an IPv6 prefix of
// at most 62 bits, of which it takes 63. Nothing outside the fleet may use
// addresses of the pools.
func WithAddressPools(v4, v6 netip.Prefix) Option {
	return func(o *options) { o.ranges = ranges{v4, v6} }
}

// ranges chooses the address ranges of networks.
type ranges struct{ v4, v6 netip.Prefix }

// A network's block is cut in halves: the lower for tasks, the upper for
// virtual addresses. A /20 holds 4093 tasks; of the upper IPv6 half, 65,534
// addresses are enough.
const (
	block4, half4           = 19, 20
	block6, half6, virtual6 = 63, 64, 112
)

// choose fills in the ranges of rec that are not set, none of them overlapping
// one of taken.
func (r ranges) choose(rec *record.Network, taken map[string]record.Network) error {
	if len(rec.Virtual) > 0 {
		return nil
	}
	if !r.v4.IsValid() {
		r.v4 = DefaultPool4
	}
	if !r.v6.IsValid() {
		r.v6 = DefaultPool6
	}
	used := append([]netip.Prefix(nil), rec.Subnets...)
	for name, n := range taken {
		if name != rec.Name {
			used = append(append(used, n.Subnets...), n.Virtual...)
		}
	}
	chosen := len(rec.Subnets) == 0
	want4, want6 := chosen, chosen
	for _, s := range rec.Subnets {
		want4, want6 = want4 || s.Addr().Is4(), want6 || s.Addr().Is6()
	}
	if want4 {
		subnet, virtual, err := free(r.v4, block4, half4, used)
		if err != nil {
			return err
		}
		if chosen {
			rec.Subnets = append(rec.Subnets, subnet)
		}
		rec.Virtual = append(rec.Virtual, virtual)
	}
	if want6 {
		subnet, virtual, err := free(r.v6, block6, half6, used)
		if err != nil {
			return err
		}
		if chosen {
			rec.Subnets = append(rec.Subnets, subnet)
		}
		rec.Virtual = append(rec.Virtual, netip.PrefixFrom(virtual.Addr(), virtual6))
	}
	return nil
}

// free returns the halves of the first block of pool that overlaps nothing
// used.
func free(pool netip.Prefix, blockBits, halfBits int, used []netip.Prefix) (lower, upper netip.Prefix, err error) {
	for addr := pool.Masked().Addr(); pool.Contains(addr); {
		block := netip.PrefixFrom(addr, blockBits)
		clash := false
		for _, u := range used {
			clash = clash || u.Overlaps(block)
		}
		lower = netip.PrefixFrom(addr, halfBits)
		upper = netip.PrefixFrom(after(lower), halfBits)
		if !clash {
			return lower, upper, nil
		}
		addr = after(block)
	}
	return lower, upper, fmt.Errorf("no block of %d bits is left in the address pool %v; remove a network or give a larger pool", blockBits, pool)
}

// after is the first address behind a prefix.
func after(p netip.Prefix) netip.Addr {
	bytes := p.Masked().Addr().AsSlice()
	// Add one at the prefix's last bit, and carry.
	i := (p.Bits() - 1) / 8
	add := 1 << (7 - (p.Bits()-1)%8)
	for ; i >= 0 && add > 0; i-- {
		sum := int(bytes[i]) + add
		bytes[i] = byte(sum)
		add = sum >> 8
	}
	a, _ := netip.AddrFromSlice(bytes)
	return a
}
