package network

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
)

// Canonical returns rules in one form, so that a Balancer need not think of
// spellings: the protocol filled in, IPv4-mapped addresses as IPv4, endpoints
// of another family than the frontend's left out, the rest sorted and each
// named once. The rules come sorted by frontend. It changes nothing of its
// argument.
//
// A rule that makes no sense is a [*ConfigError]. Two that claim the same frontend are a [*ConflictError];
// a published port on every address claims it on each single one too.
func Canonical(rules []Rule) ([]Rule, error) {
	out := make([]Rule, 0, len(rules))
	for _, r := range rules {
		c, err := r.canonical()
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b Rule) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port),
			a.Address.Compare(b.Address), a.HostIP.Compare(b.HostIP), cmp.Compare(a.Service, b.Service))
	})
	// Only rules of one protocol and port can conflict: they are neighbours.
	for start := 0; start < len(out); {
		end := start + 1
		for end < len(out) && out[end].Protocol == out[start].Protocol && out[end].Port == out[start].Port {
			end++
		}
		if err := conflicts(out[start:end]); err != nil {
			return nil, err
		}
		start = end
	}
	return out, nil
}

// conflicts finds two rules of one protocol and port that claim the same
// address.
func conflicts(rules []Rule) error {
	virtual := map[netip.Addr]Rule{}
	var published []Rule
	for _, r := range rules {
		if !r.Address.IsValid() {
			for _, other := range published {
				if r.overlaps(other) {
					return &ConflictError{Frontend: r.Frontend(), Services: []string{other.Service, r.Service}}
				}
			}
			published = append(published, r)
			continue
		}
		if other, twice := virtual[r.Address]; twice {
			return &ConflictError{Frontend: r.Frontend(), Services: []string{other.Service, r.Service}}
		}
		virtual[r.Address] = r
	}
	for _, r := range published {
		if other, both := virtual[r.HostIP]; both && r.HostIP.IsValid() {
			return &ConflictError{Frontend: r.Frontend(), Services: []string{other.Service, r.Service}}
		}
	}
	return nil
}

// overlaps reports whether two published ports share an address.
func (r Rule) overlaps(other Rule) bool {
	a, b := r.HostIP, other.HostIP
	switch {
	case !a.IsValid() || !b.IsValid():
		return true
	case a.Is4() != b.Is4():
		return false
	default:
		return a == b || a.IsUnspecified() || b.IsUnspecified()
	}
}

// Frontend names what the rule listens on, such as "tcp 10.1.0.9:80", or
// "tcp *:8080" for a port published on every address.
func (r Rule) Frontend() string {
	protocol := cmp.Or(r.Protocol, TCP)
	switch {
	case r.Address.IsValid():
		return string(protocol) + " " + netip.AddrPortFrom(r.Address, r.Port).String()
	case r.HostIP.IsValid():
		return string(protocol) + " " + netip.AddrPortFrom(r.HostIP, r.Port).String()
	default:
		return string(protocol) + " *:" + strconv.Itoa(int(r.Port))
	}
}

// Takes reports whether the rule's frontend has addresses of the family.
func (r Rule) Takes(ipv4 bool) bool {
	if r.Address.IsValid() {
		return r.Address.Is4() == ipv4
	}
	return !r.HostIP.IsValid() || r.HostIP.Is4() == ipv4
}

func (r Rule) canonical() (Rule, error) {
	wrong := func(field, format string, args ...any) (Rule, error) {
		return Rule{}, &ConfigError{Service: r.Service, Field: field, Reason: fmt.Sprintf(format, args...)}
	}
	r.Protocol = cmp.Or(r.Protocol, TCP)
	r.Address, r.HostIP = r.Address.Unmap(), r.HostIP.Unmap()
	switch {
	case r.Protocol != TCP && r.Protocol != UDP:
		return wrong("protocol", "is %q; use tcp or udp", r.Protocol)
	case r.Port == 0:
		return wrong("port", "is 0; use 1 to 65535")
	case r.Address.IsValid() && r.HostIP.IsValid():
		return wrong("host ip", "is %s, but the rule has the virtual address %s; give one of the two", r.HostIP, r.Address)
	case r.Address.IsValid() && (r.Address.IsUnspecified() || r.Address.IsLoopback() || r.Address.IsMulticast() || r.Address.Zone() != ""):
		return wrong("address", "%s cannot be a virtual address; use a unicast one", r.Address)
	case r.HostIP.IsValid() && (r.HostIP.IsMulticast() || r.HostIP.Zone() != ""):
		return wrong("host ip", "%s is no address of a node", r.HostIP)
	}
	endpoints := make([]netip.AddrPort, 0, len(r.Endpoints))
	for _, e := range r.Endpoints {
		addr := e.Addr().Unmap()
		if !addr.IsValid() || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.Zone() != "" || e.Port() == 0 {
			return wrong("endpoints", "%s is no address and port of a task", e)
		}
		if r.Takes(addr.Is4()) {
			endpoints = append(endpoints, netip.AddrPortFrom(addr, e.Port()))
		}
	}
	slices.SortFunc(endpoints, netip.AddrPort.Compare)
	r.Endpoints = slices.Compact(endpoints)
	return r, nil
}
