//go:build linux

package fastpath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network/internal/conntrack"
)

// trip is a flow of the lab's task, and the packets that its programs are shown of
// it: those that the task sends, or those that it gets.
type trip struct {
	name       string
	sent, goes conntrack.Tuple
	vxlan, in  bool
}

// trips are all kinds.
func trips() []trip {
	var all []trip
	for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		kind := map[uint8]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP"}[protocol]
		for _, a := range []struct {
			name, task, service string
			direct, vxlan       string
		}{
			{"IPv4", "10.1.0.2:%d", "10.9.0.1:80", "10.2.0.9:%d", "10.3.0.9:%d"},
			{"IPv6", "[fd01::2]:%d", "[fd09::1]:80", "[fd02::9]:%d", "[fd03::9]:%d"},
		} {
			for i, vxlan := range []bool{false, true} {
				to := a.direct
				if vxlan {
					to = a.vxlan
				}
				plain := tuple(protocol, fmt.Sprintf(a.task, 4000+i), fmt.Sprintf(to, 80))
				sent := tuple(protocol, fmt.Sprintf(a.task, 5000+i), a.service)
				goes := tuple(protocol, fmt.Sprintf(a.task, 50000+i), fmt.Sprintf(to, 8080))
				name := fmt.Sprintf("%s by %s", kind, a.name)
				if vxlan {
					name += " by VXLAN"
				}
				for _, in := range []bool{false, true} {
					way := " from the task"
					if in && vxlan {
						continue // the kernel has taken it off, and so it is as by the link
					} else if in {
						way = " to the task"
					}
					all = append(all,
						trip{name + way, plain, plain, vxlan, in},
						trip{name + way + ", translated", sent, goes, vxlan, in})
				}
			}
		}
	}
	return all
}

// packet is the trip's as it comes to the program.
func (r trip) packet() packet {
	p := packet{
		Tuple: r.sent, toMAC: macBridge, fromMAC: macTask, ttl: 64, tos: 0xb8, label: 0x12345, id: 0x1234,
		fragment: 0x4000 /* not to be fragmented */, flags: ack, sequence: 7, payload: []byte("odd length!"),
	}
	if r.in {
		p.Tuple, p.toMAC, p.fromMAC = r.goes.Back(), macUplink, macWire
	}
	return p
}

// passed is what becomes of the packet on the fast path. got is what did.
func (r trip) passed(l *lab, p packet, got []byte) ([]byte, error) {
	p.ttl--
	switch {
	case r.in:
		p.Tuple, p.toMAC, p.fromMAC = r.sent.Back(), macTask, macBridge
		return p.bytes(), nil
	case r.vxlan:
		p.Tuple, p.toMAC, p.fromMAC = r.goes, macFar, macVXLAN
		return l.wrapped(p.bytes(), p.tos, got)
	}
	p.Tuple, p.toMAC, p.fromMAC = r.goes, macWire, macUplink
	return p.bytes(), nil
}

// show shows a program the frame of a trip.
func (r trip) show(l *lab, frame []byte, gso uint32) (uint32, []byte, error) {
	if r.in {
		return l.run(l.p.kernel.FromPeer, l.uplink, frame, gso)
	}
	return l.run(l.p.kernel.FromTask, l.port, frame, gso)
}

func TestPrograms(t *testing.T) {
	const (
		fast    = "passes"
		slow    = "goes the slow way"
		renewed = "goes the slow way, and the next passes"
		ends    = "goes the slow way, and the flow is forgotten"
	)
	tcp := func(r trip) bool { return r.sent.Protocol == unix.IPPROTO_TCP }
	udp := func(r trip) bool { return r.sent.Protocol == unix.IPPROTO_UDP }
	v4 := func(r trip) bool { return r.sent.Src.Addr().Is4() }
	v6 := func(r trip) bool { return r.sent.Src.Addr().Is6() }
	in := func(r trip) bool { return r.in }
	at := func(offset int, value byte) func([]byte) []byte {
		return func(b []byte) []byte { b[offset] = value; return b }
	}
	cases := []struct {
		name  string
		of    func(trip) bool // nil means all
		p     func(*packet)
		frame func([]byte) []byte
		size  func(*lab) int // of IP
		age   time.Duration
		gso   uint32
		want  string
	}{
		{name: "a packet of a flow that is known", want: fast},
		{name: "an empty one", p: func(p *packet) { p.payload = nil }, want: fast},
		{name: "of even length", p: func(p *packet) { p.payload = []byte("even") }, want: fast},
		{name: "with no checksum", of: udp, p: func(p *packet) { p.noSum = true }, want: fast},
		{name: "with all other flags of TCP", of: tcp, p: func(p *packet) { p.flags = 0xff &^ (fin | syn | rst) }, want: fast},
		{name: "that may be fragmented", of: v4, p: func(p *packet) { p.fragment = 0 }, want: fast},
		{name: "that Ethernet has padded", p: func(p *packet) { p.payload, p.tail = nil, make([]byte, 6) }, want: fast},
		{name: "with two hops left", p: func(p *packet) { p.ttl = 2 }, want: fast},
		{name: "with no congestion control", p: func(p *packet) { p.tos = 0 }, want: fast},
		{name: "with congestion control, 1", p: func(p *packet) { p.tos = 0xfd }, want: fast},
		{name: "with congestion control, 0", p: func(p *packet) { p.tos = 0x02 }, want: fast},
		{name: "that has met congestion", p: func(p *packet) { p.tos = 0x07 }, want: fast},
		{name: "as large as the link takes", of: direct, size: func(*lab) int { return 1500 }, want: fast},
		{name: "larger than the link takes", of: direct, size: func(*lab) int { return 1501 }, want: slow},
		{name: "as large as the VXLAN link takes", of: vxlan, size: func(l *lab) int { return 1500 - l.room }, want: fast},
		{name: "larger than the VXLAN link takes", of: vxlan, size: func(l *lab) int { return 1501 - l.room }, want: slow},
		{name: "of segments as large as the link takes", of: and(direct, tcp, v4), size: func(*lab) int { return 3000 }, gso: 1460, want: fast},
		{name: "of segments larger than the link takes", of: and(direct, tcp, v4), size: func(*lab) int { return 3000 }, gso: 1461, want: slow},
		{name: "of segments as large as the link takes", of: and(direct, udp, v6), size: func(*lab) int { return 3000 }, gso: 1452, want: fast},
		{name: "of segments larger than the link takes", of: and(direct, udp, v6), size: func(*lab) int { return 3000 }, gso: 1453, want: slow},

		{name: "a packet after some seconds", age: time.Hour + time.Minute, want: renewed},
		{name: "a packet just before that", age: time.Hour - time.Minute, want: fast},
		{name: "a packet after a long while", age: 2*time.Hour + time.Minute, want: ends},
		{name: "a packet just before that", age: 2*time.Hour - time.Minute, want: renewed},
		{name: "one that another processor has seen before", age: -time.Minute, want: fast},
		{name: "the first of a connection", of: tcp, p: func(p *packet) { p.flags = syn }, want: ends},
		{name: "the second of a connection", of: tcp, p: func(p *packet) { p.flags = syn | ack }, want: ends},
		{name: "the last of a connection", of: tcp, p: func(p *packet) { p.flags = fin | ack }, want: ends},
		{name: "a reset", of: tcp, p: func(p *packet) { p.flags = rst }, want: ends},

		{name: "with one hop left", p: func(p *packet) { p.ttl = 1 }, want: slow},
		{name: "with no hop left", p: func(p *packet) { p.ttl = 0 }, want: slow},
		{name: "a first fragment", of: v4, p: func(p *packet) { p.fragment = 0x2000 }, want: slow},
		{name: "a last fragment", of: v4, p: func(p *packet) { p.fragment = 1 }, want: slow},
		{name: "with options", of: v4, p: func(p *packet) { p.options = []byte{1, 1, 1, 1} }, want: slow},
		{name: "with an extension header", of: v6, p: func(p *packet) { p.extension = []byte{p.Protocol, 0, 1, 4, 0, 0, 0, 0} }, want: slow},
		{name: "of another protocol", of: v4, frame: at(23, unix.IPPROTO_SCTP), want: slow},
		{name: "of another protocol", of: v6, frame: at(20, unix.IPPROTO_ICMPV6), want: slow},
		{name: "of another version", frame: at(14, 0x55), want: slow},
		{name: "of a header that is too short", of: v4, frame: at(14, 0x44), want: slow},
		{name: "in a VLAN", frame: func(b []byte) []byte {
			return append(append(append([]byte{}, b[:12]...), 0x81, 0, 0, 1), b[12:]...)
		}, want: slow},
		{name: "not of IP", frame: func(b []byte) []byte { b[12], b[13] = 0x88, 0xb5; return b }, want: slow},
		{name: "that ends in its header of TCP", of: and(tcp, v4), frame: func(b []byte) []byte { return b[:53] }, want: slow},
		{name: "that ends in its header of TCP", of: and(tcp, v6), frame: func(b []byte) []byte { return b[:73] }, want: slow},
		{name: "that ends in its header of UDP", of: and(udp, v4), frame: func(b []byte) []byte { return b[:41] }, want: slow},
		{name: "that ends in its header of UDP", of: and(udp, v6), frame: func(b []byte) []byte { return b[:61] }, want: slow},
		{name: "to another host on the link", of: in, p: func(p *packet) { p.toMAC = macBridge }, want: slow},
		{name: "to all hosts on the link", of: in, p: func(p *packet) { p.toMAC = [6]byte{255, 255, 255, 255, 255, 255} }, want: slow},
		// RFC 4291, errata: they are never on the wire, and the kernel drops them.
		{name: "of IPv6 with addresses of IPv4", of: v4, p: func(p *packet) {
			p.Tuple = conntrack.Tuple{Protocol: p.Protocol, Src: mapped(p.Src), Dst: mapped(p.Dst)}
		}, want: slow},
		{name: "from another port", p: func(p *packet) { p.Src = port(p.Src, 1) }, want: slow},
		{name: "to another port", p: func(p *packet) { p.Dst = port(p.Dst, 1) }, want: slow},
		{name: "of the other direction", p: func(p *packet) { p.Tuple = p.Back() }, want: slow},
	}
	for _, underlay := range []string{"IPv4", "IPv6"} {
		l := newLab(t, underlay == "IPv6")
		for _, r := range trips() {
			for _, c := range cases {
				if c.of != nil && !c.of(r) {
					continue
				}
				t.Run(fmt.Sprintf("underlay of %s/%s/%s", underlay, r.name, c.name), func(t *testing.T) {
					k, back := l.know(r.sent, r.goes, c.age)
					if r.in {
						k = back
					}
					p := r.packet()
					if c.p != nil {
						c.p(&p)
					}
					if c.size != nil {
						p.payload = make([]byte, c.size(l)-len(packet{Tuple: p.Tuple}.bytes())+14)
					}
					frame := p.bytes()
					if c.frame != nil {
						frame = c.frame(frame)
					}
					before, _ := l.known(k)
					action, got, err := r.show(l, frame, c.gso)
					check(t, err)
					if c.want == fast {
						want, err := r.passed(l, p, got)
						check(t, err)
						if action != actRedirect || !bytes.Equal(got, want) {
							t.Errorf("the program said %d and made of\n%x\n%x, want %d and\n%x", int32(action), frame, got, actRedirect, want)
						}
					} else if action != actUnspecified || !bytes.Equal(got, frame) {
						t.Errorf("the program said %d and made of\n%x\n%x, want %d and no change", int32(action), frame, got, actUnspecified-1<<32)
					}
					after, ok := l.known(k)
					if ok == (c.want == ends) {
						t.Errorf("the flow is known: %v, want %v", ok, !ok)
					}
					if renew := int64(after.Checked) > int64(before.Checked); ok && renew != (c.want == renewed) {
						t.Errorf("the flow was checked at %d, before at %d", int64(after.Checked), int64(before.Checked))
					}
					if c.want != renewed {
						return
					}
					if action, _, err = r.show(l, frame, c.gso); err != nil || action != actRedirect {
						t.Errorf("the program said %d about the next packet, %v, want %d", int32(action), err, actRedirect)
					}
				})
			}
		}
	}
}

func and(all ...func(trip) bool) func(trip) bool {
	return func(r trip) bool {
		for _, f := range all {
			if !f(r) {
				return false
			}
		}
		return true
	}
}

func mapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
}

func port(a netip.AddrPort, more uint16) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr(), a.Port()+more)
}

// What VXLAN puts around has to fit the underlay too, which is not always as large
// as it was when the VXLAN link was made.
func TestProgramsUnderlayMTU(t *testing.T) {
	for _, underlay := range []string{"IPv4", "IPv6"} {
		l := newLab(t, underlay == "IPv6")
		up, err := l.node.links.LinkByIndex(l.uplink)
		check(t, err)
		check(t, l.node.links.LinkSetMTU(up, 1400))
		for _, r := range trips() {
			if !r.vxlan {
				continue
			}
			for size, want := range map[int]uint32{1400 - l.room: actRedirect, 1401 - l.room: actUnspecified} {
				l.know(r.sent, r.goes, 0)
				p := r.packet()
				p.payload = make([]byte, size-len(packet{Tuple: p.Tuple}.bytes())+14)
				if action, _, err := r.show(l, p.bytes(), 0); err != nil || action != want {
					t.Errorf("%s on %s: of a packet of %d bytes the program said %d, %v, want %d", r.name, underlay, size, int32(action), err, int32(want))
				}
			}
		}
	}
}

// Checksums near 0, where the sum's two zeros are (RFC 1624), before a packet is
// translated and after.
func TestProgramsSum(t *testing.T) {
	l := newLab(t, false)
	for _, r := range trips() {
		l.know(r.sent, r.goes, 0)
		after := r.goes
		if r.in {
			after = r.sent.Back()
		}
		for _, of := range []conntrack.Tuple{r.packet().Tuple, after} {
			for _, sum := range []uint16{0, 1, 0xfffe, 0xff, 0x100, 0xfeff} {
				p := r.packet()
				at := 16
				if p.Protocol == unix.IPPROTO_UDP {
					at = 6
				}
				p.payload = []byte{0, 0}
				q := p
				q.Tuple = of
				have := q.bytes()[len(q.bytes())-l4Length(p)-2:][at:]
				// What is added to the data is taken from its complement.
				binary.BigEndian.PutUint16(p.payload, fold(uint64(binary.BigEndian.Uint16(have))+uint64(^sum)))
				frame := p.bytes()
				action, got, err := r.show(l, frame, 0)
				check(t, err)
				want, err := r.passed(l, p, got)
				check(t, err)
				if action != actRedirect || !bytes.Equal(got, want) {
					t.Errorf("%s: with the sum %#x the program said %d and made of\n%x\n%x, want %d and\n%x", r.name, sum, int32(action), frame, got, actRedirect, want)
				}
			}
		}
	}
}

// The same for the header's checksum of IPv4, which each hop changes.
func TestProgramsHeaderSum(t *testing.T) {
	l := newLab(t, false)
	for _, r := range trips() {
		if r.sent.Src.Addr().Is6() {
			continue
		}
		l.know(r.sent, r.goes, 0)
		for _, sum := range []uint16{0, 1, 0xff, 0x100, 0xfefe, 0xfeff, 0xff00, 0xfffe} {
			p := r.packet()
			p.id = 0
			have := binary.BigEndian.Uint16(p.bytes()[14+10:])
			p.id = fold(uint64(have) + uint64(^sum))
			frame := p.bytes()
			if got := binary.BigEndian.Uint16(frame[14+10:]); got != sum {
				t.Fatalf("the header's checksum is %#x, want %#x for a test", got, sum)
			}
			action, got, err := r.show(l, frame, 0)
			check(t, err)
			want, err := r.passed(l, p, got)
			check(t, err)
			if action != actRedirect || !bytes.Equal(got, want) {
				t.Errorf("%s: with the header's sum %#x the program said %d and made of\n%x\n%x, want %d and\n%x", r.name, sum, int32(action), frame, got, actRedirect, want)
			}
		}
	}
}

func l4Length(p packet) int {
	if p.Protocol == unix.IPPROTO_UDP {
		return 8
	}
	return 20
}

// With nobody who would learn of changes, all goes the kernel's own way after a
// while, and nothing is forgotten.
func TestAgentAway(t *testing.T) {
	l := newLab(t, false)
	for _, r := range trips() {
		l.know(r.sent, r.goes, 0)
		for _, step := range []struct {
			what   string
			extend func()
			want   uint32
		}{
			{"the agent is there", l.p.extend, actRedirect},
			{"it has been away for too long", func() { check(t, l.p.kernel.Until.Set(uint64(1))) }, actUnspecified},
			{"it is back", l.p.extend, actRedirect},
		} {
			step.extend()
			if action, _, err := r.show(l, r.packet().bytes(), 0); err != nil || action != step.want {
				t.Errorf("%s, %s: the program said %d, %v, want %d", r.name, step.what, int32(action), err, int32(step.want))
			}
		}
	}
}

// A packet does not go the way of another flow, which has the memory of its own by
// now.
func TestFlowIsAnothers(t *testing.T) {
	l := newLab(t, false)
	for _, r := range trips() {
		out, in := l.know(r.sent, r.goes, 0)
		k := out
		if r.in {
			k = in
		}
		f, _ := l.known(k)
		f.Key.FromPort[0] ^= 1
		check(t, l.p.kernel.Flows.Put(k, f))
		if action, _, err := r.show(l, r.packet().bytes(), 0); err != nil || action != actShot {
			t.Errorf("%s: the program said %d, %v, want %d", r.name, int32(action), err, actShot)
		}
	}
}
