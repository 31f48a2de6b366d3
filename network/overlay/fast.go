//go:build linux

package overlay

import (
	"context"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/network/overlay/internal/fastpath"
)

// FastPath says whether packets of established flows of TCP and UDP, between a
// task of this node and another node, go straight from one interface to the other
// by programs at the interfaces (BPF), past the bridge, nftables and connection
// tracking. These decide about a flow's first packets and its last, and are shown
// one in some seconds; an administrator's own rules too see no others. So a rule
// that is to end flows has to delete them from connection tracking (conntrack -D),
// after which they end within ten seconds; or a minute, if Run has ended: then all
// goes the slow way.
type FastPath string

// The choices.
const (
	// FastPathAuto, also when empty, has a fast path where the kernel can (Linux
	// 5.13 with BPF) and nothing is encrypted. It is not used where the node has
	// policies of IPsec, which apply to the kernel's own way alone; that is seen
	// within ten seconds when they come, so set them up before.
	FastPathAuto FastPath = "auto"
	// FastPathNever leaves all to the kernel's own way.
	FastPathNever FastPath = "never"
)

// FastPathStats is what goes by the fast path.
type FastPathStats struct {
	Flows          int    // that are known now
	Sent, Received uint64 // packets from this node's tasks and to them, since Open
}

// FastPathStats tells what goes by the fast path, or why there is none; without
// one that should be, it is zero.
func (d *Driver) FastPathStats() (FastPathStats, error) {
	if d.fast == nil {
		return FastPathStats{}, d.fastErr
	}
	s, err := d.fast.Stats()
	return FastPathStats(s), err
}

// openFastPath loads the fast path. Where that fails, packets go as they would
// without.
func (d *Driver) openFastPath() error {
	// What an earlier driver left knows nothing of what changes from here on, and
	// may be at interfaces that this one leaves alone.
	if err := fastpath.Remove(d.host, d.opts.Bridge.ID); err != nil || d.seal != nil || d.opts.FastPath == FastPathNever {
		return err
	}
	o := d.opts.fast
	o.Name, o.Links, o.Underlay, o.Port, o.Logger = d.opts.Bridge.ID, d.host, d.opts.Underlay, d.opts.Port, d.log
	if path := d.opts.Bridge.HostNamespace; path != "" {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close() //nolint:errcheck // read-only
		o.Namespace = int(file.Fd())
	}
	open := d.opts.openFast
	if open == nil {
		open = fastpath.Open
	}
	var err error
	if d.fast, err = open(o); err != nil {
		d.fastErr = err
		d.log.Warn("packets between nodes go the slow way", "error", err)
	}
	return nil
}

func (d *Driver) resetFastPath() error {
	if d.fast == nil {
		return fastpath.Remove(d.host, d.opts.Bridge.ID)
	}
	return d.fast.Reset()
}

// forgotten returns what bridge.Options.Forgotten is to be.
func (d *Driver) forgotten(also func()) func() {
	return func() {
		if d.fast != nil {
			d.fast.Verify(unix.IPPROTO_UDP)
		}
		if also != nil {
			also()
		}
	}
}

// slow says that something goes the slow way though it need not.
func (d *Driver) slow(what string, err error) {
	if err != nil {
		d.log.Warn("packets between nodes go the slow way", "of", what, "error", err)
	}
}

// fastNetwork makes a network's ways part of the fast path, and the ports of tasks
// that an earlier driver attached. d.mu is held.
func (d *Driver) fastNetwork(ctx context.Context, o *overlay) {
	if d.fast == nil {
		return
	}
	if old := d.nets[o.name]; old != nil && old.link != o.link {
		d.fast.RemoveLink(old.link)
	}
	if d.opts.Direct != DirectNever {
		d.slow(o.way.name, d.fast.SetUplink(o.way.index))
	}
	attached, err := d.Attachments(ctx)
	d.slow(o.name, err)
	for _, a := range attached {
		if a.Network == o.name && !d.fast.HasPort(d.PortName(a)) {
			d.slow(a.Task, d.fastPort(o, a, a.Addresses))
		}
	}
}

// slowNetwork undoes fastNetwork; links and ports are gone. d.mu is held.
func (d *Driver) slowNetwork(o *overlay) {
	if d.fast != nil {
		d.fast.RemoveLink(o.link)
	}
}

// fastEnds tells the fast path where nodes are that are reached by VXLAN. d.mu is
// held.
func (d *Driver) fastEnds(o *overlay, want entries) {
	if d.fast != nil {
		d.slow(o.name, d.fast.SetEnds(o.link, o.vni, want.forwarding))
	}
}

func (d *Driver) fastPort(o *overlay, a network.Attachment, addresses []netip.Addr) error {
	at, err := d.Port(a)
	if err != nil {
		return err
	}
	return d.fast.SetPort(at.Name, fastpath.Port{
		Link: at.Link, MAC: at.MAC, Bridge: at.Bridge, BridgeMAC: at.BridgeMAC,
		Addresses: addresses, Whole: o.whole, Own: d.cut(o.whole, o.index),
	})
}

// Attach implements network.Driver.
func (d *Driver) Attach(ctx context.Context, a network.Attachment) (network.Interface, error) {
	iface, err := d.Driver.Attach(ctx, a)
	if err != nil || d.fast == nil {
		return iface, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if o := d.nets[a.Network]; o != nil {
		var addresses []netip.Addr
		for _, p := range iface.Addresses {
			addresses = append(addresses, p.Addr())
		}
		d.slow(fmt.Sprintf("task %s", a.Task), d.fastPort(o, a, addresses))
	}
	return iface, nil
}

// Detach implements network.Driver.
func (d *Driver) Detach(ctx context.Context, a network.Attachment) error {
	if d.fast != nil {
		d.fast.RemovePort(d.PortName(a)) // before its addresses are another's
	}
	err := d.Driver.Detach(ctx, a)
	if d.fast != nil {
		d.mu.Lock()
		d.fast.RemovePort(d.PortName(a)) // Ensure may have found it meanwhile
		d.mu.Unlock()
	}
	return err
}
