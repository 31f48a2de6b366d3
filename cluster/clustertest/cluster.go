//go:build linux

package clustertest

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Options of a cluster. The zero value is one host.
type Options struct {
	// Hosts is how many there are, named n1, n2 and so on: 1 when 0, at most
	// MaxHosts. Names names them instead.
	Hosts int
	Names []string
	// Dir is where the hosts' folders are made; the system's folder for
	// temporary files when empty.
	Dir string
	// Disk is the size of a file system of its own for each host's folder, in
	// memory; 0: the folder is one of this machine's. [Host.FillDisk] needs it.
	Disk int64
	// Shaped makes links that [Host.Shape] can shape. All frames go through this
	// program then, which is slower than the kernel.
	Shaped bool
	// Seed makes what is lost, doubled and reordered by Shape the same for the
	// same frames.
	Seed uint64
}

// MaxHosts is the most hosts of a cluster.
const MaxHosts = 200

// Cluster is a number of hosts on a link. Its methods may be called from many
// goroutines.
type Cluster struct {
	// IPv4 and IPv6 are the addresses of this program on the hosts' link, and
	// Subnet4 and Subnet6 the link's.
	IPv4, IPv6       netip.Addr
	Subnet4, Subnet6 netip.Prefix

	opts   Options
	record *record
	link   *os.File // the namespace of the bridge
	hosts  []*Host

	closing  sync.Once
	closeErr error

	mu     sync.Mutex // guards what follows
	losses map[[2]string]float64
	closed bool
}

// New makes a cluster. It first removes what clusters of programs that died have
// left.
func New(opts Options) (*Cluster, error) {
	if _, err := Clean(); err != nil {
		return nil, fmt.Errorf("make cluster: %w", err)
	}
	names := opts.Names
	if len(names) == 0 {
		for i := range max(opts.Hosts, 1) {
			names = append(names, fmt.Sprintf("n%d", i+1))
		}
	}
	if len(names) > MaxHosts {
		return nil, fmt.Errorf("make cluster: %d hosts; want at most %d", len(names), MaxHosts)
	}
	if unix.Geteuid() != 0 {
		return nil, errors.New("make cluster: this needs root, for namespaces; run it as root")
	}
	c := &Cluster{opts: opts, losses: map[[2]string]float64{}}
	if err := c.make(names); err != nil {
		return nil, fmt.Errorf("make cluster: %w", errors.Join(err, c.Close()))
	}
	return c, nil
}

func (c *Cluster) make(names []string) (err error) {
	id := make([]byte, 3)
	_, _ = rand.Read(id)
	if c.record, err = newRecord(hex.EncodeToString(id), cmp.Or(c.opts.Dir, os.TempDir())); err != nil {
		return err
	}
	if err := c.address(); err != nil {
		return err
	}
	if c.link, err = c.record.namespaces("link", unix.CLONE_NEWNET, func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		return errors.Join(quiet(), netlink.LinkAdd(br), netlink.LinkSetUp(br))
	}); err != nil {
		return fmt.Errorf("the link's namespace: %w", err)
	}
	if err := c.plugSelf(); err != nil {
		return fmt.Errorf("plug this program in: %w", err)
	}
	for i, name := range names {
		h, err := c.makeHost(i, name)
		if err != nil {
			return fmt.Errorf("host %s: %w", name, err)
		}
		c.hosts = append(c.hosts, h)
	}
	return nil
}

// address chooses subnets that this machine has nothing in: a /24 of those that
// are set aside for tests of networks (RFC 2544), and a unique local one (RFC
// 4193).
func (c *Cluster) address() error {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	first := mathrand.IntN(512)
	for i := range 512 {
		n := (first + i) % 512
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(18 + n/256), byte(n), 0}), 24)
		free := true
		for _, a := range addrs {
			if used, err := netip.ParsePrefix(a.String()); err == nil && used.Overlaps(p) {
				free = false
			}
		}
		if free {
			c.Subnet4 = p
			break
		}
	}
	if !c.Subnet4.IsValid() {
		return errors.New("no /24 of 198.18.0.0/15 is free on this machine")
	}
	six := [16]byte{0: 0xfd}
	_, _ = rand.Read(six[1:8])
	c.Subnet6 = netip.PrefixFrom(netip.AddrFrom16(six), 64)
	c.IPv4, c.IPv6 = c.addresses(254)
	return nil
}

// addresses are those of the n-th on the link.
func (c *Cluster) addresses(n byte) (four, six netip.Addr) {
	a4, a6 := c.Subnet4.Addr().As4(), c.Subnet6.Addr().As16()
	a4[3], a6[15] = n, n
	return netip.AddrFrom4(a4), netip.AddrFrom16(a6)
}

// selfPort is the program's port of the bridge.
const selfPort = "self"

// plugSelf gives this program's network namespace an interface on the link. The
// kernel removes it with the other end.
func (c *Cluster) plugSelf() error {
	home, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	name := "oct" + c.record.ID
	err = enter(func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: selfPort}, PeerName: name, PeerNamespace: netlink.NsFd(home.Fd())}
		return errors.Join(netlink.LinkAdd(veth), plug(selfPort))
	}, c.link)
	if err != nil {
		return err
	}
	return configure(name, netip.PrefixFrom(c.IPv4, c.Subnet4.Bits()), netip.PrefixFrom(c.IPv6, c.Subnet6.Bits()))
}

// plug makes an interface a port of the bridge. It runs in the link's namespace.
func plug(port string) error {
	br, err := netlink.LinkByName("br0")
	if err != nil {
		return err
	}
	l, err := netlink.LinkByName(port)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetMaster(l, br), netlink.LinkSetUp(l))
}

// configure gives an interface its addresses and brings it up.
func configure(name string, addrs ...netip.Prefix) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, p := range addrs {
		err := netlink.AddrAdd(l, &netlink.Addr{
			IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
			Flags: unix.IFA_F_NODAD,
		})
		if err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

// quiet keeps interfaces from configuring themselves, and so from saying anything
// that nobody asked for. It runs in a new network namespace.
func quiet() error {
	for _, name := range []string{"accept_ra", "accept_dad"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/default/"+name, []byte("0"), 0o644)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Hosts are the cluster's.
func (c *Cluster) Hosts() []*Host { return append([]*Host(nil), c.hosts...) }

// Host returns the host of a name, or nil.
func (c *Cluster) Host(name string) *Host {
	for _, h := range c.hosts {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// Dir is the folder that has the hosts' folders, and room for what else a test
// wants to be removed with them.
func (c *Cluster) Dir() string { return c.record.Data }

// Close kills every process of the hosts and removes all that the cluster made.
// Closing twice is no error.
func (c *Cluster) Close() error {
	c.closing.Do(func() {
		c.mu.Lock()
		c.closed = true
		c.mu.Unlock()
		var errs []error
		if c.record != nil {
			errs = append(errs, c.record.kill())
		}
		for _, h := range c.hosts {
			errs = append(errs, h.close())
		}
		if c.link != nil {
			errs = append(errs, c.link.Close())
		}
		if c.record != nil {
			errs = append(errs, c.record.remove())
		}
		c.closeErr = errors.Join(errs...)
	})
	if c.closeErr != nil {
		return fmt.Errorf("close cluster: %w", c.closeErr)
	}
	return nil
}

func (c *Cluster) folder(name string) string { return filepath.Join(c.record.Data, name) }
