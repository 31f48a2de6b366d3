//go:build linux

package conntrack

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	nl "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a network namespace with addresses on its loopback, where what goes to
// port 80 of a virtual address goes to port 8080 of a real one.
type node struct {
	testing.TB
	ns   *os.File
	conn *Conn
}

// The addresses of a node, by family.
var addresses = map[string]struct{ client, server, virtual netip.Addr }{
	"IPv4": {netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("10.9.0.3")},
	"IPv6": {netip.MustParseAddr("fd09::1"), netip.MustParseAddr("fd09::2"), netip.MustParseAddr("fd09::3")},
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newNode(t testing.TB) *node {
	t.Helper()
	n := &node{TB: t}
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread ends here
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	check(t, <-made)
	t.Cleanup(func() { _ = n.ns.Close() })
	links, err := nl.NewHandleAt(netns.NsHandle(n.ns.Fd()))
	check(t, err)
	defer links.Close()
	lo, err := links.LinkByName("lo")
	check(t, err)
	check(t, links.LinkSetUp(lo))
	rules, err := nftables.New(nftables.WithNetNSFd(int(n.ns.Fd())))
	check(t, err)
	table := rules.AddTable(&nftables.Table{Name: "test", Family: nftables.TableFamilyINet})
	chain := rules.AddChain(&nftables.Chain{
		Name: "out", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	for _, a := range addresses {
		for _, addr := range []netip.Addr{a.client, a.server, a.virtual} {
			whole := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
			check(t, links.AddrAdd(lo, &nl.Addr{IPNet: whole, Flags: unix.IFA_F_NODAD}))
			if addr.Is6() { // the kernel makes its own some time later
				check(t, links.RouteAdd(&nl.Route{LinkIndex: lo.Attrs().Index, Dst: whole, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL}))
			}
		}
		family, offset := byte(unix.NFPROTO_IPV4), uint32(16)
		if a.server.Is6() {
			family, offset = unix.NFPROTO_IPV6, 24
		}
		rules.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.virtual.BitLen() / 8)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.virtual.AsSlice()},
			&expr.Immediate{Register: 1, Data: a.server.AsSlice()},
			&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, 8080)},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(family), RegAddrMin: 1, RegProtoMin: 2},
		}})
	}
	check(t, rules.Flush())
	n.conn, err = Dial(int(n.ns.Fd()))
	check(t, err)
	t.Cleanup(func() { check(t, n.conn.Close()) })
	return n
}

// in runs f in the namespace. Sockets stay where they were made.
func (n *node) in(f func() error) {
	n.Helper()
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread ends here
		err := netns.Set(netns.NsHandle(n.ns.Fd()))
		if err == nil {
			err = f()
		}
		errs <- err
	}()
	check(n, <-errs)
}

// tcp opens a connection, over which a word has gone both ways.
func (n *node) tcp(from, to, server netip.AddrPort) (client, accepted net.Conn) {
	n.Helper()
	n.in(func() error {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(server))
		if err != nil {
			return err
		}
		defer l.Close() //nolint:errcheck // the connection is what counts
		if client, err = net.DialTCP("tcp", net.TCPAddrFromAddrPort(from), net.TCPAddrFromAddrPort(to)); err != nil {
			return err
		}
		accepted, err = l.Accept()
		return err
	})
	n.Cleanup(func() { _, _ = client.Close(), accepted.Close() }) // a test may have done so
	n.word(client, accepted)
	n.word(accepted, client)
	return client, accepted
}

func (n *node) word(from io.Writer, to io.Reader) {
	n.Helper()
	_, err := from.Write([]byte("word"))
	check(n, err)
	_, err = io.ReadFull(to, make([]byte, 4))
	check(n, err)
}

// udp sends a word, and another back if it is to be answered.
func (n *node) udp(from, to, server netip.AddrPort, answered bool) {
	n.Helper()
	var client, s *net.UDPConn
	n.in(func() (err error) {
		if s, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(server)); err != nil {
			return err
		}
		client, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
		return err
	})
	n.Cleanup(func() { _, _ = client.Close(), s.Close() })
	_, err := client.Write([]byte("word"))
	check(n, err)
	b := make([]byte, 8)
	_, source, err := s.ReadFromUDPAddrPort(b)
	check(n, err)
	if !answered {
		return
	}
	_, err = s.WriteToUDPAddrPort([]byte("word"), source)
	check(n, err)
	_, err = client.Read(b)
	check(n, err)
}

// Each flow is found by what either end sends, as it is, can be loosened and
// deleted, and is not known after that.
func TestKernel(t *testing.T) {
	n := newNode(t)
	if _, err := n.conn.Get(Tuple{unix.IPPROTO_TCP, netip.MustParseAddrPort("10.9.0.1:1"), netip.MustParseAddrPort("10.9.0.2:1")}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a flow that is not is %v, want %v", err, unix.ENOENT)
	}
	port := uint16(4000)
	for family, a := range addresses {
		for _, c := range []struct {
			name       string
			protocol   uint8
			translated bool
		}{
			{"TCP", unix.IPPROTO_TCP, false}, {"TCP, translated", unix.IPPROTO_TCP, true},
			{"UDP", unix.IPPROTO_UDP, false}, {"UDP, translated", unix.IPPROTO_UDP, true},
		} {
			t.Run(c.name+" by "+family, func(t *testing.T) {
				n.TB = t
				port++
				from, server := netip.AddrPortFrom(a.client, port), netip.AddrPortFrom(a.server, 8080)
				to, bits := server, Status(0)
				if c.translated {
					to, bits = netip.AddrPortFrom(a.virtual, 80), DestinationNAT
				}
				want := Flow{
					Original: Tuple{c.protocol, from, to}, Reply: Tuple{c.protocol, server, from},
					Status: Confirmed | SeenReply | bits, Established: c.protocol == unix.IPPROTO_TCP,
				}
				const looked = Confirmed | SeenReply | SourceNAT | DestinationNAT | SequenceAdjust | Dying | Helper
				same := func(f Flow) bool {
					return f.Original == want.Original && f.Reply == want.Reply && f.Status&looked == want.Status && f.Established == want.Established
				}
				if c.protocol == unix.IPPROTO_TCP {
					n.tcp(from, to, server)
				} else {
					n.udp(from, to, server, true)
				}
				f, err := n.conn.Get(want.Original)
				check(t, err)
				if !same(f) || f.Loose || f.Timeout <= 0 {
					t.Errorf("by what its client sends the flow is %+v, want %+v", f, want)
				}
				f, err = n.conn.Get(want.Reply)
				check(t, err)
				if !same(f) {
					t.Errorf("by what its server sends the flow is %+v, want %+v", f, want)
				}
				for values, listed := range map[Status]bool{0: !c.translated, DestinationNAT: c.translated} {
					all, err := n.conn.List(values, DestinationNAT)
					check(t, err)
					if slices.ContainsFunc(all, same) != listed {
						t.Errorf("of the flows with the status %#x there are %+v, want of them %+v: %v", values, all, want, listed)
					}
				}
				all, err := n.conn.List(0, 0)
				check(t, err)
				if !slices.ContainsFunc(all, same) {
					t.Errorf("of all flows there are %+v, want of them %+v", all, want)
				}
				if c.protocol == unix.IPPROTO_TCP {
					check(t, n.conn.Loosen(f, 3*time.Hour))
					f, err = n.conn.Get(want.Original)
					check(t, err)
					if !same(f) || !f.Loose || f.Timeout <= 2*time.Hour || f.Timeout > 3*time.Hour {
						t.Errorf("loosened for three hours the flow is %+v, want %+v", f, want)
					}
				}
				for range 2 { // again is no error
					check(t, n.conn.Delete(f))
					if f, err := n.conn.Get(want.Original); !errors.Is(err, unix.ENOENT) {
						t.Errorf("deleted the flow is %+v, %v, want %v", f, err, unix.ENOENT)
					}
				}
				if err := n.conn.Loosen(f, time.Hour); c.protocol == unix.IPPROTO_TCP && !errors.Is(err, unix.ENOENT) {
					t.Errorf("loosened when it is gone: %v, want %v", err, unix.ENOENT)
				}
			})
		}
	}
}

func TestKernelNotEstablished(t *testing.T) {
	n := newNode(t)
	for family, a := range addresses {
		t.Run("a datagram without an answer by "+family, func(t *testing.T) {
			n.TB = t
			from, to := netip.AddrPortFrom(a.client, 4000), netip.AddrPortFrom(a.server, 8080)
			n.udp(from, to, to, false)
			f, err := n.conn.Get(Tuple{unix.IPPROTO_UDP, from, to})
			check(t, err)
			if f.Status&(Confirmed|SeenReply) != Confirmed {
				t.Errorf("the flow is %+v, want it confirmed and not answered", f)
			}
		})
		t.Run("a connection that one end has closed by "+family, func(t *testing.T) {
			n.TB = t
			from, to := netip.AddrPortFrom(a.client, 4000), netip.AddrPortFrom(a.server, 8080)
			client, accepted := n.tcp(from, to, to)
			check(t, client.Close())
			if _, err := accepted.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Fatalf("the other end has %v, want %v", err, io.EOF)
			}
			f, err := n.conn.Get(Tuple{unix.IPPROTO_TCP, from, to})
			check(t, err)
			if f.Established {
				t.Errorf("the flow is %+v, want it not established", f)
			}
		})
	}
}

// What ends between the question and Loosen is not kept as if it were open.
func TestLoosenWhatHasEnded(t *testing.T) {
	n := newNode(t)
	for family, a := range addresses {
		t.Run(family, func(t *testing.T) {
			n.TB = t
			from, to := netip.AddrPortFrom(a.client, 4000), netip.AddrPortFrom(a.server, 8080)
			client, accepted := n.tcp(from, to, to)
			sent := Tuple{unix.IPPROTO_TCP, from, to}
			f, err := n.conn.Get(sent)
			check(t, err)
			check(t, client.(*net.TCPConn).SetLinger(0)) // Close resets
			check(t, client.Close())
			if _, err := accepted.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Fatalf("the other end has %v, want %v", err, unix.ECONNRESET)
			}
			if err := n.conn.Loosen(f, time.Hour); !errors.Is(err, unix.ENOENT) {
				t.Errorf("loosened when it has ended: %v, want %v", err, unix.ENOENT)
			}
			if f, err := n.conn.Get(sent); err == nil && f.Timeout > 2*time.Minute {
				t.Errorf("a connection that has ended is kept for %v, want at most %v", f.Timeout, 2*time.Minute)
			}
		})
	}
}

func TestEstablishedTimeout(t *testing.T) {
	n := newNode(t)
	n.in(func() error {
		return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", []byte("1234"), 0)
	})
	if got, err := EstablishedTimeout(int(n.ns.Fd())); err != nil || got != 1234*time.Second {
		t.Errorf("the timeout is %v, %v, want %v", got, err, 1234*time.Second)
	}
}
