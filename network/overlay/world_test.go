//go:build linux

package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/network/bridge"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a link with hosts on it, each in a network namespace.
type world struct {
	testing.TB
	dir   string
	store store.Store
	link  *os.File // namespace of the bridge that joins the hosts
	v6    bool     // whether the underlay is IPv6
	mode  Direct
	set   func(*Options) // more options of hosts that are added, or nil
	hosts []*host
}

// host is a machine with a driver.
type host struct {
	w      *world
	name   string
	ns     *os.File
	addr   netip.Addr // on the link
	opts   Options
	d      *Driver
	cancel context.CancelFunc
	done   chan error
	joined chan struct{} // holds a token when the driver has followed a change
}

// in runs f in a network namespace. Sockets stay where they were made.
func in(ns *os.File, f func() error) error {
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread ends here
		err := netns.Set(netns.NsHandle(ns.Fd()))
		if err == nil {
			err = f()
		}
		errs <- err
	}()
	return <-errs
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) namespace(name string) *os.File {
	w.Helper()
	path := filepath.Join(w.dir, name)
	check(w, os.WriteFile(path, nil, 0o600))
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
		}
		made <- err
	}()
	check(w, <-made)
	ns, err := os.Open(path)
	check(w, err)
	w.Cleanup(func() {
		if err := errors.Join(ns.Close(), unix.Unmount(path, unix.MNT_DETACH)); err != nil {
			w.Errorf("remove namespace %s: %v", name, err)
		}
	})
	return ns
}

// newWorld makes n hosts on one link. When the test ends, it purges each driver
// and fails if anything is left.
func newWorld(t testing.TB, n int, v6 bool, mode ...Direct) *world {
	t.Helper()
	w := &world{TB: t, dir: t.TempDir(), v6: v6}
	for _, m := range mode {
		w.mode = m
	}
	s := memory.New(memory.Options{})
	t.Cleanup(func() { _ = s.Close() })
	w.store = s
	w.link = w.namespace("link")
	check(t, in(w.link, func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		return netlink.LinkSetUp(br)
	}))
	for i := range n {
		w.host(i)
	}
	return w
}

// host adds a machine.
func (w *world) host(i int) *host {
	w.Helper()
	h := &host{w: w, name: fmt.Sprintf("n%d", i), joined: make(chan struct{}, 1)}
	h.ns = w.namespace(h.name)
	h.addr = netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
	bits := 24
	if w.v6 {
		h.addr, bits = netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1)), 64
	}
	w.plug(h.ns, fmt.Sprintf("p%d", i), netip.PrefixFrom(h.addr, bits))
	h.opts = Options{
		Bridge: bridge.Options{ID: "test", Dir: filepath.Join(w.dir, h.name+"-state"), HostNamespace: h.ns.Name()},
		Store:  w.store, Node: h.name, Underlay: h.addr, Direct: w.mode,
		joined: func() {
			select {
			case h.joined <- struct{}{}:
			default:
			}
		},
	}
	if w.mode == sealed {
		h.opts.Direct, h.opts.Encryption = DirectAuto, encryption()
	}
	if w.set != nil {
		w.set(&h.opts)
	}
	h.open()
	w.Cleanup(h.purge)
	w.hosts = append(w.hosts, h)
	return h
}

// plug connects a namespace to the link by an interface eth0.
func (w *world) plug(ns *os.File, port string, addr netip.Prefix) {
	w.Helper()
	check(w, in(w.link, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd())}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		br, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMaster(veth, br), netlink.LinkSetUp(veth))
	}))
	check(w, in(ns, func() error {
		for _, name := range []string{"lo", "eth0"} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
		}
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(addr), Flags: unix.IFA_F_NODAD})
	}))
}

func (h *host) open() {
	h.w.Helper()
	d, err := Open(h.opts)
	check(h.w, err)
	h.d = d
	h.run()
}

// run begins Run. Where a test that has ended it fails, close does not wait for more.
func (h *host) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	h.cancel, h.done = cancel, done
	go func() {
		done <- h.d.Run(ctx)
		close(done)
	}()
}

func (h *host) close() {
	h.w.Helper()
	h.cancel()
	if err := <-h.done; err != nil {
		h.w.Errorf("Run on %s: %v", h.name, err)
	}
	if err := h.d.Close(); err != nil {
		h.w.Errorf("Close on %s: %v", h.name, err)
	}
}

// purge removes all of the host's part and looks for what is left.
func (h *host) purge() {
	if err := h.d.Purge(context.Background()); err != nil {
		h.w.Errorf("Purge on %s: %v", h.name, err)
	}
	h.close()
	err := in(h.ns, func() error {
		var routes []netlink.Route
		var err error
		for _, table := range []int{unix.RT_TABLE_MAIN, unix.RT_TABLE_LOCAL} {
			more, errList := netlink.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{Protocol: routeProtocol, Table: table}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
			routes, err = append(routes, more...), errors.Join(err, errList)
		}
		if len(routes) > 0 {
			err = errors.Join(err, fmt.Errorf("routes are left: %v", routes))
		}
		if on, errRead := os.ReadFile("/proc/sys/net/ipv4/conf/eth0/route_localnet"); errRead != nil || on[0] != '0' {
			err = errors.Join(err, errRead, fmt.Errorf("route_localnet of eth0 is left at %s", on))
		}
		if err != nil {
			return err
		}
		qdiscs, errList := netlink.QdiscList(nil)
		err = errors.Join(err, errList)
		for _, q := range qdiscs {
			if q.Type() == "clsact" {
				err = errors.Join(err, fmt.Errorf("the queueing discipline of filters is left at interface %d", q.Attrs().LinkIndex))
			}
		}
		links, errList := netlink.LinkList()
		err = errors.Join(err, errList)
		for _, l := range links {
			if name := l.Attrs().Name; strings.HasPrefix(name, "o") {
				err = errors.Join(err, fmt.Errorf("interface %s is left", name))
			}
		}
		return err
	})
	if err != nil {
		h.w.Errorf("after Purge of %s: %v", h.name, err)
	}
	items, err := h.w.store.List(context.Background(), "/")
	for _, item := range items.Items {
		if strings.Contains(string(item.Value), `"`+h.name+`"`) || item.Key == keyNodes+h.name {
			err = errors.Join(err, fmt.Errorf("record %s is left", item.Key))
		}
	}
	if err != nil {
		h.w.Errorf("after Purge of %s: %v", h.name, err)
	}
}

// task is a namespace that is attached.
type task struct {
	*host
	id    string
	ns    *os.File
	addrs []netip.Addr
}

func (h *host) task(id string, networks ...string) *task {
	h.w.Helper()
	ctx := h.w.Context()
	path, err := h.d.Create(ctx, id, nil)
	check(h.w, err)
	k := &task{host: h, id: id}
	for i, n := range networks {
		iface, err := h.d.Attach(ctx, network.Attachment{Network: n, Task: id, Namespace: path, Interface: fmt.Sprintf("eth%d", i), Default: i == 0})
		check(h.w, err)
		for _, p := range iface.Addresses {
			k.addrs = append(k.addrs, p.Addr())
		}
	}
	k.ns, err = os.Open(path)
	check(h.w, err)
	h.w.Cleanup(func() { _ = k.ns.Close() })
	return k
}

// serve answers each TCP connection with the server's name and the client's
// address.
func (k *task) serve(port uint16) {
	k.w.Helper()
	var l net.Listener
	check(k.w, in(k.ns, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	}))
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			_, _ = fmt.Fprintf(c, "%s %v", k.id, from)
			_ = c.Close()
		}
	})
	k.w.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
}

// ask connects from a namespace and returns what is answered.
func ask(ns *os.File, to string) (who, from string, err error) {
	var text []byte
	err = in(ns, func() error {
		c, err := net.DialTimeout("tcp", to, 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		text, err = io.ReadAll(c)
		return err
	})
	who, from, _ = strings.Cut(string(text), " ")
	return who, from, err
}

// barePath connects the namespaces of two tasks on two hosts by another way too:
// through two more hosts on the link, which route plainly and have nothing of
// ours, no table and no connection tracking. With vxlan these reach each other by
// VXLAN. It returns the second's address.
func (w *world) barePath(ends [2]*os.File, vxlan bool) netip.Addr {
	w.Helper()
	name, number := "bare", byte(0)
	if vxlan {
		name, number = "vx", 1
	}
	var at [2]netip.Addr
	for i := range 2 {
		at[i] = netip.AddrFrom4([4]byte{192, 0, 2, 101 + 2*number + byte(i)})
	}
	for i, end := range ends {
		host := w.namespace(fmt.Sprintf("%s%d", name, i))
		w.plug(host, fmt.Sprintf("%s%d", name, i), netip.PrefixFrom(at[i], 24))
		gw := netip.AddrFrom4([4]byte{198, 51, 100 + number, byte(128*i + 1)})
		other := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100 + number, byte(128 * (1 - i))}), 25)
		check(w, in(host, func() error {
			if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
				return err
			}
			veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "end"}, PeerName: name, PeerNamespace: netlink.NsFd(end.Fd())}
			if err := netlink.LinkAdd(veth); err != nil {
				return err
			}
			if err := netlink.AddrAdd(veth, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(gw, 25))}); err != nil {
				return err
			}
			if err := netlink.LinkSetUp(veth); err != nil {
				return err
			}
			route := &netlink.Route{Dst: ipNet(other), Gw: at[1-i].AsSlice()}
			if vxlan {
				link, err := bareVXLAN(at[i], at[1-i])
				if err != nil {
					return err
				}
				route.LinkIndex, route.Gw, route.Flags = link, other.Addr().AsSlice(), int(netlink.FLAG_ONLINK)
			}
			return netlink.RouteAdd(route)
		}))
		check(w, in(end, func() error {
			bare, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if vxlan {
				if err := netlink.LinkSetMTU(bare, 1450); err != nil {
					return err
				}
			}
			if err := netlink.AddrAdd(bare, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(gw.Next(), 25))}); err != nil {
				return err
			}
			if err := netlink.LinkSetUp(bare); err != nil {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{LinkIndex: bare.Attrs().Index, Dst: ipNet(other), Gw: gw.AsSlice()})
		}))
	}
	return netip.AddrFrom4([4]byte{198, 51, 100 + number, 130})
}

// bareVXLAN makes the end of a VXLAN tunnel between two addresses, to which any
// address leads.
func bareVXLAN(from, to netip.Addr) (int, error) {
	link := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: "vx", TxQLen: -1, MTU: 1450, HardwareAddr: bareMAC(from)},
		VxlanId:   99, SrcAddr: from.AsSlice(), Group: to.AsSlice(), Port: DefaultPort,
	}
	if err := netlink.LinkAdd(link); err != nil {
		return 0, err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return 0, err
	}
	for _, n := range []byte{0, 128} {
		err := netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Index, IP: net.IPv4(198, 51, 101, n), HardwareAddr: bareMAC(to), State: netlink.NUD_PERMANENT})
		if err != nil {
			return 0, err
		}
	}
	return link.Index, nil
}

func bareMAC(of netip.Addr) net.HardwareAddr { return append(net.HardwareAddr{2, 0}, of.AsSlice()...) }
