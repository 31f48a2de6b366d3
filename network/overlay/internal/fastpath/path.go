//go:build linux

package fastpath

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network/internal/conntrack"
)

// Options of a Path. Name, Underlay, Port and Links are required.
type Options struct {
	Name      string          // of the filters, one for each fleet of the machine
	Namespace int             // file descriptor of the node's network namespace; 0 is the program's own
	Links     *netlink.Handle // in that namespace
	Underlay  netip.Addr      // by which other nodes reach this one
	Port      uint16          // of VXLAN
	Logger    *slog.Logger    // nil means silence

	// Refresh is how often a flow's packet goes by connection tracking; 5 s when 0.
	Refresh time.Duration
	// Idle is for how long a flow without packets is known; 20 s when 0. It and
	// Refresh together are below what connection tracking keeps a flow for, which
	// for UDP are 30 s and more, unless the node is set up otherwise. When Run has
	// not been there for three times as long all goes the kernel's own way.
	Idle time.Duration
	// Worth is how many packets a task sends by a flow until it is learnt, a
	// power of two; 16 when 0.
	Worth int
	// Most is how many flows of one task are known at a time, so that others find
	// room; 8192 when 0. There is room for four times as many.
	Most int
}

// Path is a node's fast path. Its methods are safe for concurrent use.
type Path struct {
	opts   Options
	log    *slog.Logger
	kernel *objects
	flows  *conntrack.Conn
	// namespace is that of Options, which are free to close it; nil is the program's.
	namespace *os.File
	busy      *ringbuf.Reader
	// established is for how long connection tracking keeps a connection.
	established time.Duration

	closing  sync.Once
	closeErr error

	mu     sync.Mutex // guards what follows, and what is in the maps
	ports  map[string]Port
	links  map[int]map[end]node // what answers on each
	uplink int
	known  map[key]pair   // by the key of what a task sends
	held   map[string]int // how many of them are of each port
	ipsec  ipsec
}

// Port is where a task is plugged in.
type Port struct {
	Link      int // index of the host's end
	MAC       net.HardwareAddr
	Bridge    int
	BridgeMAC net.HardwareAddr
	Addresses []netip.Addr
	// Whole are the network's ranges on all nodes, Own those of this one.
	Whole, Own []netip.Prefix
}

// pair is a flow as it is known in both directions.
type pair struct {
	port string
	sent conntrack.Tuple // as the task sends
	far  conntrack.Tuple // as the other node sends
	in   key
	// learnt is when that was, by the kernel's coarse clock.
	learnt int64
	// unanswered is when the other end was last seen, where the task goes on to
	// send and it says nothing: it may be gone. 0 if it is not so.
	unanswered int64
}

// Open loads the programs. It fails where the kernel has not what they need, which
// came with Linux 5.13, or does not let the process.
func Open(o Options) (*Path, error) {
	o.Refresh = cmp.Or(o.Refresh, 5*time.Second)
	o.Idle = cmp.Or(o.Idle, 20*time.Second)
	o.Worth = cmp.Or(o.Worth, 16)
	o.Most = cmp.Or(o.Most, 8192)
	p := &Path{
		opts: o, log: o.Logger,
		ports: map[string]Port{}, links: map[int]map[end]node{}, known: map[key]pair{}, held: map[string]int{},
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if p.kernel, err = load(o); err != nil {
		return nil, fmt.Errorf("load the fast path: %w", err)
	}
	p.extend()
	if o.Namespace != 0 {
		fd, err := unix.FcntlInt(uintptr(o.Namespace), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open the fast path: namespace: %w", err), p.Close())
		}
		p.namespace = os.NewFile(uintptr(fd), "namespace")
	}
	if p.busy, err = ringbuf.NewReader(p.kernel.Busy); err == nil {
		p.flows, err = conntrack.Dial(o.Namespace)
	}
	if err == nil {
		p.ipsec, err = openIPsec(o.Namespace)
	}
	if err == nil {
		p.established, err = conntrack.EstablishedTimeout(o.Namespace)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the fast path: %w", err), p.Close())
	}
	return p, nil
}

// Close lets go of programs and maps. Interfaces keep theirs.
func (p *Path) Close() error {
	p.closing.Do(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.busy != nil {
			p.closeErr = p.busy.Close()
		}
		if p.flows != nil {
			p.closeErr = errors.Join(p.closeErr, p.flows.Close())
		}
		if p.namespace != nil {
			p.closeErr = errors.Join(p.closeErr, p.namespace.Close())
		}
		p.ipsec.close()
		p.kernel.close()
	})
	return p.closeErr
}

// Reset takes all away from the interfaces, and forgets what there was.
func (p *Path) Reset() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k := range p.known {
		p.forget(k)
	}
	var errs []error
	for link := range p.links {
		errs = append(errs, p.setEnds(link, nil))
	}
	clear(p.links)
	clear(p.ports)
	p.uplink = 0
	return errors.Join(append(errs, p.kernel.Uplink.Set(uint32(0)), Remove(p.opts.Links, p.opts.Name))...)
}

// SetPort has a task's flows learnt. A port of the same name is replaced.
func (p *Path) SetPort(name string, port Port) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if have, ok := p.ports[name]; ok && !have.same(port) {
		p.removePort(name)
	}
	if err := attach(p.opts.Links, port.Link, p.opts.Name, p.kernel.FromTask); err != nil {
		return err
	}
	p.ports[name] = port
	if p.opts.Underlay.Is6() {
		return p.forward(port.Bridge)
	}
	return nil
}

// HasPort reports whether there is a port of a name.
func (p *Path) HasPort(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.ports[name]
	return ok
}

func (p Port) same(q Port) bool {
	return p.Link == q.Link && p.Bridge == q.Bridge && slices.Equal(p.MAC, q.MAC) && slices.Equal(p.BridgeMAC, q.BridgeMAC) &&
		slices.Equal(p.Addresses, q.Addresses) && slices.Equal(p.Whole, q.Whole) && slices.Equal(p.Own, q.Own)
}

// RemovePort forgets a task's flows, before its addresses are another's.
func (p *Path) RemovePort(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removePort(name)
}

func (p *Path) removePort(name string) {
	delete(p.ports, name)
	for k, f := range p.known {
		if f.port == name {
			p.forget(k)
		}
	}
}

// SetUplink has packets of other nodes looked at that come by an interface as they
// are, and those to them leave by it; 0 for none. One that is not of Ethernet is
// left to the kernel.
func (p *Path) SetUplink(link int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if link != 0 {
		l, err := p.opts.Links.LinkByIndex(link)
		if err != nil {
			return err
		}
		if l.Attrs().EncapType != "ether" {
			link = 0
		}
	}
	if link == p.uplink {
		return nil
	}
	if p.uplink != 0 {
		if err := detach(p.opts.Links, p.uplink, p.opts.Name); err != nil {
			return err
		}
		p.uplink = 0
	}
	if link != 0 {
		if err := attach(p.opts.Links, link, p.opts.Name, p.kernel.FromPeer); err != nil {
			return err
		}
	}
	p.uplink = link
	return p.kernel.Uplink.Set(uint32(link))
}

// SetEnds says which nodes answer on a VXLAN link for which hardware addresses,
// and has packets that come by it looked at.
func (p *Path) SetEnds(link, number int, nodes map[string]netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.links[link] == nil {
		if err := attach(p.opts.Links, link, p.opts.Name, p.kernel.FromPeer); err != nil {
			return err
		}
	}
	want := map[end]node{}
	for mac, underlay := range nodes {
		hw, err := net.ParseMAC(mac)
		if err != nil || len(hw) != 6 {
			return fmt.Errorf("%q is no hardware address", mac)
		}
		want[end{Link: uint32(link), MAC: [6]byte(hw)}] = node{underlay.As16(), uint32(number)}
	}
	return p.setEnds(link, want)
}

// RemoveLink forgets a VXLAN link, which is gone.
func (p *Path) RemoveLink(link int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.setEnds(link, nil); err != nil {
		p.log.Warn("cannot take the ends of a link that is gone from the fast path", "error", err)
	}
	delete(p.links, link)
}

func (p *Path) setEnds(link int, want map[end]node) error {
	if want == nil {
		want = map[end]node{}
	}
	var errs []error
	have := p.links[link]
	for e, n := range have {
		if _, wanted := want[e]; wanted {
			continue
		}
		if err := gone(p.kernel.Ends.Delete(e)); err != nil {
			errs = append(errs, err)
			want[e] = n // so it is tried again
		}
	}
	for e, n := range want {
		old, ok := have[e]
		if ok && old == n {
			continue
		}
		if err := p.kernel.Ends.Put(e, n); err != nil {
			errs = append(errs, err)
			delete(want, e) // so it is tried again
			if ok {
				want[e] = old
			}
		}
	}
	p.links[link] = want
	return errors.Join(errs...)
}

// gone forgives the deletion of what is not there.
func gone(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// Stats is what goes by the fast path.
type Stats struct {
	Flows          int    // that are known
	Sent, Received uint64 // packets of tasks, and to tasks, since Open
}

// Stats counts.
func (p *Path) Stats() (Stats, error) {
	p.mu.Lock()
	s := Stats{Flows: len(p.known)}
	p.mu.Unlock()
	for i, n := range []*uint64{&s.Sent, &s.Received} {
		var each []uint64
		if err := p.kernel.Passed.Lookup(uint32(i), &each); err != nil {
			return Stats{}, fmt.Errorf("count packets of the fast path: %w", err)
		}
		for _, v := range each {
			*n += v
		}
	}
	return s, nil
}
