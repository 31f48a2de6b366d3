//go:build linux

package fastpath

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network/internal/conntrack"
)

// packet is a frame of Ethernet with TCP or UDP, as a test says it. What the zero
// value leaves out is as it usually is.
type packet struct {
	toMAC, fromMAC [6]byte
	conntrack.Tuple
	ttl, tos  uint8
	label     uint32 // of IPv6
	id        uint16 // of IPv4
	fragment  uint16 // its flags and offset
	options   []byte // of IPv4, in words of four bytes
	extension []byte // a header of IPv6 of eight bytes, for the destination
	flags     uint8  // of TCP
	sequence  uint32
	noSum     bool // of UDP
	payload   []byte
	tail      []byte // what Ethernet pads with
}

// Flags of TCP.
const fin, syn, rst, ack = 1, 2, 4, 16

// bytes is the packet with all lengths and checksums.
func (p packet) bytes() []byte {
	var seg []byte
	seg = binary.BigEndian.AppendUint16(seg, p.Src.Port())
	seg = binary.BigEndian.AppendUint16(seg, p.Dst.Port())
	sumAt := 6
	if p.Protocol == unix.IPPROTO_UDP {
		seg = binary.BigEndian.AppendUint16(seg, uint16(8+len(p.payload)))
		seg = append(seg, 0, 0)
	} else {
		seg = binary.BigEndian.AppendUint32(seg, p.sequence)
		seg = binary.BigEndian.AppendUint32(seg, 1)
		seg = append(seg, 5<<4, p.flags, 0x20, 0, 0, 0, 0, 0)
		sumAt = 16
	}
	seg = append(seg, p.payload...)
	if !p.noSum {
		sum := ^fold(pseudo(p.Src.Addr(), p.Dst.Addr(), p.Protocol, len(seg)) + add(seg))
		if sum == 0 && p.Protocol == unix.IPPROTO_UDP {
			sum = 0xffff // 0 would say that there is none
		}
		binary.BigEndian.PutUint16(seg[sumAt:], sum)
	}
	b := append(append([]byte{}, p.toMAC[:]...), p.fromMAC[:]...)
	if p.Src.Addr().Is4() {
		b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
		ip := []byte{0x40 | byte(5+len(p.options)/4), p.tos}
		ip = binary.BigEndian.AppendUint16(ip, uint16(20+len(p.options)+len(seg)))
		ip = binary.BigEndian.AppendUint16(ip, p.id)
		ip = binary.BigEndian.AppendUint16(ip, p.fragment)
		ip = append(ip, p.ttl, p.Protocol, 0, 0)
		ip = append(append(ip, p.Src.Addr().AsSlice()...), p.Dst.Addr().AsSlice()...)
		ip = append(ip, p.options...)
		binary.BigEndian.PutUint16(ip[10:], ^fold(add(ip)))
		b = append(b, ip...)
	} else {
		b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IPV6)
		b = binary.BigEndian.AppendUint32(b, 6<<28|uint32(p.tos)<<20|p.label)
		b = binary.BigEndian.AppendUint16(b, uint16(len(p.extension)+len(seg)))
		next := p.Protocol
		if len(p.extension) > 0 {
			next = unix.IPPROTO_DSTOPTS
		}
		b = append(b, next, p.ttl)
		b = append(append(b, p.Src.Addr().AsSlice()...), p.Dst.Addr().AsSlice()...)
		b = append(b, p.extension...)
	}
	return append(append(b, seg...), p.tail...)
}

// add is the sum of 16-bit words (RFC 1071) before it is folded.
func add(b []byte) (sum uint64) {
	for ; len(b) > 1; b = b[2:] {
		sum += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) > 0 {
		sum += uint64(b[0]) << 8
	}
	return sum
}

func fold(sum uint64) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// pseudo is the sum of what checksums take for a header (RFC 9293, 3.1, RFC 8200,
// 8.1).
func pseudo(src, dst netip.Addr, protocol uint8, length int) uint64 {
	return add(src.AsSlice()) + add(dst.AsSlice()) + uint64(protocol) + uint64(length)
}
