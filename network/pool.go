package network

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"sync"
)

// windowBits bounds the part of a prefix that a Pool hands addresses out of
// by itself, so that the bitmap of an IPv6 /64 is 128 KiB at most.
const windowBits = 20

// Pool hands out the addresses of one prefix, each to one holder at a time.
//
// It never hands out the network address, the gateway's (the first usable
// one) and, for IPv4, the broadcast address. Allocation is next-fit: it goes
// on after the last address handed out, so that one just freed is the last to
// come round again and a peer's stale connection does not meet a stranger.
// Of a prefix with more than a million addresses only the first million are
// handed out; [Pool.Claim] takes any.
//
// A Pool is plain memory; whoever must survive a restart writes down what it
// took and claims it again. It is safe for concurrent use.
type Pool struct {
	prefix netip.Prefix
	size   uint64 // addresses in the window, by offset from the network address

	mu     sync.Mutex // guards what follows
	taken  []uint64   // bitmap of the window
	inUse  int        // addresses held, in and beyond the window
	next   uint64     // where the search goes on
	beyond map[netip.Addr]struct{}
}

// AddressError is an address that cannot be had.
type AddressError struct {
	Address netip.Addr
	Prefix  netip.Prefix
	Reason  string
	// Taken is true where the address is another holder's, and so may be
	// free later.
	Taken bool
}

func (e *AddressError) Error() string {
	return fmt.Sprintf("address %s of %s: %s", e.Address, e.Prefix, e.Reason)
}

// NewPool returns a pool of all usable addresses of a prefix. One too small
// to hold a gateway and one more address (an IPv4 /31, an IPv6 /127) is a
// [*ConfigError].
func NewPool(prefix netip.Prefix) (*Pool, error) {
	if err := checkPrefix(prefix); err != nil {
		return nil, err
	}
	prefix = prefix.Masked()
	hostBits := prefix.Addr().BitLen() - prefix.Bits()
	p := &Pool{prefix: prefix, size: 1 << min(hostBits, windowBits), next: 2}
	p.taken = make([]uint64, (p.size+63)/64)
	p.mark(0) // the network address
	p.mark(1) // the gateway
	if prefix.Addr().Is4() && hostBits <= windowBits {
		p.mark(p.size - 1) // broadcast
	}
	if p.size < 64 {
		p.taken[0] |= ^uint64(0) << p.size // what is no address at all
	}
	return p, nil
}

// checkPrefix says whether a pool can be made of a prefix.
func checkPrefix(prefix netip.Prefix) error {
	switch {
	case !prefix.IsValid():
		return &ConfigError{Field: "subnets", Reason: "is not a valid prefix, such as 10.1.0.0/24"}
	case prefix.Addr().Is4In6():
		return &ConfigError{Field: "subnets", Reason: fmt.Sprintf("%s is an IPv4-mapped prefix; write it as IPv4", prefix)}
	case prefix.Addr().BitLen()-prefix.Bits() < 2:
		return &ConfigError{Field: "subnets", Reason: fmt.Sprintf("%s is too small for a gateway and a task; use a /30 (IPv6: /126) or wider", prefix)}
	case prefix.Addr().IsLoopback() || prefix.Addr().IsMulticast() || prefix.Masked().Addr().IsUnspecified():
		return &ConfigError{Field: "subnets", Reason: fmt.Sprintf("%s is no range of unicast addresses; use a private one such as 10.1.0.0/24 or fd00:1::/64", prefix)}
	}
	return nil
}

// Prefix returns the range the pool was made of.
func (p *Pool) Prefix() netip.Prefix { return p.prefix }

// Take hands out a free address, or [ErrExhausted].
func (p *Pool) Take() (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	offset, ok := p.search(p.next, p.size)
	if !ok {
		offset, ok = p.search(0, p.next)
	}
	if !ok {
		return netip.Addr{}, fmt.Errorf("%s: %w", p.prefix, ErrExhausted)
	}
	p.mark(offset)
	p.inUse++
	p.next = offset + 1
	return p.at(offset), nil
}

// Claim takes one address, wherever it lies in the prefix, or says in an
// [*AddressError] why it cannot.
func (p *Pool) Claim(addr netip.Addr) error {
	if err := p.usable(addr); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.holds(addr) {
		return &AddressError{Address: addr, Prefix: p.prefix, Reason: "is taken; ask for another or for none", Taken: true}
	}
	if offset, ok := p.offset(addr); ok {
		p.mark(offset)
	} else {
		if p.beyond == nil {
			p.beyond = make(map[netip.Addr]struct{})
		}
		p.beyond[addr] = struct{}{}
	}
	p.inUse++
	return nil
}

// Free gives an address back. One that is not held, or never is, is ignored.
func (p *Pool) Free(addr netip.Addr) {
	if p.usable(addr) != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.holds(addr) {
		return
	}
	if offset, ok := p.offset(addr); ok {
		p.taken[offset/64] &^= 1 << (offset % 64)
	} else {
		delete(p.beyond, addr)
	}
	p.inUse--
}

// Resume makes the next search begin after addr: what a restarted program
// calls with the address it handed out last, so that next-fit goes on.
func (p *Pool) Resume(addr netip.Addr) {
	if p.usable(addr) != nil {
		return
	}
	if offset, ok := p.offset(addr); ok {
		p.mu.Lock()
		p.next = offset + 1
		p.mu.Unlock()
	}
}

// InUse returns how many addresses are held.
func (p *Pool) InUse() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inUse
}

// usable says why addr can never be handed out, if so.
func (p *Pool) usable(addr netip.Addr) error {
	reason := ""
	switch {
	case !addr.IsValid() || addr.Zone() != "" || !p.prefix.Contains(addr):
		reason = "is not in the prefix"
	case addr == p.prefix.Addr():
		reason = "is the network's own address"
	case addr == p.prefix.Addr().Next():
		reason = "is the gateway's"
	case addr.Is4() && addr == Broadcast(p.prefix):
		reason = "is the broadcast address"
	default:
		return nil
	}
	return &AddressError{Address: addr, Prefix: p.prefix, Reason: reason}
}

// Broadcast returns the last address of a prefix: for IPv4 the broadcast
// address.
func Broadcast(prefix netip.Prefix) netip.Addr {
	b := prefix.Masked().Addr().AsSlice()
	for i := prefix.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// search returns the first free offset in [from, to).
func (p *Pool) search(from, to uint64) (uint64, bool) {
	for i := from; i < to; {
		free := ^p.taken[i/64] >> (i % 64)
		if free != 0 {
			found := i + uint64(bits.TrailingZeros64(free))
			return found, found < to
		}
		i = (i/64 + 1) * 64
	}
	return 0, false
}

func (p *Pool) mark(offset uint64) { p.taken[offset/64] |= 1 << (offset % 64) }

func (p *Pool) holds(addr netip.Addr) bool {
	if offset, ok := p.offset(addr); ok {
		return p.taken[offset/64]&(1<<(offset%64)) != 0
	}
	_, ok := p.beyond[addr]
	return ok
}

// at returns the address at an offset of the window. The window is never
// wider than the low 64 bits, and the prefix has zeros where the offset goes.
func (p *Pool) at(offset uint64) netip.Addr {
	b := p.prefix.Addr().As16()
	low := binary.BigEndian.Uint64(b[8:]) + offset
	binary.BigEndian.PutUint64(b[8:], low)
	addr := netip.AddrFrom16(b)
	if p.prefix.Addr().Is4() {
		addr = addr.Unmap()
	}
	return addr
}

// offset returns where in the window an address of the prefix lies.
func (p *Pool) offset(addr netip.Addr) (uint64, bool) {
	a, base := addr.As16(), p.prefix.Addr().As16()
	if binary.BigEndian.Uint64(a[:8]) != binary.BigEndian.Uint64(base[:8]) {
		return 0, false
	}
	offset := binary.BigEndian.Uint64(a[8:]) - binary.BigEndian.Uint64(base[8:])
	return offset, offset < p.size
}
