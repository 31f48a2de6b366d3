package network

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Validate says in a [*ConfigError] what is wrong with a network, if
// anything. Every driver calls it before it changes anything.
func (n Network) Validate() error {
	wrong := func(field, format string, args ...any) error {
		return &ConfigError{Network: n.Name, Field: field, Reason: fmt.Sprintf(format, args...)}
	}
	if n.Name == "" || len(n.Name) > 255 {
		return wrong("name", "has %d characters; use 1 to 255", len(n.Name))
	}
	if len(n.Subnets) == 0 {
		return wrong("subnets", "is empty; give one IPv4 prefix, one IPv6 prefix, or both")
	}
	families := map[bool]netip.Prefix{}
	for _, p := range n.Subnets {
		if err := checkPrefix(p); err != nil {
			err.(*ConfigError).Network = n.Name
			return err
		}
		if other, twice := families[p.Addr().Is4()]; twice {
			return wrong("subnets", "%s and %s are of one family; give one of each at most", other, p)
		}
		families[p.Addr().Is4()] = p
	}
	for i, v := range n.Virtual {
		if !v.IsValid() || v.Addr().Is4In6() || v.Addr().IsMulticast() || v.Addr().IsLoopback() {
			return wrong("virtual", "%s is no range of unicast addresses", v)
		}
		for _, p := range slices.Concat(n.Subnets, n.Whole, n.Virtual[:i]) {
			if v.Overlaps(p) {
				return wrong("virtual", "%s overlaps %s; choose a range of its own", v, p)
			}
		}
	}
	for _, p := range n.Subnets {
		if len(n.Whole) > 0 && !slices.ContainsFunc(n.Whole, func(w netip.Prefix) bool { return w.Bits() <= p.Bits() && w.Contains(p.Addr()) }) {
			return wrong("whole", "does not hold %s, which is this node's part of it", p)
		}
	}
	// RFC 791 and RFC 8200 give the least MTUs.
	least := 68
	if _, v6 := families[false]; v6 {
		least = 1280
	}
	if n.MTU != 0 && (n.MTU < least || n.MTU > 65535) {
		return wrong("mtu", "is %d; use 0 or %d to 65535", n.MTU, least)
	}
	return nil
}

// Validate says in a [*ConfigError] what is wrong with an attachment by
// itself, if anything.
func (a Attachment) Validate() error {
	wrong := func(field, format string, args ...any) error {
		return &ConfigError{Network: a.Network, Field: field, Reason: fmt.Sprintf(format, args...)}
	}
	switch {
	case a.Network == "":
		return wrong("network", "is empty; name one")
	case a.Task == "":
		return wrong("task", "is empty; give the task's ID")
	case a.Namespace == "":
		return wrong("namespace", "is empty; give the path that Namespaces.Create returned")
	// IFNAMSIZ is 16 with the closing zero.
	case a.Interface == "" || len(a.Interface) > 15:
		return wrong("interface", "has %d characters; use 1 to 15", len(a.Interface))
	}
	for _, c := range a.Interface {
		if c <= ' ' || c == '/' || c == ':' || c > '~' {
			return wrong("interface", "%q is no name for an interface; use one like eth0", a.Interface)
		}
	}
	if a.Interface == "." || a.Interface == ".." || a.Interface == "lo" {
		return wrong("interface", "%q is not free; use one like eth0", a.Interface)
	}
	return nil
}

// Split sorts the addresses that an attachment asks for to the subnets they
// are of: one address for each subnet, the zero Addr where any will do. An
// address outside all subnets, or a second one in the same, is a
// [*ConfigError].
func (n Network) Split(addresses []netip.Addr) ([]netip.Addr, error) {
	wanted := make([]netip.Addr, len(n.Subnets))
	for _, a := range addresses {
		a = a.Unmap()
		i := slices.IndexFunc(n.Subnets, func(p netip.Prefix) bool { return p.Contains(a) })
		if i < 0 {
			return nil, &ConfigError{Network: n.Name, Field: "addresses", Reason: fmt.Sprintf("%s is in none of the subnets %v", a, n.Subnets)}
		}
		if wanted[i].IsValid() && wanted[i] != a {
			return nil, &ConfigError{Network: n.Name, Field: "addresses", Reason: fmt.Sprintf("%s and %s are both of %s; ask for one", wanted[i], a, n.Subnets[i])}
		}
		wanted[i] = a
	}
	return wanted, nil
}

// Overlaps says in a [*ConfigError] which of the other networks shares
// addresses with n, if one does. The network's own earlier self, of the same
// name, does not count.
func (n Network) Overlaps(others []Network) error {
	for _, other := range others {
		if other.Name == n.Name {
			continue
		}
		for _, mine := range slices.Concat(n.Subnets, n.Whole, n.Virtual) {
			for _, theirs := range slices.Concat(other.Subnets, other.Whole, other.Virtual) {
				if mine.Overlaps(theirs) {
					return &ConfigError{Network: n.Name, Field: "subnets", Reason: fmt.Sprintf("%s overlaps %s of network %q; choose another range", mine, theirs, other.Name)}
				}
			}
		}
	}
	return nil
}

// Changes says in a [*ConfigError] which change from old to n breaks what is
// attached, if one does: another subnet does, anything else does not.
func (n Network) Changes(old Network) error {
	if !slices.Equal(masked(n.Subnets), masked(old.Subnets)) {
		return &ConfigError{Network: n.Name, Field: "subnets", Reason: fmt.Sprintf("cannot change from %v to %v while tasks are attached; remove the network first", old.Subnets, n.Subnets)}
	}
	return nil
}

func masked(prefixes []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		out = append(out, p.Masked())
	}
	return out
}

// IsTaken reports whether err is about an address that another task has.
func IsTaken(err error) bool {
	var a *AddressError
	return errors.As(err, &a) && a.Taken
}

// SortAttachments sorts by network, task and interface, the order in which
// drivers list them.
func SortAttachments(all []Attachment) {
	slices.SortFunc(all, func(a, b Attachment) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.Task, b.Task), cmp.Compare(a.Interface, b.Interface))
	})
}

// ValidateNamespace says in a [*ConfigError] what is wrong with the ID of a
// namespace or its sysctls: an ID is a file name of at most 200 characters,
// and only sysctls under net. belong to a network namespace.
func ValidateNamespace(id string, sysctls map[string]string) error {
	wrong := func(field, format string, args ...any) error {
		return &ConfigError{Field: field, Reason: fmt.Sprintf(format, args...)}
	}
	if id == "" || len(id) > 200 || id[0] == '.' || strings.ContainsAny(id, "/\x00") {
		return wrong("namespace", "%q is no name for a file; use 1 to 200 characters without a slash, not beginning with a dot", id)
	}
	for name := range sysctls {
		rest, ok := strings.CutPrefix(strings.ReplaceAll(name, "/", "."), "net.")
		if !ok || rest == "" || strings.Contains(name, "..") || strings.ContainsAny(name, "\x00") {
			return wrong("sysctls", "%q does not belong to a network namespace; use one such as net.core.somaxconn", name)
		}
	}
	return nil
}
