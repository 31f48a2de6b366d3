//go:build linux

package fastpath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network/internal/conntrack"
)

// Whatever comes, a program leaves it as it came, or does what the model does.
func FuzzPrograms(f *testing.F) {
	all := trips()
	for i, r := range all {
		f.Add(uint8(i), r.packet().bytes())
	}
	p := all[0].packet()
	p.payload, p.tail = nil, make([]byte, 6)
	f.Add(uint8(0), p.bytes())
	labs := []*lab{newLab(f, false), newLab(f, true)}
	for _, l := range labs {
		for _, r := range all {
			l.know(r.sent, r.goes, 0)
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, frame []byte) {
		r := all[int(which)%len(all)] // it says by which interface the frame comes
		if len(frame) > 3000 {
			return // the kernel takes no larger ones for a test
		}
		for _, l := range labs {
			l.TB = t
			action, got, err := r.show(l, frame, 0)
			if errors.Is(err, unix.EINVAL) && len(frame) < 14+40 {
				return // nor those without headers
			}
			check(t, err)
			of, want, ends := model(l, all, r.in, frame)
			if ends {
				k := keyOf(l.port, of.sent)
				if of.in {
					k = keyOf(0, of.goes.Back())
				}
				if _, ok := l.known(k); ok {
					t.Errorf("%x does not end the flow of %s", frame, of.name)
				}
				l.know(of.sent, of.goes, 0)
			}
			if want == nil {
				if action != actUnspecified || !bytes.Equal(got, frame) {
					t.Errorf("the program said %d and made of\n%x\n%x, want %d and no change", int32(action), frame, got, actUnspecified-1<<32)
				}
				continue
			}
			if of.vxlan && !of.in {
				tos := want[15]
				if want[14]>>4 == 6 {
					tos = want[14]<<4 | want[15]>>4
				}
				if want, err = l.wrapped(want, tos, got); err != nil {
					t.Fatalf("of %s the program said %d and made of\n%x\n%x: %v", of.name, int32(action), frame, got, err)
				}
			}
			if action != actRedirect || !bytes.Equal(got, want) {
				t.Errorf("the program said %d and made of\n%x\n%x, want %d and\n%x", int32(action), frame, got, actRedirect, want)
			}
		}
	})
}

// model says of which trip a frame is, and what becomes of it before VXLAN is put
// around: nil if it goes the slow way, on which it may also end the flow.
func model(l *lab, all []trip, in bool, frame []byte) (of trip, out []byte, ends bool) {
	if len(frame) < 14 || in && [6]byte(frame) != macUplink {
		return of, nil, false
	}
	out = slices.Clone(frame)
	ip, sums, at := out[14:], -1, 0 // sums is where the header's checksum is
	var t conntrack.Tuple
	var src, dst []byte
	var hops *byte
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		if len(ip) < 20 || ip[0] != 0x45 || binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
			return of, nil, false
		}
		t.Protocol, src, dst, hops, sums, at = ip[9], ip[12:16], ip[16:20], &ip[8], 10, 20
	case unix.ETH_P_IPV6:
		if len(ip) < 40 || ip[0]>>4 != 6 {
			return of, nil, false
		}
		t.Protocol, src, dst, hops, at = ip[6], ip[8:24], ip[24:40], &ip[7], 40
	default:
		return of, nil, false
	}
	seg := ip[at:]
	sum := 16
	switch {
	case t.Protocol == unix.IPPROTO_TCP && len(seg) >= 20:
	case t.Protocol == unix.IPPROTO_UDP && len(seg) >= 8:
		sum = 6
	default:
		return of, nil, false
	}
	from, _ := netip.AddrFromSlice(src)
	to, _ := netip.AddrFromSlice(dst)
	t.Src, t.Dst = netip.AddrPortFrom(from, binary.BigEndian.Uint16(seg)), netip.AddrPortFrom(to, binary.BigEndian.Uint16(seg[2:]))
	i := slices.IndexFunc(all, func(r trip) bool { return r.in == in && (in && t == r.goes.Back() || !in && t == r.sent) })
	if *hops <= 1 || i < 0 {
		return of, nil, false
	}
	of = all[i]
	if t.Protocol == unix.IPPROTO_TCP && seg[13]&(syn|fin|rst) != 0 {
		return of, nil, true
	}
	most := 1500
	if of.vxlan {
		most -= l.room
	}
	if !in && len(ip) > most {
		return of, nil, false
	}
	before, addresses := add(ip[:at]), add(src)+add(dst)+add(seg[:4])
	*hops--
	is, mac, source := of.goes, macWire, macUplink
	switch {
	case in:
		is, mac, source = of.sent.Back(), macTask, macBridge
	case of.vxlan:
		mac, source = macFar, macVXLAN
	}
	copy(out, mac[:])
	copy(out[6:], source[:])
	if is != t {
		copy(src, is.Src.Addr().AsSlice())
		copy(dst, is.Dst.Addr().AsSlice())
		binary.BigEndian.PutUint16(seg, is.Src.Port())
		binary.BigEndian.PutUint16(seg[2:], is.Dst.Port())
		udp := t.Protocol == unix.IPPROTO_UDP
		if !udp || binary.BigEndian.Uint16(seg[sum:]) != 0 {
			keep(seg[sum:], addresses, add(src)+add(dst)+add(seg[:4]), udp)
		}
	}
	if sums >= 0 {
		keep(ip[sums:], before, add(ip[:at]), false)
	}
	return of, out, false
}

// keep has a checksum as right or wrong as it was when the sum of what it is over
// was another.
func keep(check []byte, before, after uint64, udp bool) {
	sum := (uint64(binary.BigEndian.Uint16(check)) + before%0xffff + 0xffff - after%0xffff) % 0xffff
	if sum == 0 && udp {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(check, uint16(sum))
}
