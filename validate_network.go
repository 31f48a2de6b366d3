package orchestrate

import (
	"net/netip"
	"reflect"
)

// Validate checks n and returns nil or a [*ValidationError] that names every
// mistake.
func (n Network) Validate() error {
	n = n.WithDefaults()
	var c checks
	c.text(reflect.ValueOf(n))
	c.label("name", n.Name, 32)
	var v4, v6 string
	for i, s := range n.Subnets {
		path := at("subnets", i)
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			c.add(path, s, "is not a range of addresses; write such as \"10.10.0.0/24\" or \"fd00:10::/64\"")
			continue
		case p.Addr().Is4In6():
			c.add(path, s, "is an IPv4 range in the form of IPv6; write it as IPv4")
			continue
		case p.Masked() != p:
			c.add(path, s, "is an address inside a range; write the range, %q", p.Masked())
			continue
		case p.Bits() > p.Addr().BitLen()-2:
			c.add(path, s, "has no room for a gateway and tasks; at most /%d", p.Addr().BitLen()-2)
		case p.Bits() < 4 || p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast():
			c.add(path, s, "cannot be the addresses of tasks; use a private range, such as \"10.10.0.0/24\" (RFC 1918) or \"fd00:10::/64\" (RFC 4193)")
		}
		family, first := "IPv4", &v4
		if p.Addr().Is6() {
			family, first = "IPv6", &v6
		}
		if *first != "" {
			c.add(path, s, "is a second %s range, after %s; a network has at most one of each family", family, *first)
		}
		*first = path
	}
	// RFC 791 and RFC 8200 section 5 say what a host must accept.
	least := 576
	if v6 != "" {
		least = 1280
	}
	if n.MTU != 0 && (n.MTU < least || n.MTU > 65535) {
		c.add("mtu", n.MTU, "is out of range; from %d to 65535, or 0 for the driver's choice", least)
	}
	for _, key := range keysOf(n.Options) {
		if key == "" {
			c.add(atKey("options", key), nil, "has an empty name; name the option")
		}
	}
	if problems := c.sorted(reflect.ValueOf(n)); len(problems) > 0 {
		return &ValidationError{Object: n.object(), Problems: problems}
	}
	return nil
}

func (n Network) object() string {
	if n.Name == "" {
		return "network without a name"
	}
	return "network " + show(n.Name)
}
