//go:build linux

package bridge

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
)

// checkListeners refuses published ports that a process of the node has:
// publishing them would take the process its clients away.
func (d *Driver) checkListeners(added []network.Rule) error {
	want := map[network.Protocol]map[uint16][]network.Rule{network.TCP: {}, network.UDP: {}}
	for _, r := range added {
		if !r.Address.IsValid() {
			want[r.Protocol][r.Port] = append(want[r.Protocol][r.Port], r)
		}
	}
	if len(want[network.TCP])+len(want[network.UDP]) == 0 {
		return nil
	}
	if err := d.checkFleets(want); err != nil {
		return err
	}
	for protocol, ports := range want {
		if len(ports) == 0 {
			continue
		}
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			listeners, err := d.listeners(protocol, family)
			if err != nil {
				return fmt.Errorf("list %s sockets: %w", protocol, err)
			}
			for _, l := range listeners {
				for _, r := range ports[l.address.Port()] {
					if l.claims(r) {
						return &network.ConflictError{Frontend: r.Frontend(), Services: []string{r.Service, l.owner()}}
					}
				}
			}
		}
	}
	return nil
}

// checkFleets refuses published ports that another fleet of this machine has:
// of two tables the first to be made would win.
func (d *Driver) checkFleets(want map[network.Protocol]map[uint16][]network.Rule) error {
	c, err := d.table.open()
	if err != nil {
		return err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("list nft tables: %w", err)
	}
	for _, t := range tables {
		fleet, ok := strings.CutPrefix(t.Name, tablePrefix)
		if !ok || t.Name == d.table.name {
			continue
		}
		for _, name := range []string{mapAll + "4", mapAll + "6"} {
			set, err := c.GetSetByName(t, name)
			if err != nil {
				continue // of another layout, or just removed
			}
			elements, err := c.GetSetElements(set)
			if err != nil {
				continue
			}
			for _, e := range elements {
				if len(e.Key) < 8 {
					continue
				}
				protocol := network.TCP
				if e.Key[0] == unix.IPPROTO_UDP {
					protocol = network.UDP
				}
				for _, r := range want[protocol][binary.BigEndian.Uint16(e.Key[4:])] {
					return &network.ConflictError{Frontend: r.Frontend(), Services: []string{r.Service, "a service of fleet " + fleet}}
				}
			}
		}
	}
	return nil
}

// listener is a bound socket of the node.
type listener struct {
	protocol network.Protocol
	address  netip.AddrPort
	only6    bool // an IPv6 socket that does not take IPv4 as well
	inode    uint32
}

// claims reports whether connections to a published port's address could have
// been meant for the socket.
func (l listener) claims(r network.Rule) bool {
	addr := l.address.Addr()
	if !r.HostIP.IsValid() {
		return true
	}
	if addr.IsUnspecified() {
		return addr.Is4() == r.HostIP.Is4() || addr.Is6() && !l.only6
	}
	return addr == r.HostIP || r.HostIP.IsUnspecified() && addr.Is4() == r.HostIP.Is4()
}

// owner names the process that has the socket, as far as it can be found.
func (l listener) owner() string {
	socket := fmt.Sprintf("socket:[%d]", l.inode)
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is good
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err != nil || to != socket {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, _ := os.ReadFile("/proc/" + pid + "/comm") // it may just have ended
		return fmt.Sprintf("process %s (%s) listening on %s", pid, strings.TrimSpace(string(name)), l.address)
	}
	return "a process listening on " + l.address.String()
}

// Of linux/inet_diag.h, linux/sock_diag.h and net/tcp_states.h.
const (
	sockDiagByFamily   = 20
	inetDiagSKV6Only   = 11
	tcpClose           = 7 // the state of a UDP socket that is not connected
	tcpListen          = 10
	inetDiagReqSize    = 8 + 48
	inetDiagMsgSize    = 4 + 48 + 20
	inetDiagMsgSport   = 4
	inetDiagMsgSource  = 8
	inetDiagMsgInode   = inetDiagMsgSize - 4
	inetDiagReqStates  = 4
	inetDiagAddressLen = 16
)

// listeners asks the kernel for the sockets of the node that wait for clients.
func (d *Driver) listeners(protocol network.Protocol, family uint8) ([]listener, error) {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{NetNS: d.hostFD()})
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // nothing was written
	req := make([]byte, inetDiagReqSize)
	req[0], req[1] = family, unix.IPPROTO_TCP
	states := uint32(1 << tcpListen)
	if protocol == network.UDP {
		req[1], states = unix.IPPROTO_UDP, 1<<tcpClose
	}
	binary.NativeEndian.PutUint32(req[inetDiagReqStates:], states)
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump},
		Data:   req,
	})
	if err != nil {
		return nil, err
	}
	var all []listener
	for _, m := range msgs {
		if l, ok := parseListener(m.Data, protocol); ok {
			all = append(all, l)
		}
	}
	return all, nil
}

// parseListener reads a struct inet_diag_msg and the attributes behind it.
func parseListener(data []byte, protocol network.Protocol) (listener, bool) {
	if len(data) < inetDiagMsgSize {
		return listener{}, false
	}
	length := 4
	if data[0] == unix.AF_INET6 {
		length = inetDiagAddressLen
	}
	addr, _ := netip.AddrFromSlice(data[inetDiagMsgSource : inetDiagMsgSource+length]) // 4 or 16 bytes
	l := listener{
		protocol: protocol,
		address:  netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(data[inetDiagMsgSport:])),
		inode:    binary.NativeEndian.Uint32(data[inetDiagMsgInode:]),
	}
	attrs, err := netlink.NewAttributeDecoder(data[inetDiagMsgSize:])
	if err != nil {
		return l, l.address.Port() != 0
	}
	for attrs.Next() {
		if attrs.Type() == inetDiagSKV6Only && len(attrs.Bytes()) == 1 {
			l.only6 = attrs.Bytes()[0] != 0
		}
	}
	return l, l.address.Port() != 0
}

// hostFD is the node's namespace as the netlink library wants it.
func (d *Driver) hostFD() int {
	if d.hostNS == nil {
		return 0
	}
	return int(d.hostNS.Fd())
}
