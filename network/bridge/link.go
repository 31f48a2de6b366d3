//go:build linux

package bridge

import (
	"errors"
	"fmt"

	"github.com/orchestrate-go/orchestrate/network"
)

// LinkName is the name of the interface by which a network that has a Whole
// reaches other nodes. Whoever makes it, as package overlay does, makes it a
// part of the network by this name; the driver removes it with the network.
func (d *Driver) LinkName(network string) string { return d.name("x", network) }

// AdmitLink lets the node's own connections from its loopback addresses leave
// by a network's link, as they may by its bridge. It is called once the link is
// there, and up.
func (d *Driver) AdmitLink(name string) error {
	d.networks.RLock()
	defer d.networks.RUnlock()
	nw := d.nets[name]
	if nw == nil {
		return network.ErrNoNetwork
	}
	link, err := d.host.LinkByName(nw.link)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", nw.link, err)
	}
	err = inside(d.hostNS, func() error {
		if !nw.gateway(true).IsValid() {
			return nil
		}
		return errors.Join(
			setSysctl("net/ipv4/conf/"+nw.link+"/route_localnet", "1"),
			setSysctl("net/ipv4/conf/"+nw.link+"/send_redirects", "0"),
		)
	})
	if err != nil {
		return err
	}
	return d.loopbackRoute(nw, link.Attrs().Index)
}
