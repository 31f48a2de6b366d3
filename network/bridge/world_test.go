//go:build linux

package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		childMain()
		return
	}
	goleak.VerifyTestMain(m)
}

// world is a node of its own for a test: a network namespace that plays the
// host, with the driver under test on it.
type world struct {
	testing.TB
	dir    string
	hostNS *os.File
	d      *Driver
	opts   Options
}

// front is the network that most tests use.
var front = network.Network{
	Name:    "front",
	Subnets: []netip.Prefix{netip.MustParsePrefix("10.71.0.0/16"), netip.MustParsePrefix("fd00:71::/64")},
	Virtual: []netip.Prefix{netip.MustParsePrefix("10.72.0.0/24"), netip.MustParsePrefix("fd00:72::/112")},
}

// newWorld makes a node; when the test ends, failed or not, it purges the
// driver and checks that nothing is left.
func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	w := &world{TB: t, dir: t.TempDir()}
	w.hostNS = w.namespace("host")
	w.opts = Options{ID: "test", Dir: filepath.Join(w.dir, "state"), HostNamespace: w.hostNS.Name(), MTU: 1500}
	t.Cleanup(w.checkMounts)
	t.Cleanup(func() { w.dropNamespace(w.hostNS) })
	w.open()
	t.Cleanup(w.checkPurged)
	return w
}

func (w *world) open() {
	w.Helper()
	d, err := Open(w.opts)
	if err != nil {
		w.Fatal(err)
	}
	w.d = d
}

// reopen is a restart of the program.
func (w *world) reopen() {
	w.Helper()
	if err := w.d.Close(); err != nil {
		w.Fatal(err)
	}
	w.open()
}

// namespace makes a network namespace that is not the driver's.
func (w *world) namespace(name string) *os.File {
	w.Helper()
	path := filepath.Join(w.dir, name)
	if err := makeNamespace(path, nil); err != nil {
		w.Fatal(err)
	}
	ns, err := os.Open(path)
	if err != nil {
		w.Fatal(err)
	}
	return ns
}

func (w *world) dropNamespace(ns *os.File) {
	if err := errors.Join(ns.Close(), unix.Unmount(ns.Name(), unix.MNT_DETACH), os.Remove(ns.Name())); err != nil {
		w.Errorf("remove namespace: %v", err)
	}
}

// checkPurged purges and looks for what is left.
func (w *world) checkPurged() {
	if err := w.d.Purge(context.Background()); err != nil {
		w.Errorf("Purge = %v", err)
	}
	if err := w.d.Close(); err != nil {
		w.Errorf("Close = %v", err)
	}
	c, err := dial(w.hostNS)
	if err != nil {
		w.Fatal(err)
	}
	defer c.Close()
	links, err := c.LinkList()
	if err != nil {
		w.Fatal(err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; name[0] == 'o' { // the driver's
			w.Errorf("interface %s is left after Purge", name)
		}
	}
	routes, err := c.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil || len(routes) > 0 {
		w.Errorf("routes %v are left after Purge (%v)", routes, err)
	}
	nft, err := nftables.New(nftables.WithNetNSFd(int(w.hostNS.Fd())))
	if err != nil {
		w.Fatal(err)
	}
	tables, err := nft.ListTables()
	if err != nil || len(tables) > 0 {
		w.Errorf("nft tables %v are left after Purge (%v)", tables, err)
	}
	err = filepath.WalkDir(w.opts.Dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() != "lock" {
			w.Errorf("file %s is left after Purge", path)
		}
		return err
	})
	if err != nil {
		w.Error(err)
	}
}

func (w *world) checkMounts() {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		w.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, w.dir) {
			w.Errorf("mount left: %s", line)
		}
	}
}

func (w *world) ensure(n network.Network) {
	w.Helper()
	if err := w.d.Ensure(w.Context(), n); err != nil {
		w.Fatal(err)
	}
}

func (w *world) program(rules ...network.Rule) {
	w.Helper()
	if err := w.d.Program(w.Context(), rules); err != nil {
		w.Fatal(err)
	}
}

// task is an attached namespace.
type task struct {
	id    string
	ns    *os.File
	iface network.Interface
}

func (w *world) task(id string, networks ...string) *task {
	w.Helper()
	if len(networks) == 0 {
		networks = []string{front.Name}
	}
	path, err := w.d.Create(w.Context(), id, nil)
	if err != nil {
		w.Fatal(err)
	}
	k := &task{id: id}
	for i, n := range networks {
		iface, err := w.d.Attach(w.Context(), network.Attachment{Network: n, Task: id, Namespace: path, Interface: fmt.Sprintf("eth%d", i), Default: i == 0})
		if err != nil {
			w.Fatal(err)
		}
		if i == 0 {
			k.iface = iface
		}
	}
	if k.ns, err = os.Open(path); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = k.ns.Close() })
	return k
}

// addr returns the task's address of a family on its first network.
func (k *task) addr(ipv4 bool) netip.Addr {
	for _, p := range k.iface.Addresses {
		if p.Addr().Is4() == ipv4 {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

func (k *task) endpoints(port uint16) []netip.AddrPort {
	var all []netip.AddrPort
	for _, p := range k.iface.Addresses {
		all = append(all, netip.AddrPortFrom(p.Addr(), port))
	}
	return all
}

func endpoints(port uint16, tasks ...*task) []netip.AddrPort {
	var all []netip.AddrPort
	for _, k := range tasks {
		all = append(all, k.endpoints(port)...)
	}
	return all
}

// server answers every line with its name and the client's address, on TCP
// and UDP, until closed.
type server struct {
	listener net.Listener
	packets  net.PacketConn
	wg       sync.WaitGroup
	mu       sync.Mutex // guards conns
	conns    map[net.Conn]bool
}

func (w *world) serve(ns *os.File, name string, port uint16) *server {
	w.Helper()
	s := &server{conns: map[net.Conn]bool{}}
	err := inside(ns, func() (err error) {
		address := fmt.Sprintf(":%d", port)
		if s.listener, err = net.Listen("tcp", address); err != nil {
			return err
		}
		s.packets, err = net.ListenPacket("udp", address)
		return err
	})
	if err != nil {
		w.Fatal(err)
	}
	s.wg.Go(func() {
		for {
			c, err := s.listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[c] = true
			s.mu.Unlock()
			s.wg.Go(func() { s.answer(c, name) })
		}
	})
	s.wg.Go(func() {
		buf := make([]byte, 1500)
		for {
			_, from, err := s.packets.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = s.packets.WriteTo([]byte(name+" "+from.String()), from) // a lost datagram is the client's timeout
		}
	})
	w.Cleanup(s.close)
	return s
}

func (s *server) answer(c net.Conn, name string) {
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		_ = c.Close()
	}()
	buf := make([]byte, 1500)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		for range bytes.Count(buf[:n], []byte("\n")) {
			if _, err := io.WriteString(c, name+" "+c.RemoteAddr().String()+"\n"); err != nil {
				return
			}
		}
	}
}

// close stops the server as a kill does: listeners and connections.
func (s *server) close() {
	_ = s.listener.Close()
	_ = s.packets.Close()
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// connect opens a connection from a namespace; sockets stay in the namespace
// they were made in.
func connect(ns *os.File, proto, to string, timeout time.Duration) (c net.Conn, err error) {
	err = inside(ns, func() error {
		c, err = net.DialTimeout(proto, to, timeout)
		return err
	})
	return c, err
}

// ask makes a new connection and returns who answered, and what address it
// saw.
func ask(ns *os.File, proto, to string) (name string, seen netip.Addr, err error) {
	c, err := connect(ns, proto, to, 5*time.Second)
	if err != nil {
		return "", netip.Addr{}, err
	}
	defer c.Close() //nolint:errcheck // the answer is what counts
	return askOn(c)
}

func askOn(c net.Conn) (name string, seen netip.Addr, err error) {
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", netip.Addr{}, err
	}
	if _, err := io.WriteString(c, "who\n"); err != nil {
		return "", netip.Addr{}, err
	}
	buf := make([]byte, 200)
	n, err := c.Read(buf)
	if err != nil {
		return "", netip.Addr{}, err
	}
	name, from, _ := strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
	ap, err := netip.ParseAddrPort(from)
	return name, ap.Addr().Unmap(), err
}

// outside makes a client beyond the node: a namespace on a wire to it, with
// 198.51.100.2 and fd00:99::2; the node has the addresses ending in 1.
func (w *world) outside() *os.File {
	w.Helper()
	ns := w.namespace("outside")
	w.Cleanup(func() { w.dropNamespace(ns) })
	host, err := dial(w.hostNS)
	if err != nil {
		w.Fatal(err)
	}
	defer host.Close()
	far, err := dial(ns)
	if err != nil {
		w.Fatal(err)
	}
	defer far.Close()
	// Two ends with the same index look like one interface to the kernel, and
	// wait a second for being told that they are up.
	err = host.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire", Index: 77, TxQLen: -1}, PeerName: "wire", PeerNamespace: netlink.NsFd(ns.Fd()), PeerTxQLen: -1})
	if err != nil {
		w.Fatal(err)
	}
	for i, c := range []*conn{host, far} {
		link, err := c.LinkByName("wire")
		if err != nil {
			w.Fatal(err)
		}
		for _, format := range []string{"198.51.100.%d/24", "fd00:99::%d/64"} {
			p := netip.MustParsePrefix(fmt.Sprintf(format, i+1))
			if err := c.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}); err != nil {
				w.Fatal(err)
			}
		}
		if err := c.LinkSetUp(link); err != nil {
			w.Fatal(err)
		}
	}
	return ns
}

// route sends what is for an address to the node, in the outside namespace.
func (w *world) route(ns *os.File, to netip.Addr, ipv4 bool) {
	w.Helper()
	c, err := dial(ns)
	if err != nil {
		w.Fatal(err)
	}
	defer c.Close()
	via := netip.MustParseAddr("fd00:99::1")
	if ipv4 {
		via = netip.MustParseAddr("198.51.100.1")
	}
	if err := c.RouteReplace(&netlink.Route{Dst: ipNet(netip.PrefixFrom(to, to.BitLen())), Gw: via.AsSlice()}); err != nil {
		w.Fatal(err)
	}
}
