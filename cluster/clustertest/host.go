//go:build linux

package clustertest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is a machine of a cluster.
type Host struct {
	Name string
	// IPv4 and IPv6 are its addresses on the link.
	IPv4, IPv6 netip.Addr
	// Dir is a folder of its own, at the same path for its processes.
	Dir string

	cluster *Cluster
	net     *os.File
	mnt     *os.File
	uts     *os.File
	wire    *wire // nil: the kernel's

	mu        sync.Mutex // guards processes
	processes []*Process
}

// runDir is the folder of sockets and bundles that each host has its own of.
const runDir = "/run/orchestrate"

func (c *Cluster) makeHost(i int, name string) (*Host, error) {
	if name == "" || len(name) > 15 || strings.ContainsAny(name, "/ .:") || name == selfPort || name == "br0" || c.Host(name) != nil {
		return nil, fmt.Errorf("%q is no name for a host; want 1 to 15 characters without blanks, dots, colons and slashes, each once", name)
	}
	h := &Host{Name: name, cluster: c, Dir: c.folder(name)}
	h.IPv4, h.IPv6 = c.addresses(byte(i + 1))
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	h.net, err = c.record.namespaces(name, unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWUTS, func() error {
		if err := unix.Sethostname([]byte(name)); err != nil {
			return err
		}
		if err := leaveMounts(); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", runDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0711"); err != nil {
			return fmt.Errorf("mount %s: %w", runDir, err)
		}
		if c.opts.Disk > 0 {
			if err := unix.Mount("tmpfs", h.Dir, "tmpfs", unix.MS_NODEV, fmt.Sprintf("mode=0700,size=%d", c.opts.Disk)); err != nil {
				return fmt.Errorf("mount %s: %w", h.Dir, err)
			}
		}
		return quiet()
	})
	if err != nil {
		return nil, err
	}
	if h.mnt, err = os.Open(c.record.pin(name, "mnt")); err == nil {
		h.uts, err = os.Open(c.record.pin(name, "uts"))
	}
	if err != nil {
		return nil, errors.Join(err, h.close())
	}
	if c.opts.Shaped {
		h.wire, err = newWire(h.net, c.link, name, c.opts.Seed+uint64(i))
	} else {
		err = enter(func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(h.net.Fd())})
		}, c.link)
	}
	if err == nil {
		err = enter(func() error { return plug(name) }, c.link)
	}
	if err == nil {
		err = enter(func() error {
			return errors.Join(configure("lo"), configure("eth0",
				netip.PrefixFrom(h.IPv4, c.Subnet4.Bits()), netip.PrefixFrom(h.IPv6, c.Subnet6.Bits())))
		}, h.net)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("plug it in: %w", err), h.close())
	}
	return h, nil
}

// leaveMounts lets go of what others on this machine have mounted: a new mount
// namespace has a copy of it, which would keep it when they unmount it.
func leaveMounts() error {
	file, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	defer file.Close()
	var foreign []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		// proc_pid_mountinfo(5): the fifth field is the mount point; the type and
		// the source follow a dash.
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kind) < 2 || fields[4] == "/" {
			continue
		}
		if kind[0] == "overlay" || kind[0] == "nsfs" || strings.HasPrefix(kind[1], "/dev/loop") || strings.HasPrefix(fields[4], runDir+"/") {
			foreign = append(foreign, unescape(fields[4]))
		}
	}
	slices.Reverse(foreign) // those on top first
	for _, path := range foreign {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("leave %s: %w", path, err)
		}
	}
	return nil
}

var octal = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func unescape(path string) string { return octal.Replace(path) }

// Do runs f on a thread in the host's namespaces: what f opens, dials and
// listens on by itself is the host's. What other goroutines do for it is not.
func (h *Host) Do(f func() error) error { return enter(f, h.mnt, h.net, h.uts) }

// Dial connects from the host to a numeric address. It is a DialContext of
// net/http's Transport.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial from %s: %w", h.Name, err)
	}
	var conn net.Conn
	err = enter(func() error {
		// A name would be looked up, and many addresses dialled, by other
		// goroutines; one address is dialled by this one.
		var d net.Dialer
		var err error
		conn, err = d.DialContext(ctx, network, ap.String())
		return err
	}, h.net)
	return conn, err
}

// close lets go of the host. The record has the rest.
func (h *Host) close() error {
	var errs []error
	if h.wire != nil {
		errs = append(errs, h.wire.close())
	}
	for _, f := range []*os.File{h.net, h.mnt, h.uts} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	h.mu.Lock()
	processes := h.processes
	h.mu.Unlock()
	for _, p := range processes {
		<-p.done
	}
	return errors.Join(errs...)
}
