package record

import "net/netip"

// SharedHost reports whether two addresses of a node that ports are published on,
// however they are spelled, have one in common. One that is empty means all; "0.0.0.0"
// and "::" mean all of their family.
func SharedHost(a, b string) bool {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	if errX != nil || errY != nil {
		return true
	}
	x, y = x.Unmap(), y.Unmap()
	return x == y || x.Is4() == y.Is4() && (x.IsUnspecified() || y.IsUnspecified())
}
