//go:build linux

package wireguard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/orchestrate-go/orchestrate/network/overlay"
)

// kernel is a tunnel that the kernel encrypts for.
type kernel struct {
	name string

	mu     sync.Mutex // guards what follows
	client *wgctrl.Client
	have   overlay.TunnelConfig
}

// openKernel makes or adopts the kernel's interface. Without WireGuard in the
// kernel it is EOPNOTSUPP. The calling thread is in the namespace.
func openKernel(name string) (overlay.Tunnel, error) {
	err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: name}})
	if errors.Is(err, unix.EEXIST) {
		if err = probe(); err == nil {
			if err = removeOther(name, "wireguard"); err == nil {
				err = netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: name}})
			}
		}
		if errors.Is(err, unix.EEXIST) {
			err = nil // made by an earlier process
		}
	}
	if err != nil {
		return nil, err
	}
	client, err := wgctrl.New()
	if err != nil {
		return nil, err
	}
	k := &kernel{name: name, client: client}
	device, err := client.Device(name)
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	k.have = configOf(device)
	return k, nil
}

// probe asks whether the kernel has WireGuard where the name of an interface does
// not tell, because one of another kind has it.
func probe() error {
	const name = "owgprobe"
	err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: name}})
	if err == nil {
		err = netlink.LinkDel(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: name}})
	}
	return err
}

// configOf is what the kernel has.
func configOf(d *wgtypes.Device) overlay.TunnelConfig {
	c := overlay.TunnelConfig{Private: overlay.Key(d.PrivateKey), Port: uint16(d.ListenPort)}
	for _, p := range d.Peers {
		peer := overlay.TunnelPeer{Public: overlay.Key(p.PublicKey), Keepalive: p.PersistentKeepaliveInterval}
		if p.Endpoint != nil {
			e := p.Endpoint.AddrPort()
			peer.Endpoint = netip.AddrPortFrom(e.Addr().Unmap(), e.Port())
		}
		for _, a := range p.AllowedIPs {
			if addr, ok := netip.AddrFromSlice(a.IP); ok {
				ones, _ := a.Mask.Size()
				peer.Allowed = append(peer.Allowed, netip.PrefixFrom(addr.Unmap(), ones))
			}
		}
		c.Peers = append(c.Peers, peer)
	}
	return c
}

// Configure implements [overlay.Tunnel].
func (k *kernel) Configure(want overlay.TunnelConfig) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.client.ConfigureDevice(k.name, netlinkConfig(want, between(k.have, want))); err != nil {
		return fmt.Errorf("configure tunnel: %w", err)
	}
	k.have, k.have.Peers = want, slices.Clone(want.Peers)
	return nil
}

// netlinkConfig writes changes as the kernel's interface has them.
func netlinkConfig(want overlay.TunnelConfig, c changes) wgtypes.Config {
	config := wgtypes.Config{ReplacePeers: c.anew}
	if c.anew {
		private := wgtypes.Key(want.Private)
		config.PrivateKey = &private
	}
	if c.port {
		port := int(want.Port)
		config.ListenPort = &port
	}
	for _, n := range c.peers {
		peer := wgtypes.PeerConfig{PublicKey: wgtypes.Key(n.public), Remove: n.remove, PersistentKeepaliveInterval: n.keepalive}
		if n.endpoint.IsValid() {
			peer.Endpoint = net.UDPAddrFromAddrPort(n.endpoint)
		}
		allow := n.allow
		if len(n.disallow) > 0 { // the kernel takes away all or none
			peer.ReplaceAllowedIPs, allow = true, n.allowed
		}
		for _, a := range allow {
			peer.AllowedIPs = append(peer.AllowedIPs, net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())})
		}
		config.Peers = append(config.Peers, peer)
	}
	return config
}

// Peers implements [overlay.Tunnel].
func (k *kernel) Peers() (map[overlay.Key]overlay.TunnelState, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	device, err := k.client.Device(k.name)
	if err != nil {
		return nil, fmt.Errorf("look at tunnel: %w", err)
	}
	peers := map[overlay.Key]overlay.TunnelState{}
	for _, p := range device.Peers {
		state := overlay.TunnelState{Received: uint64(p.ReceiveBytes)}
		if p.LastHandshakeTime.After(time.Unix(0, 0)) {
			state.Handshake = p.LastHandshakeTime
		}
		peers[overlay.Key(p.PublicKey)] = state
	}
	return peers, nil
}

// Close implements [overlay.Tunnel].
func (k *kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.client.Close()
}
