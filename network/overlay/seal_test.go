//go:build linux

package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/store"
)

var encryption func() Encryption

// EncryptTests says what the tests encrypt by.
func EncryptTests(by func() Encryption) bool {
	encryption = by
	return true
}

// sealed is the mode of a world whose nodes encrypt.
const sealed Direct = "sealed"

// capture looks at all packets on the link until it is asked what it saw.
func (w *world) capture() (stop func() [][]byte) {
	w.Helper()
	var fd int
	check(w, in(w.link, func() (err error) {
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network byte order
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all)
		return err
	}))
	check(w, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	check(w, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}))
	var ended atomic.Bool
	var packets [][]byte
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1<<17)
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err == nil {
				packets = append(packets, bytes.Clone(buf[:n]))
			} else if ended.Load() {
				return
			}
		}
	})
	var once sync.Once
	stop = func() [][]byte {
		once.Do(func() {
			ended.Store(true)
			wg.Wait()
			_ = unix.Close(fd)
		})
		return packets
	}
	w.Cleanup(func() { stop() })
	return stop
}

// readable returns how many packets have an address of a network outside, or text
// anywhere.
func readable(packets [][]byte, text string) (n int) {
	for _, p := range packets {
		if len(p) < 40 {
			continue
		}
		var addrs []netip.Addr
		switch p[0] >> 4 {
		case 4:
			addrs = []netip.Addr{netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))}
		case 6:
			addrs = []netip.Addr{netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))}
		}
		if bytes.Contains(p, []byte(text)) || slices.ContainsFunc(addrs, func(a netip.Addr) bool {
			return slices.ContainsFunc(front.Subnets, func(s netip.Prefix) bool { return s.Contains(a) })
		}) {
			n++
		}
	}
	return n
}

// What goes between nodes cannot be read on the link, and can where nothing
// encrypts.
func TestNothingInTheClear(t *testing.T) {
	for _, mode := range []Direct{DirectAuto, DirectNever, sealed} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t, 2, false, mode)
			w.ensure(front)
			a, b := w.hosts[0].task("a", "front"), w.hosts[1].task("b", "front")
			heard := b.listen(53)
			stop := w.capture()
			const secret = "not to be read by anybody"
			for i, to := range b.addrs {
				text := fmt.Sprint(secret, i)
				if got := say(t, a.ns, a.addrs[i], netip.AddrPortFrom(to, 53), text, heard); got.text != text || got.from != a.addrs[i] {
					t.Errorf("%v got %q from %v, want %q from %v", to, got.text, got.from, text, a.addrs[i])
				}
			}
			packets := stop()
			if n := readable(packets, secret); (n > 0) != (mode != sealed) {
				t.Errorf("%d of %d packets on the link can be read", n, len(packets))
			}
		})
	}
}

// A TCP connection under steady transfer outlives several changes of all keys:
// it neither ends nor waits for a handshake, and no private key reaches the store.
func TestKeysRotate(t *testing.T) {
	w := newWorld(t, 3, false)
	for _, h := range w.hosts {
		h.close()
		h.opts.Encryption, h.opts.Rotate = encryption(), 2*time.Second
		h.open()
	}
	w.mode = sealed
	w.ensure(front)
	stop := w.capture()
	a, b := w.hosts[0].task("a", "front"), w.hosts[1].task("b", "front")
	w.sink(b.ns, 80)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, addr := range b.addrs {
		c := dialIn(t, a.ns, netip.AddrPortFrom(addr, 80).String(), "e")
		defer c.Close()
		wg.Go(func() {
			longest, buf := time.Duration(0), []byte("steady and readable"+strings.Repeat(".", 4096))
			for ctx.Err() == nil {
				began := time.Now()
				// A peer that was called by a key that it did not know yet is called
				// again after 5 s.
				_ = c.SetDeadline(began.Add(5 * time.Second))
				_, err := c.Write(buf)
				if err == nil {
					_, err = io.ReadFull(c, buf)
				}
				if err != nil {
					t.Errorf("connection to %v: %v", addr, err)
					return
				}
				longest = max(longest, time.Since(began))
			}
			t.Logf("longest round trip to %v: %v", addr, longest)
		})
	}
	// Each node has had two keys more of each tunnel.
	seen := map[string]map[string]bool{}
	began, err := w.store.List(t.Context(), keyTunnels)
	check(t, err)
	watch, err := w.store.Watch(t.Context(), keyTunnels, began.Revision)
	check(t, err)
	limit := time.After(60 * time.Second)
	start := time.Now()
	rotated := func() bool {
		return !slices.ContainsFunc(w.hosts, func(h *host) bool { return len(seen[h.name]) < 6 })
	}
	for !rotated() {
		select {
		case batch, ok := <-watch:
			if !ok {
				t.Fatal("the watch ended")
			}
			for _, c := range batch.Changes {
				f := fleet{nodes: map[string]ends{}}
				check(t, f.read(c.Item.Key, c.Item.Value, c.Deleted, time.Now()))
				t.Logf("%v: %s", time.Since(start), c.Item.Key)
				for node, e := range f.nodes {
					if seen[node] == nil {
						seen[node] = map[string]bool{}
					}
					for _, k := range e.Ends {
						text, _ := k.Public.MarshalText()
						seen[node][string(text)] = true
					}
				}
			}
		case <-limit:
			t.Fatalf("keys after a minute: %v", seen)
		}
	}
	cancel()
	wg.Wait()
	for _, h := range w.hosts {
		h.d.mu.Lock()
		for _, kept := range h.d.seal.kept.Tunnels {
			private, _ := kept.Config.Private.MarshalText()
			all, err := w.store.List(t.Context(), "/")
			check(t, err)
			for _, item := range all.Items {
				if bytes.Contains(item.Value, private) {
					t.Errorf("%s has a private key of %s", item.Key, h.name)
				}
			}
		}
		info, err := os.Stat(h.d.seal.path)
		h.d.mu.Unlock()
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("keys of %s are in a file of mode %v (%v), want 0600", h.name, info.Mode(), err)
		}
	}
	if n := readable(stop(), "steady and readable"); n > 0 {
		t.Errorf("%d packets on the link can be read", n)
	}
}

// While the program is away nothing leaves in the clear; when it is back, the
// connection goes on, also without the store.
func TestSealedOverRestarts(t *testing.T) {
	w := newWorld(t, 2, false, sealed)
	w.ensure(front)
	a, b := w.hosts[0].task("a", "front"), w.hosts[1].task("b", "front")
	w.sink(b.ns, 80)
	for _, h := range w.hosts { // there is a way out, which must not be taken
		check(t, in(h.ns, func() error {
			return netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Gw: net.IPv4(192, 0, 2, 200)})
		}))
	}
	var conns []net.Conn
	for _, addr := range b.addrs {
		c := dialIn(t, a.ns, netip.AddrPortFrom(addr, 80).String(), "e")
		defer c.Close()
		conns = append(conns, c)
	}
	stop := w.capture()
	h := w.hosts[0]
	h.close()
	for _, c := range conns {
		_, err := io.WriteString(c, "nobody is there to encrypt this")
		check(t, err)
	}
	if _, _, err := askFor(h.ns, netip.AddrPortFrom(b.addrs[0], 80).String(), 200*time.Millisecond); err == nil {
		t.Error("a connection of the node was answered while nobody encrypts")
	}
	// The store is not asked: nothing follows it.
	d, err := Open(h.opts)
	check(t, err)
	for _, c := range conns {
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		got := make([]byte, len("nobody is there to encrypt this"))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "nobody is there to encrypt this" {
			t.Errorf("after the restart: %q, %v", got, err)
		}
	}
	check(t, d.Close())
	h.open()
	w.ensure(front)
	for _, c := range conns {
		check(t, echo(c, 64<<10))
	}
	// A peer whose key is not known is sent nothing.
	_, err = w.store.Commit(t.Context(), store.Txn{Writes: []store.Write{store.Delete(keyNodes + "n1")}})
	check(t, err)
	w.hosts[1].close()
	w.await(h, "the peer is forgotten", func() bool { return len(h.ways("front")) == 0 })
	for _, c := range conns {
		_, _ = io.WriteString(c, "and nobody has a key for this")
	}
	_, _, _ = askFor(h.ns, netip.AddrPortFrom(b.addrs[0], 80).String(), 200*time.Millisecond)
	if n := readable(stop(), "nobody"); n > 0 {
		t.Errorf("%d packets on the link can be read", n)
	}
	w.hosts[1].open()
	check(t, w.hosts[1].d.Ensure(t.Context(), front))
	w.settled("front")
	for _, c := range conns {
		got := make([]byte, len("and nobody has a key for this"))
		_ = c.SetDeadline(time.Now().Add(60 * time.Second))
		if _, err := io.ReadFull(c, got); err != nil {
			t.Errorf("after the key is known again: %v", err)
		}
	}
}

// Encryption is switched on and off with nothing of the other left, and nodes
// that encrypt and nodes that do not are apart.
func TestSealAndUnseal(t *testing.T) {
	w := newWorld(t, 2, false)
	w.ensure(front)
	a, b := w.hosts[0].task("a", "front"), w.hosts[1].task("b", "front")
	b.serve(80)
	heard := a.listen(53)
	again := func(h *host, e Encryption) {
		h.close()
		h.opts.Encryption = e
		h.open()
		check(t, h.d.Ensure(t.Context(), front))
	}
	to := netip.AddrPortFrom(b.addrs[0], 80).String()
	again(w.hosts[0], encryption())
	w.await(w.hosts[0], "no way to a node without a key", func() bool { return len(w.hosts[0].ways("front")) == 0 })
	stop := w.capture()
	if who, _, err := askFor(a.ns, to, 300*time.Millisecond); err == nil {
		t.Errorf("%s answered, which does not encrypt", who)
	}
	send(t, b.ns, b.addrs[0], netip.AddrPortFrom(a.addrs[0], 53), "in the clear")
	for _, p := range stop() {
		if len(p) > 20 && p[0]>>4 == 4 && netip.AddrFrom4([4]byte(p[12:16])) == a.addrs[0] {
			t.Error("a packet of a task left in the clear")
		}
	}
	again(w.hosts[1], encryption())
	w.mode = sealed
	w.settled("front")
	if who, _, err := ask(a.ns, to); err != nil || who != "b" {
		t.Errorf("when both encrypt: %q, %v", who, err)
	}
	if got := say(t, b.ns, b.addrs[0], netip.AddrPortFrom(a.addrs[0], 53), "encrypted", heard); got.text != "encrypted" {
		t.Errorf("got %q from a node that does not encrypt, want it to be dropped", got.text)
	}
	for _, h := range w.hosts {
		again(h, nil)
	}
	w.mode = DirectAuto
	w.settled("front")
	for _, h := range w.hosts {
		w.await(h, "direct routes", func() bool { return slices.Equal(h.ways("front"), []string{"eth0", "eth0"}) })
		check(t, in(h.ns, func() error {
			for i := range 2 {
				if _, err := netlink.LinkByName(h.d.TunnelName(i)); err == nil {
					return fmt.Errorf("tunnel %d of %s is left", i, h.name)
				}
			}
			return nil
		}))
	}
	if who, _, err := ask(a.ns, to); err != nil || who != "b" {
		t.Errorf("when none encrypts: %q, %v", who, err)
	}
}

func askFor(ns *os.File, to string, limit time.Duration) (who, from string, err error) {
	var text []byte
	err = in(ns, func() error {
		c, err := net.DialTimeout("tcp", to, limit)
		if err != nil {
			return err
		}
		_ = c.SetDeadline(time.Now().Add(limit))
		text, err = io.ReadAll(c)
		return errors.Join(err, c.Close())
	})
	who, from, _ = strings.Cut(string(text), " ")
	return who, from, err
}

// failing encrypts as another does, but for some configurations, which fail.
type failing struct {
	Encryption
	left *atomic.Int32 // so many more
}

type failingTunnel struct {
	Tunnel
	left *atomic.Int32
}

var errNotNow = errors.New("not now")

func (f failing) Open(name, namespace string, mtu int) (Tunnel, error) {
	t, err := f.Encryption.Open(name, namespace, mtu)
	return failingTunnel{t, f.left}, err
}

func (t failingTunnel) Configure(c TunnelConfig) error {
	if t.left.Load() > 0 && t.left.Add(-1) >= 0 {
		return errNotNow
	}
	return t.Tunnel.Configure(c)
}

// Tunnels that could not be told of a network that nodes share are told again.
func TestSealIsToldAgain(t *testing.T) {
	var left atomic.Int32
	w := newWorld(t, 1, false, sealed)
	w.set = func(o *Options) { o.Encryption = failing{o.Encryption, &left} }
	h := w.host(1)
	w.ensure(front)
	answers := func(network string) {
		t.Helper()
		client, server := w.hosts[0].task("client-"+network, network), h.task("server-"+network, network)
		server.serve(80)
		for limit := time.Now().Add(30 * time.Second); ; {
			who, _, err := ask(client.ns, netip.AddrPortFrom(server.addrs[0], 80).String())
			if err == nil && who == server.id {
				return
			}
			if time.Now().After(limit) {
				t.Fatalf("after 30 s the server on %s does not answer: %q, %v", network, who, err)
			}
		}
	}
	answers("front")
	check(t, w.hosts[0].d.Ensure(t.Context(), back))
	left.Store(2)
	if err := h.d.Ensure(t.Context(), back); err != nil && !errors.Is(err, errNotNow) {
		t.Fatal(err)
	}
	answers("back")
	if n := left.Load(); n > 0 {
		t.Errorf("%d configurations of two were not tried", n)
	}
}
