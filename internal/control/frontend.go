package control

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// network is a network with the virtual addresses taken on it.
type network struct {
	rec   *record.Network // nil when there is none
	taken map[netip.Addr]*service
	freed map[netip.Addr]time.Time
}

// rest is how long a virtual address that was freed is not given to another
// service while there are others: who still knows it must not reach a stranger.
const rest = 10 * time.Minute

func (s *State) network(name string) *network {
	if n := s.networks[name]; n != nil {
		return n
	}
	n := &network{taken: map[netip.Addr]*service{}, freed: map[netip.Addr]time.Time{}}
	s.networks[name] = n
	return n
}

func (s *State) changeNetwork(name string, c store.Change) error {
	n := s.network(name)
	n.rec = nil
	if !c.Deleted {
		var rec record.Network
		if err := json.Unmarshal(c.Item.Value, &rec); err != nil {
			return err
		}
		n.rec = &rec
	}
	// Networks change so rarely that nobody keeps an index of their services.
	for _, svc := range s.services {
		if slices.Contains(svc.work.Networks, name) || svc.earlier != nil && slices.Contains(svc.earlier.work.Networks, name) {
			s.mark(svc)
		}
	}
	return nil
}

func (s *State) changeFrontend(key string, c store.Change) error {
	svc, err := s.service(key)
	if err != nil {
		return err
	}
	s.mark(svc)
	s.untake(svc)
	svc.frontend, svc.frontendRaw = nil, nil
	if c.Deleted {
		s.forget(svc)
		return nil
	}
	var rec record.Frontend
	if err := json.Unmarshal(c.Item.Value, &rec); err != nil {
		return err
	}
	svc.frontend, svc.frontendRaw = &rec, c.Item.Value
	s.take(svc, &rec)
	return nil
}

func (s *State) take(svc *service, f *record.Frontend) {
	for name, addrs := range f.Addresses {
		n := s.network(name)
		for _, a := range addrs {
			if n.taken[a] == nil {
				n.taken[a] = svc
			}
			delete(n.freed, a)
		}
	}
}

func (s *State) untake(svc *service) {
	if svc.frontend == nil {
		return
	}
	for name, addrs := range svc.frontend.Addresses {
		n := s.network(name)
		for _, a := range addrs {
			if n.taken[a] == svc {
				delete(n.taken, a)
				n.freed[a] = s.now
			}
		}
	}
}

// blocked says why no task of a service can be started, whatever the scheduler
// thinks. If it is final, waiting does not help.
type blocked struct {
	why     string
	message string
	final   bool
}

// front returns the frontend that svc is to have, nil for none, or what
// prevents it.
func (s *State) front(svc *service, work *Workload, invalid error) (*record.Frontend, *blocked) {
	if invalid != nil {
		return svc.frontend, &blocked{why: record.WhySpec, message: invalid.Error(), final: true}
	}
	if work.Unpinned != "" {
		return svc.frontend, &blocked{why: record.WhyImage, message: work.Unpinned}
	}
	for _, name := range work.Networks {
		if s.network(name).rec == nil {
			return svc.frontend, &blocked{why: record.WhyNetwork, message: fmt.Sprintf("there is no network %q", name)}
		}
	}
	if !work.fronted() {
		return nil, nil
	}
	if r := svc.rollout; r != nil && r.Spec == svc.spec {
		// An address that is free now would be taken for nothing: this spec is
		// not tried again.
		if a := r.Current(); a.State == record.RolloutFailed && a.Reason == record.WhyAddress {
			return svc.frontend, &blocked{why: a.Reason, message: a.Message, final: true}
		}
	}
	f := &record.Frontend{Addresses: map[string][]netip.Addr{}, Ports: work.Ports, Measure: work.MeasureFrontend}
	for _, name := range work.Networks {
		n := s.network(name)
		for _, prefix := range n.rec.Virtual {
			a, ok := n.address(svc, name, prefix, s.now)
			if !ok {
				return svc.frontend, &blocked{why: record.WhyAddress, final: true,
					message: fmt.Sprintf("network %q has no virtual address left in %v: %d are taken", name, prefix, len(n.taken))}
			}
			f.Addresses[name] = append(f.Addresses[name], a)
		}
	}
	return f, nil
}

// address returns the virtual address of svc in prefix: the one it has, or a
// free one.
func (n *network) address(svc *service, name string, prefix netip.Prefix, now time.Time) (netip.Addr, bool) {
	if svc.frontend != nil {
		for _, a := range svc.frontend.Addresses[name] {
			if prefix.Contains(a) && n.taken[a] == svc {
				return a, true
			}
		}
	}
	free := func(a netip.Addr) bool { return n.taken[a] == nil }
	rested := func(a netip.Addr) bool {
		at, ok := n.freed[a]
		return free(a) && (!ok || now.Sub(at) >= rest)
	}
	if a, ok := pick(prefix, svc.key, rested); ok {
		return a, true
	}
	return pick(prefix, svc.key, free)
}

// maxPick bounds how many addresses of a range are used.
const maxPick = 1 << 16

// pick returns an address of prefix that will do. It looks from a place that
// depends on the key, so that an address that becomes free is not the next one
// handed out, and so that no cursor need be remembered. The first address of a
// range, and the last of an IPv4 one, are left alone: some hosts treat them as
// the network's own.
func pick(prefix netip.Prefix, key string, ok func(netip.Addr) bool) (netip.Addr, bool) {
	if !prefix.IsValid() {
		return netip.Addr{}, false
	}
	prefix = prefix.Masked()
	base := prefix.Addr()
	hostBits := base.BitLen() - prefix.Bits()
	first, count := uint64(1), uint64(maxPick)
	switch {
	case hostBits == 0:
		first, count = 0, 1
	case hostBits == 1:
		first, count = 0, 2
	case hostBits <= 16:
		count = 1<<hostBits - 1
		if base.Is4() {
			count--
		}
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(key)) // never fails
	start := h.Sum64() % count
	for i := range count {
		if a := addTo(base, first+(start+i)%count); ok(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// addTo returns the address n after a, whose host bits are zero.
func addTo(a netip.Addr, n uint64) netip.Addr {
	b := a.As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+n)
	if r := netip.AddrFrom16(b); a.Is4() {
		return r.Unmap()
	} else {
		return r
	}
}
