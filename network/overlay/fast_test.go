//go:build linux

package overlay

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/network/internal/conntrack"
	"github.com/orchestrate-go/orchestrate/network/overlay/internal/fastpath"
)

// echo sends back what it gets by UDP, and by TCP as sink does for connections
// that begin with 'e'. A datagram of one byte 'w' is answered with the task's name.
func (k *task) echo(port uint16) {
	k.w.Helper()
	k.w.sink(k.ns, port)
	var l net.PacketConn
	check(k.w, in(k.ns, func() (err error) {
		l, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		return err
	}))
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := l.ReadFrom(buf)
			if err != nil {
				return
			}
			answer := buf[:n]
			if n == 1 && buf[0] == 'w' {
				answer = []byte(k.id)
			}
			_, _ = l.WriteTo(answer, from)
		}
	})
	k.w.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
}

// talk is a flow from a task to an echo.
type talk struct {
	testing.TB
	net.Conn
	udp bool
}

func (k *task) talk(protocol string, to netip.AddrPort) *talk {
	k.w.Helper()
	c := &talk{TB: k.w, udp: protocol == "udp"}
	check(k.w, in(k.ns, func() (err error) {
		c.Conn, err = net.DialTimeout(protocol, to.String(), 10*time.Second)
		return err
	}))
	k.w.Cleanup(func() { _ = c.Conn.Close() })
	if !c.udp {
		_, err := io.WriteString(c, "e")
		check(k.w, err)
	}
	return c
}

// back sends random bytes and fails if not the same come back.
func (c *talk) back(size int) {
	c.Helper()
	sent := make([]byte, size)
	_, _ = rand.Read(sent)
	if c.udp && size == 1 {
		sent[0] = 'x'
	}
	got := c.answer(sent, size)
	if !bytes.Equal(got, sent) {
		c.Fatalf("other bytes come back than the %d that were sent", size)
	}
}

// answer sends and returns what comes back, as many bytes as are wanted. What UDP
// loses is sent again.
func (c *talk) answer(sent []byte, want int) []byte {
	c.Helper()
	limit := time.Now().Add(20 * time.Second)
	buf := make([]byte, want)
	if !c.udp {
		check(c, c.SetDeadline(limit))
		written := make(chan error, 1)
		go func() {
			_, err := c.Write(sent)
			written <- err
		}()
		n, err := io.ReadFull(c, buf)
		check(c, errors.Join(err, <-written))
		return buf[:n]
	}
	for {
		check(c, c.SetDeadline(time.Now().Add(time.Second)))
		_, err := c.Write(sent)
		n := 0
		if err == nil {
			n, err = c.Read(buf)
		}
		if err == nil {
			return buf[:n]
		}
		if time.Now().After(limit) {
			c.Fatalf("%d bytes: %v", len(sent), err)
		}
	}
}

// passed counts the packets that went by the fast path at a host.
func (h *host) passed() FastPathStats {
	h.w.Helper()
	s, err := h.d.FastPathStats()
	check(h.w, err)
	return s
}

// fast talks until what is said goes by the fast path of both hosts in both
// directions, and fails if it goes otherwise from then on.
func (c *talk) fast(a, b *host) {
	c.Helper()
	limit := time.Now().Add(20 * time.Second)
	for {
		before := [2]FastPathStats{a.passed(), b.passed()}
		c.back(1)
		after := [2]FastPathStats{a.passed(), b.passed()}
		all := true
		for i := range before {
			all = all && after[i].Sent > before[i].Sent && after[i].Received > before[i].Received
		}
		switch {
		case all:
			return
		case time.Now().After(limit):
			c.Fatalf("after 20 s not all packets go by the fast path: %+v, then %+v", before, after)
		}
	}
}

func newFastWorld(t testing.TB, n int, v6 bool, mode Direct, set func(*Options)) *world {
	t.Helper()
	w := newWorld(t, 0, v6, mode)
	w.set = set
	for i := range n {
		w.host(i)
	}
	w.ensure(front)
	return w
}

// newFastPair makes two hosts, a task on the one and an echo on the other.
func newFastPair(t testing.TB, v6 bool, mode Direct, set func(*Options)) (w *world, client, server *task) {
	t.Helper()
	w = newFastWorld(t, 2, v6, mode, set)
	client, server = w.hosts[0].task("client", "front"), w.hosts[1].task("server", "front")
	server.echo(7)
	return w, client, server
}

// What goes by the fast path arrives whole, by each way, of each protocol, and
// translated or not.
func TestFastPath(t *testing.T) {
	for _, mode := range []Direct{DirectAuto, DirectNever} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("direct=%s,IPv6=%v", mode, v6), func(t *testing.T) {
				w, client, server := newFastPair(t, v6, mode, nil)
				virtual := []netip.Addr{netip.MustParseAddr("10.72.0.7"), netip.MustParseAddr("fd00:72::7")}
				var rules []network.Rule
				for i, addr := range virtual {
					for _, p := range []network.Protocol{network.TCP, network.UDP} {
						rules = append(rules, network.Rule{Service: "echo", Protocol: p, Address: addr, Port: 70, Endpoints: []netip.AddrPort{netip.AddrPortFrom(server.addrs[i], 7)}})
					}
				}
				for _, h := range w.hosts {
					check(t, h.d.Program(t.Context(), rules))
				}
				for _, protocol := range []string{"tcp", "udp"} {
					for i := range virtual {
						for _, to := range []netip.AddrPort{netip.AddrPortFrom(server.addrs[i], 7), netip.AddrPortFrom(virtual[i], 70)} {
							t.Run(fmt.Sprintf("%s to %v", protocol, to), func(t *testing.T) {
								c := client.talk(protocol, to)
								c.fast(w.hosts[0], w.hosts[1])
								sizes := []int{1, 2, 100, 1200, 1452, 4 << 20}
								if protocol == "udp" {
									sizes[5] = 8000 // in fragments, which go the slow way
								}
								for _, size := range sizes {
									c.back(size)
								}
							})
						}
					}
				}
			})
		}
	}
}

// A connection that ends is ended for connection tracking too. After a reset, of
// which it cannot tell whether the sequence number is the right one, it keeps the
// connection for a while (nf_conntrack_tcp_timeout_close); the same ports begin
// another at once.
func TestFastPathEnds(t *testing.T) {
	for _, how := range []string{"close", "reset"} {
		t.Run(how, func(t *testing.T) {
			w, client, server := newFastPair(t, false, DirectNever, nil)
			to := netip.AddrPortFrom(server.addrs[0], 7)
			for _, h := range w.hosts {
				check(t, in(h.ns, func() error {
					return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close", []byte("1"), 0)
				}))
			}
			port := 4000
			for range 3 {
				var c *talk
				if how == "close" {
					port++ // that of the last one is the client's own for a minute
				}
				check(t, in(client.ns, func() error {
					d := net.Dialer{LocalAddr: &net.TCPAddr{Port: port}, Timeout: 10 * time.Second}
					conn, err := d.Dial("tcp", to.String())
					c = &talk{TB: t, Conn: conn}
					return err
				}))
				_, err := c.Write([]byte("e"))
				check(t, err)
				c.fast(w.hosts[0], w.hosts[1])
				c.back(1 << 20)
				if how == "reset" {
					check(t, c.Conn.(*net.TCPConn).SetLinger(0))
				}
				check(t, c.Close())
				tuple := conntrack.Tuple{Protocol: unix.IPPROTO_TCP, Src: netip.AddrPortFrom(client.addrs[0], uint16(port)), Dst: to}
				for _, h := range w.hosts {
					h.until("the connection is over", func(c *conntrack.Conn) bool {
						f, err := c.Get(tuple)
						return errors.Is(err, unix.ENOENT) || err == nil && !f.Established
					})
				}
			}
		})
	}
}

// until asks a host's connection tracking until something is so.
func (h *host) until(what string, so func(*conntrack.Conn) bool) {
	h.w.Helper()
	c, err := conntrack.Dial(int(h.ns.Fd()))
	check(h.w, err)
	defer c.Close()
	for limit := time.Now().Add(20 * time.Second); !so(c); {
		if time.Now().After(limit) {
			h.w.Fatalf("%s: not in 20 s: %s", h.name, what)
		}
	}
}

// A task that goes takes its flows along, before its address is another's.
func TestFastPathDetach(t *testing.T) {
	w, client, server := newFastPair(t, false, DirectAuto, nil)
	c := client.talk("udp", netip.AddrPortFrom(server.addrs[0], 7))
	c.fast(w.hosts[0], w.hosts[1])
	check(t, w.hosts[1].d.Detach(t.Context(), network.Attachment{Network: "front", Task: "server", Namespace: server.ns.Name(), Interface: "eth0"}))
	if s := w.hosts[1].passed(); s.Flows != 0 {
		t.Errorf("%d flows of a task that is detached are known", s.Flows)
	}
	if s := w.hosts[0].passed(); s.Flows != 1 {
		t.Errorf("the client's node knows %d flows, want the one", s.Flows)
	}
}

// A flow that connection tracking is told to forget leaves the fast path.
func TestFastPathFollowsConnectionTracking(t *testing.T) {
	w, client, server := newFastPair(t, false, DirectAuto, nil)
	to := netip.AddrPortFrom(server.addrs[0], 7)
	gone, kept := client.talk("tcp", to), client.talk("tcp", to)
	gone.fast(w.hosts[0], w.hosts[1])
	kept.fast(w.hosts[0], w.hosts[1])
	from := gone.LocalAddr().(*net.TCPAddr).AddrPort()
	w.hosts[0].until("the flow is deleted", func(c *conntrack.Conn) bool {
		f, err := c.Get(conntrack.Tuple{Protocol: unix.IPPROTO_TCP, Src: from, Dst: to})
		check(t, errors.Join(err, c.Delete(f)))
		return true
	})
	w.hosts[0].d.fast.Verify(0)
	if s := w.hosts[0].passed(); s.Flows != 1 {
		t.Errorf("%d flows are known of two, of which one was deleted", s.Flows)
	}
	kept.fast(w.hosts[0], w.hosts[1])
	gone.fast(w.hosts[0], w.hosts[1]) // it is picked up again, and learnt again
}

// Datagrams of a fast flow go to another endpoint when theirs is withdrawn.
func TestFastPathWithdrawn(t *testing.T) {
	w := newFastWorld(t, 3, false, DirectNever, nil)
	client := w.hosts[0].task("client", "front")
	var endpoints []netip.AddrPort
	for _, h := range w.hosts[1:] {
		server := h.task("on-"+h.name, "front")
		server.echo(7)
		endpoints = append(endpoints, netip.AddrPortFrom(server.addrs[0], 7))
	}
	program := func(to ...netip.AddrPort) {
		check(t, w.hosts[0].d.Program(t.Context(), []network.Rule{{Service: "echo", Protocol: network.UDP, Address: netip.MustParseAddr("10.72.0.7"), Port: 70, Endpoints: to}}))
	}
	program(endpoints[0])
	c := client.talk("udp", netip.MustParseAddrPort("10.72.0.7:70"))
	c.fast(w.hosts[0], w.hosts[1])
	program(endpoints...)
	if who := string(c.answer([]byte("w"), 100)); who != "on-n1" {
		t.Errorf("another endpoint changes who answers, from on-n1 to %s", who)
	}
	program(endpoints[1])
	if who := string(c.answer([]byte("w"), 100)); who != "on-n2" {
		t.Errorf("after on-n1 was withdrawn %s answers", who)
	}
	c.fast(w.hosts[0], w.hosts[2])
}

// Connection tracking sees a packet now and then, so that it keeps a flow for as
// long as it is in use.
func TestFastPathRefreshes(t *testing.T) {
	w, client, server := newFastPair(t, false, DirectAuto, func(o *Options) {
		o.fast = fastpath.Options{Refresh: 100 * time.Millisecond, Idle: time.Minute}
	})
	for _, h := range w.hosts {
		check(t, in(h.ns, func() error {
			return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream", []byte("2"), 0)
		}))
	}
	to := netip.AddrPortFrom(server.addrs[0], 7)
	c := client.talk("udp", to)
	c.fast(w.hosts[0], w.hosts[1])
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		c.back(100)
	}
	tuple := conntrack.Tuple{Protocol: unix.IPPROTO_UDP, Src: c.LocalAddr().(*net.UDPAddr).AddrPort(), Dst: to}
	for _, h := range w.hosts {
		h.until("the flow is known", func(c *conntrack.Conn) bool {
			_, err := c.Get(tuple)
			check(t, err)
			return true
		})
	}
	c.fast(w.hosts[0], w.hosts[1])
}

// Flows go on while the process is away, and the next one takes them up; one that
// is to have no fast path takes it away.
func TestFastPathOutlivesItsProcess(t *testing.T) {
	w, client, server := newFastPair(t, false, DirectAuto, nil)
	c := client.talk("tcp", netip.AddrPortFrom(server.addrs[0], 7))
	c.fast(w.hosts[0], w.hosts[1])
	w.hosts[0].close()
	c.back(1 << 20)
	w.hosts[0].open()
	check(t, w.hosts[0].d.Ensure(t.Context(), front))
	c.fast(w.hosts[0], w.hosts[1])

	w.hosts[0].close()
	w.hosts[0].opts.FastPath = FastPathNever
	w.hosts[0].open()
	check(t, w.hosts[0].d.Ensure(t.Context(), front))
	check(t, in(w.hosts[0].ns, func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			filters, errList := netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS)
			if len(filters) > 0 {
				err = errors.Join(err, fmt.Errorf("%s has filters without a fast path", l.Attrs().Name))
			}
			_ = errList // most interfaces have no queueing discipline that could have some
		}
		return err
	}))
	c.back(1 << 20)
	if s, err := w.hosts[0].d.FastPathStats(); err != nil || s != (FastPathStats{}) {
		t.Errorf("without a fast path: %+v, %v", s, err)
	}
}

// Where the kernel has no fast path all goes as without.
func TestFastPathFallsBack(t *testing.T) {
	refused := fmt.Errorf("load: %w", unix.EPERM)
	w, client, server := newFastPair(t, false, DirectAuto, func(o *Options) {
		o.openFast = func(fastpath.Options) (*fastpath.Path, error) { return nil, refused }
	})
	client.talk("tcp", netip.AddrPortFrom(server.addrs[0], 7)).back(1 << 20)
	if _, err := w.hosts[0].d.FastPathStats(); !errors.Is(err, unix.EPERM) {
		t.Errorf("the fast path says of itself %v, want why it is not there", err)
	}
}

func TestFastPathOption(t *testing.T) {
	_, err := Open(Options{Store: newWorld(t, 0, false).store, Node: "n", Underlay: netip.MustParseAddr("192.0.2.1"), FastPath: "sometimes"})
	var config *network.ConfigError
	if !errors.As(err, &config) || config.Field != "fast path" || !strings.Contains(config.Reason, string(FastPathNever)) {
		t.Errorf("got %v, want a ConfigError that names the field and the choices", err)
	}
}

// Networks come and go with tasks while others talk.
func TestFastPathNetworksComeAndGo(t *testing.T) {
	w, client, server := newFastPair(t, false, DirectNever, nil)
	c := client.talk("tcp", netip.AddrPortFrom(server.addrs[0], 7))
	c.fast(w.hosts[0], w.hosts[1])
	for i := range 3 {
		w.ensure(back)
		a, b := w.hosts[0].task(fmt.Sprint("a", i), "back"), w.hosts[1].task(fmt.Sprint("b", i), "back")
		b.echo(7)
		other := a.talk("tcp", netip.AddrPortFrom(b.addrs[0], 7))
		other.fast(w.hosts[0], w.hosts[1])
		c.fast(w.hosts[0], w.hosts[1])
		for _, k := range []*task{a, b} {
			check(t, k.d.Detach(t.Context(), network.Attachment{Network: "back", Task: k.id, Namespace: k.ns.Name(), Interface: "eth0"}))
			check(t, k.d.Delete(context.Background(), k.id))
		}
		for _, h := range w.hosts {
			check(t, h.d.Remove(t.Context(), "back"))
			if s := h.passed(); s.Flows != 1 {
				t.Errorf("%s knows %d flows after a network is gone, want the other's", h.name, s.Flows)
			}
		}
	}
}
