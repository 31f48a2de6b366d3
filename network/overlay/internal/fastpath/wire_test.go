//go:build linux

package fastpath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network/internal/conntrack"
)

// tap is a socket for the frames of an interface.
type tap struct {
	testing.TB
	file *os.File
}

func (s *space) tap(t testing.TB, name string) *tap {
	t.Helper()
	var file *os.File
	check(t, s.do(func() error {
		link, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL})
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), name)
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}),
		)
	}))
	t.Cleanup(func() { _ = file.Close() })
	return &tap{t, file}
}

// vnet is struct virtio_net_hdr of linux/virtio_net.h.
type vnet struct {
	Flags, GSO                            uint8
	Headers, Size, ChecksumAt, ChecksumBy uint16
}

const vnetLength = 10

// send sends a frame by the interface.
func (p *tap) send(h vnet, frame []byte) {
	p.Helper()
	data, err := binary.Append(nil, binary.NativeEndian, h)
	check(p, err)
	_, err = p.file.Write(append(data, frame...))
	check(p, err)
}

// next returns the next frame that has the mark in it, as it would be on a wire.
// There are others: kernels look for each other.
func (p *tap) next(mark []byte) []byte {
	p.Helper()
	b := make([]byte, 1<<17)
	for {
		n, err := p.file.Read(b)
		if err != nil {
			p.Fatalf("no frame with %q comes by %s: %v", mark, p.file.Name(), err)
		}
		if frame := b[vnetLength:n]; bytes.Contains(frame, mark) {
			var h vnet
			_, err := binary.Decode(b[:vnetLength], binary.NativeEndian, &h)
			check(p, err)
			if h.Flags&1 != 0 { // the interface would sum up the rest
				binary.BigEndian.PutUint16(frame[h.ChecksumAt+h.ChecksumBy:], ^fold(add(frame[h.ChecksumAt:])))
			}
			return slices.Clone(frame)
		}
	}
}

// What programs make of packets gets where it is to be, and the other node's
// kernel takes it for VXLAN.
func TestWire(t *testing.T) {
	for _, underlay := range []string{"IPv4", "IPv6"} {
		t.Run("underlay of "+underlay, func(t *testing.T) {
			l := newLab(t, underlay == "IPv6")
			task, wire, far := l.task.tap(t, "eth0"), l.peer.tap(t, "wire"), l.peer.tap(t, "vx")
			for _, r := range trips() {
				l.know(r.sent, r.goes, 0)
				p := r.packet()
				p.payload = []byte(r.name)
				from, to := task, wire
				if r.in {
					from, to = wire, task
				}
				from.send(vnet{}, p.bytes())
				got := to.next(p.payload)
				want, err := r.passed(l, p, got)
				check(t, err)
				if !bytes.Equal(got, want) {
					t.Errorf("%s: there came\n%x, want\n%x", r.name, got, want)
				}
				if !r.vxlan {
					continue
				}
				if got, want = far.next(p.payload), want[l.room:]; !bytes.Equal(got, want) {
					t.Errorf("%s: of VXLAN there came\n%x, want\n%x", r.name, got, want)
				}
			}
			s, err := l.p.Stats()
			check(t, err)
			if n := uint64(len(trips())); s.Sent != n*2/3 || s.Received != n/3 {
				t.Errorf("%d packets are counted from the task and %d to it, want %d and %d", s.Sent, s.Received, n*2/3, n/3)
			}
		})
	}
}

// A large packet of many segments is one until it leaves by an interface that
// takes it apart; each segment is then as if it had come alone.
func TestWireSegments(t *testing.T) {
	for _, underlay := range []string{"IPv4", "IPv6"} {
		t.Run("underlay of "+underlay, func(t *testing.T) {
			l := newLab(t, underlay == "IPv6")
			up, err := l.node.links.LinkByIndex(l.uplink)
			check(t, err)
			check(t, l.node.links.LinkSetGSOMaxSize(up, 2000))
			task, wire := l.task.tap(t, "eth0"), l.peer.tap(t, "wire")
			for _, r := range trips() {
				if r.in || r.sent.Protocol != unix.IPPROTO_TCP {
					continue
				}
				l.know(r.sent, r.goes, 0)
				const size = 1200
				mark := []byte("many")
				p := r.packet()
				p.payload = bytes.Repeat(mark, (2*size+100)/len(mark))
				large := p.bytes()
				at := len(large) - len(p.payload) - 20
				h := vnet{Flags: 1, GSO: 1, Headers: uint16(at + 20), Size: size, ChecksumAt: uint16(at), ChecksumBy: 16}
				if p.Src.Addr().Is6() {
					h.GSO = 4
				}
				// The rest of the sum is for whoever takes it apart.
				binary.BigEndian.PutUint16(large[at+16:], fold(pseudo(p.Src.Addr(), p.Dst.Addr(), p.Protocol, 20+len(p.payload))))
				task.send(h, large)
				for i := range 3 {
					s := p
					s.payload = p.payload[i*size : min((i+1)*size, len(p.payload))]
					s.sequence += uint32(i * size)
					s.id += uint16(i)
					got := wire.next(mark)
					want, err := r.passed(l, s, got)
					check(t, err)
					if !bytes.Equal(got, want) {
						t.Errorf("%s: segment %d is\n%x, want\n%x", r.name, i, got, want)
					}
				}
			}
		})
	}
}

// A packet in a VLAN is not of the flow that is known without one: the bridge takes
// it to where it wants.
func TestWireVLAN(t *testing.T) {
	l := newLab(t, false)
	l.node.veth(t, "other", [6]byte{2, 0, 0, 0, 0, 8}, l.peer, "other", [6]byte{2, 0, 0, 0, 0, 9})
	l.peer.up(t, "other")
	for _, index := range []int{l.port, l.node.up(t, "other")} {
		check(t, l.node.links.LinkSetMasterByIndex(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, l.bridge))
	}
	task, other := l.task.tap(t, "eth0"), l.peer.tap(t, "other")
	for _, r := range trips() {
		if r.in {
			continue
		}
		l.know(r.sent, r.goes, 0)
		p := r.packet()
		p.toMAC, p.payload = [6]byte{2, 0, 0, 0, 0, 9}, []byte(r.name)
		frame := p.bytes()
		task.send(vnet{}, slices.Concat(frame[:12], []byte{0x81, 0, 0, 5}, frame[12:]))
		if got := other.next(p.payload); !bytes.Equal(got, frame) { // the tag is not in what a tap shows
			t.Errorf("%s: there came\n%x, want\n%x", r.name, got, frame)
		}
	}
}

// A task has a tunnel of its own. Of what is in a tunnel already, and not summed up
// yet, the kernel puts no second one around for a program; by its own way it does.
func TestWireTunnelOfATask(t *testing.T) {
	for _, underlay := range []string{"IPv4", "IPv6"} {
		t.Run("underlay of "+underlay, func(t *testing.T) {
			l := newLab(t, underlay == "IPv6")
			eth := l.task.up(t, "eth0")
			l.task.route(t, eth, "10.0.0.0/8", "10.1.0.1")
			l.task.neighbour(t, eth, "10.1.0.1", macPort)
			// One port, so that answers are of the same flow.
			check(t, l.task.links.LinkAdd(&netlink.Vxlan{
				LinkAttrs: netlink.LinkAttrs{Name: "own", MTU: 1000}, VxlanId: 1, Port: 4789, PortLow: 4789, PortHigh: 4790,
				SrcAddr: net.IPv4(10, 1, 0, 2), Group: net.IPv4(10, 3, 0, 9),
			}))
			l.task.up(t, "own")
			own, far := l.task.tap(t, "own"), l.peer.tap(t, "vx")
			sent := tuple(unix.IPPROTO_UDP, "10.1.0.2:4789", "10.3.0.9:4789")
			for _, goes := range []conntrack.Tuple{sent, tuple(unix.IPPROTO_UDP, "10.1.0.2:4789", "10.3.0.9:4790")} {
				l.know(sent, goes, 0)
				inner := packet{toMAC: macFar, fromMAC: macTask, Tuple: tuple(unix.IPPROTO_UDP, "172.16.0.1:1", "172.16.0.2:1"), ttl: 64, payload: []byte("in two tunnels")}
				frame := inner.bytes()
				binary.BigEndian.PutUint16(frame[14+20+6:], fold(pseudo(inner.Src.Addr(), inner.Dst.Addr(), inner.Protocol, 8+len(inner.payload))))
				own.send(vnet{Flags: 1, ChecksumAt: 14 + 20, ChecksumBy: 6}, frame)
				got := far.next(inner.payload)
				want := packet{
					toMAC: macFar, fromMAC: macVXLAN, Tuple: sent, ttl: 63,
					id: binary.BigEndian.Uint16(got[18:]), fragment: binary.BigEndian.Uint16(got[20:]),
					payload: append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, inner.bytes()...),
				}.bytes()
				if !bytes.Equal(got, want) { // the kernel's own way translates nothing: the lab has no table
					t.Errorf("there came\n%x, want\n%x", got, want)
				}
			}
		})
	}
}
