//go:build linux

// Package conntrack asks the kernel's connection tracking about flows, and tells
// it a little, by ctnetlink (linux/netfilter/nfnetlink_conntrack.h).
package conntrack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Tuple is one direction of a flow of TCP or UDP.
type Tuple struct {
	Protocol uint8 // unix.IPPROTO_TCP or IPPROTO_UDP
	Src, Dst netip.AddrPort
}

// Back is the same flow's other direction where nothing is translated.
func (t Tuple) Back() Tuple { return Tuple{t.Protocol, t.Dst, t.Src} }

func (t Tuple) valid() bool {
	return (t.Protocol == unix.IPPROTO_TCP || t.Protocol == unix.IPPROTO_UDP) && t.Src.IsValid() && t.Dst.IsValid()
}

// Flow is an entry: what is sent, and what is sent back, as either end sends it.
// Where a flow is translated, the one is not the other's Back.
type Flow struct {
	Original, Reply Tuple
	Status          Status
	Established     bool          // a TCP connection that is open both ways
	Liberal         bool          // a TCP connection that was loosened, now or ever
	Loose           bool          // one that is as Loosen leaves it
	Timeout         time.Duration // for how long it is kept if nothing more is seen

	zone     uint16
	original []byte // its attribute, by which the kernel finds the entry
}

// Status are the bits of enum ip_conntrack_status (linux/netfilter/nf_conntrack_common.h).
type Status uint32

// The bits that something is made of here.
const (
	SeenReply      Status = 1 << 1
	Confirmed      Status = 1 << 3
	SourceNAT      Status = 1 << 4
	DestinationNAT Status = 1 << 5
	SequenceAdjust Status = 1 << 6
	Dying          Status = 1 << 9
	Helper         Status = 1 << 13
)

// Of linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_tcp.h and the enum of
// states of TCP in there.
const (
	msgNew    = 0
	msgGet    = 1
	msgDelete = 2

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaProtoInfo  = 4
	ctaTimeout    = 7
	ctaZone       = 18
	ctaStatusMask = 26

	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaIPv4Src    = 1
	ctaIPv4Dst    = 2
	ctaIPv6Src    = 3
	ctaIPv6Dst    = 4
	ctaProtoNum   = 1
	ctaProtoSrc   = 2
	ctaProtoDst   = 3

	ctaProtoInfoTCP     = 1
	ctaTCPState         = 1
	ctaTCPFlagsOriginal = 4
	ctaTCPFlagsReply    = 5
	tcpEstablished      = 3
	tcpBeLiberal        = 0x08
	tcpUnacknowledged   = 0x10 // data was seen and not what acknowledges it
	tcpMaxAckSet        = 0x20 // what was acknowledged is known
	tcpLoose            = tcpBeLiberal | tcpUnacknowledged | tcpMaxAckSet

	nfgenmsgLength = 4
)

// Conn is a socket to connection tracking, safe for concurrent use.
type Conn struct{ c *netlink.Conn }

// Dial opens a socket in the network namespace of a file descriptor; 0 is the
// program's own.
func Dial(namespace int) (*Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: namespace})
	if err != nil {
		return nil, err
	}
	return &Conn{c}, nil
}

// EstablishedTimeout is for how long a TCP connection without packets is kept in a
// network namespace, as for Dial.
func EstablishedTimeout(namespace int) (time.Duration, error) {
	type result struct {
		text []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		if namespace != 0 {
			runtime.LockOSThread() // and not unlocked: the thread ends here
			r.err = unix.Setns(namespace, unix.CLONE_NEWNET)
		}
		if r.err == nil {
			r.text, r.err = os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established")
		}
		done <- r
	}()
	r := <-done
	if errors.Is(r.err, os.ErrNotExist) {
		return 5 * 24 * time.Hour, nil // the kernel's own choice, once it tracks
	}
	seconds, err := 0, r.err
	if err == nil {
		seconds, err = strconv.Atoi(string(bytes.TrimSpace(r.text)))
	}
	if err != nil {
		return 0, fmt.Errorf("for how long connections are kept: %w", err)
	}
	return time.Duration(seconds) * time.Second, nil
}

// Close closes the socket.
func (c *Conn) Close() error { return c.c.Close() }

// List returns the flows of TCP and UDP whose status has the values of bits. A
// kernel before 5.17 ignores that wish and sends all.
func (c *Conn) List(values, bits Status) ([]Flow, error) {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	if bits != 0 {
		ae.Uint32(ctaStatus, uint32(values))
		ae.Uint32(ctaStatusMask, uint32(bits))
	}
	body, err := ae.Encode()
	if err != nil {
		return nil, err
	}
	msgs, err := c.c.Execute(message(msgGet, netlink.Request|netlink.Dump, unix.AF_UNSPEC, body))
	if err != nil {
		return nil, fmt.Errorf("list flows: %w", err)
	}
	var flows []Flow
	for _, m := range msgs {
		if f, ok := Parse(m.Data); ok {
			flows = append(flows, f)
		}
	}
	return flows, nil
}

// Get returns the flow of which a tuple is one of the two directions. One that is
// not known is unix.ENOENT.
func (c *Conn) Get(t Tuple) (Flow, error) {
	body, err := encode(t)
	if err != nil {
		return Flow{}, err
	}
	// The kernel's answer says that more is to come, and it is the
	// acknowledgement alone that does.
	msgs, err := c.c.Execute(message(msgGet, netlink.Request|netlink.Acknowledge, family(t), body))
	if err != nil {
		return Flow{}, fmt.Errorf("get flow %v: %w", t, err)
	}
	for _, m := range msgs {
		if f, ok := Parse(m.Data); ok {
			return f, nil
		}
	}
	return Flow{}, fmt.Errorf("get flow %v: %w", t, unix.ENOENT)
}

// Delete removes a flow; one that is gone is no error.
func (c *Conn) Delete(f Flow) error {
	body, err := f.name()
	if err == nil {
		_, err = c.c.Execute(message(msgDelete, netlink.Request|netlink.Acknowledge, family(f.Original), body))
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete flow %v: %w", f.Original, err)
	}
	return nil
}

// Loosen prepares a TCP connection for that some of its segments pass elsewhere:
// those that are seen are taken for its own whatever their sequence numbers; so
// are resets; and that data was not seen to arrive does not shorten its time, which
// is timeout from here on. One that is gone, or has ended since it was asked about,
// is unix.ENOENT.
func (c *Conn) Loosen(f Flow, timeout time.Duration) error {
	err := c.change(f, timeout, tcpBeLiberal, tcpLoose)
	var now Flow
	if err == nil {
		now, err = c.Get(f.Original)
	}
	if err == nil && !now.Established {
		// It is not to be kept as one that is open: nothing more may come by it.
		err = errors.Join(c.change(f, min(timeout, ended), 0, 0), unix.ENOENT)
	}
	if err != nil {
		return fmt.Errorf("loosen flow %v: %w", f.Original, err)
	}
	return nil
}

// Doubt takes a TCP connection that was loosened for one whose other end may be gone:
// from here on, and until it is loosened again, it is kept for as long as one with
// data that is not acknowledged, five minutes from its last segment where the
// kernel is not set up otherwise. One that is gone is unix.ENOENT.
func (c *Conn) Doubt(f Flow) error {
	if err := c.change(f, unacknowledged, tcpUnacknowledged, tcpUnacknowledged); err != nil {
		return fmt.Errorf("doubt flow %v: %w", f.Original, err)
	}
	return nil
}

const (
	unacknowledged = 5 * time.Minute
	ended          = 2 * time.Minute // the longest for which the kernel keeps what has ended
)

// change sets for how long a TCP connection is kept, and the flags of both its
// directions that are in mask.
func (c *Conn) change(f Flow, timeout time.Duration, flags, mask byte) error {
	body, err := f.name()
	if err != nil {
		return err
	}
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	ae.Nested(ctaProtoInfo, func(ae *netlink.AttributeEncoder) error {
		ae.Nested(ctaProtoInfoTCP, func(ae *netlink.AttributeEncoder) error {
			ae.Bytes(ctaTCPFlagsOriginal, []byte{flags, mask})
			ae.Bytes(ctaTCPFlagsReply, []byte{flags, mask})
			return nil
		})
		return nil
	})
	ae.Uint32(ctaTimeout, uint32(min(timeout/time.Second, math.MaxInt32)))
	info, err := ae.Encode()
	if err == nil {
		_, err = c.c.Execute(message(msgNew, netlink.Request|netlink.Acknowledge, family(f.Original), append(body, info...)))
	}
	return err
}

func message(kind uint16, flags netlink.HeaderFlags, family uint8, body []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | kind), Flags: flags},
		Data:   append([]byte{family, 0, 0, 0}, body...),
	}
}

func family(t Tuple) uint8 {
	if t.Src.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// name has what the kernel finds a flow by.
func (f Flow) name() ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	ae.Bytes(ctaTupleOrig|netlink.Nested, f.original)
	if f.zone != 0 {
		ae.Uint16(ctaZone, f.zone)
	}
	return ae.Encode()
}

func encode(t Tuple) ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	ae.Nested(ctaTupleOrig, func(ae *netlink.AttributeEncoder) error {
		ae.Nested(ctaTupleIP, func(ae *netlink.AttributeEncoder) error {
			src, dst := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
			if !t.Src.Addr().Is4() {
				src, dst = ctaIPv6Src, ctaIPv6Dst
			}
			ae.Bytes(src, t.Src.Addr().AsSlice())
			ae.Bytes(dst, t.Dst.Addr().AsSlice())
			return nil
		})
		ae.Nested(ctaTupleProto, func(ae *netlink.AttributeEncoder) error {
			ae.Uint8(ctaProtoNum, t.Protocol)
			ae.Uint16(ctaProtoSrc, t.Src.Port())
			ae.Uint16(ctaProtoDst, t.Dst.Port())
			return nil
		})
		return nil
	})
	return ae.Encode()
}

// Parse reads a message about an entry. It reports false for protocols other than
// TCP and UDP, and for what is no such message.
func Parse(data []byte) (Flow, bool) {
	var f Flow
	if len(data) < nfgenmsgLength {
		return f, false
	}
	ad, err := netlink.NewAttributeDecoder(data[nfgenmsgLength:])
	if err != nil {
		return f, false
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch b := ad.Bytes(); ad.Type() {
		case ctaTupleOrig:
			f.original = b
			f.Original = parseTuple(b)
		case ctaTupleReply:
			f.Reply = parseTuple(b)
		case ctaStatus:
			if len(b) == 4 {
				f.Status = Status(binary.BigEndian.Uint32(b))
			}
		case ctaZone:
			if len(b) == 2 {
				f.zone = binary.BigEndian.Uint16(b)
			}
		case ctaTimeout:
			if len(b) == 4 {
				f.Timeout = time.Duration(binary.BigEndian.Uint32(b)) * time.Second
			}
		case ctaProtoInfo:
			f.Established, f.Liberal, f.Loose = parseTCP(b)
		}
	}
	return f, ad.Err() == nil && f.Original.valid() && f.Reply.valid()
}

func parseTCP(data []byte) (established, liberal, loose bool) {
	ad, err := netlink.NewAttributeDecoder(data)
	for err == nil && ad.Next() {
		if ad.Type() != ctaProtoInfoTCP {
			continue
		}
		part, err := netlink.NewAttributeDecoder(ad.Bytes())
		var flags [2]uint8
		for err == nil && part.Next() {
			b := part.Bytes()
			switch part.Type() {
			case ctaTCPState:
				established = len(b) == 1 && b[0] == tcpEstablished
			case ctaTCPFlagsOriginal, ctaTCPFlagsReply:
				if len(b) == 2 {
					flags[part.Type()-ctaTCPFlagsOriginal] = b[0] & tcpLoose
				}
			}
		}
		liberal = flags[0]&flags[1]&tcpBeLiberal != 0
		loose = flags == [2]uint8{tcpBeLiberal, tcpBeLiberal}
	}
	return established, liberal, loose
}

func parseTuple(data []byte) Tuple {
	var t Tuple
	var src, dst netip.Addr
	var sport, dport uint16
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return t
	}
	for ad.Next() {
		part, err := netlink.NewAttributeDecoder(ad.Bytes())
		if err != nil {
			return t
		}
		for part.Next() {
			b := part.Bytes()
			switch {
			case ad.Type() == ctaTupleIP && (part.Type() == ctaIPv4Src || part.Type() == ctaIPv6Src):
				src, _ = netip.AddrFromSlice(b) // invalid where the length is wrong
			case ad.Type() == ctaTupleIP && (part.Type() == ctaIPv4Dst || part.Type() == ctaIPv6Dst):
				dst, _ = netip.AddrFromSlice(b)
			case ad.Type() == ctaTupleProto && part.Type() == ctaProtoNum && len(b) == 1:
				t.Protocol = b[0]
			case ad.Type() == ctaTupleProto && part.Type() == ctaProtoSrc && len(b) == 2:
				sport = binary.BigEndian.Uint16(b)
			case ad.Type() == ctaTupleProto && part.Type() == ctaProtoDst && len(b) == 2:
				dport = binary.BigEndian.Uint16(b)
			}
		}
	}
	t.Src, t.Dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return t
}
