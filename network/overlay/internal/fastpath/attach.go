//go:build linux

package fastpath

import (
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Filters of other fleets on the same interface have the same prefix and priority
// and other handles. What an administrator has there comes first.
const (
	prefix   = "orchestrate-"
	priority = 0xff00
	// ownQdisc at the end of a filter's name says that the queueing discipline
	// which holds it was made for such filters, and goes with the last of them.
	ownQdisc = "+"
)

// filter is the one of a name at an interface.
func filter(link int, name string) *netlink.BpfFilter {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never fails
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: link, Parent: netlink.HANDLE_MIN_INGRESS, Handle: h.Sum32()&0x7fffffff | 1,
			Priority: priority, Protocol: unix.ETH_P_ALL,
		},
		Name: prefix + name, DirectAction: true,
	}
}

func qdisc(link int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

// attach puts a program at where packets come in by an interface, in the place of
// an earlier process's.
func attach(h *netlink.Handle, link int, name string, program *ebpf.Program) error {
	own := true
	if err := h.QdiscAdd(qdisc(link)); errors.Is(err, unix.EEXIST) {
		names, err := filters(h, link)
		if err != nil {
			return err
		}
		kind, err := kindOf(h, link)
		if err != nil {
			return err
		}
		own = len(names) == 0 && kind == "clsact"
		for _, n := range names {
			own = own || strings.HasPrefix(n, prefix) && strings.HasSuffix(n, ownQdisc)
		}
	} else if err != nil {
		return fmt.Errorf("queueing discipline clsact: %w", err)
	}
	f := filter(link, name)
	f.Fd = program.FD()
	if own {
		f.Name += ownQdisc
	}
	if err := h.FilterReplace(f); err != nil {
		return fmt.Errorf("filter %s: %w", f.Name, err)
	}
	return nil
}

// kindOf returns the kind of the queueing discipline that holds an interface's
// filters: an administrator may have one that is for what comes in alone.
func kindOf(h *netlink.Handle, link int) (string, error) {
	all, err := h.QdiscList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: link}})
	if err != nil {
		return "", fmt.Errorf("list queueing disciplines: %w", err)
	}
	for _, q := range all {
		if q.Attrs().LinkIndex == link && q.Attrs().Parent == netlink.HANDLE_INGRESS {
			return q.Type(), nil
		}
	}
	return "", nil
}

// filters returns the names of all filters of an interface that has the queueing
// discipline, and "" for each that has none.
func filters(h *netlink.Handle, link int) ([]string, error) {
	var names []string
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		all, err := h.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: link}}, parent)
		if err != nil {
			return nil, fmt.Errorf("list filters: %w", err)
		}
		for _, f := range all {
			name := ""
			if b, ok := f.(*netlink.BpfFilter); ok {
				name = b.Name
			}
			names = append(names, name)
		}
	}
	return names, nil
}

// detach takes away what attach did. That there is nothing is no error.
func detach(h *netlink.Handle, link int, name string) error {
	names, err := filters(h, link)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
		return nil // the interface is gone, or has no such queueing discipline
	} else if err != nil {
		return err
	}
	f := filter(link, name)
	there, own := false, false
	others := len(names)
	for _, n := range names {
		if n == f.Name || n == f.Name+ownQdisc {
			there, own = true, n != f.Name
			others--
		}
	}
	if !there {
		return nil
	}
	if own && others == 0 { // in one step: without its filter nobody would know whose it is
		if err := h.QdiscDel(qdisc(link)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove queueing discipline clsact: %w", err)
		}
		return nil
	}
	if err := h.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove filter %s: %w", f.Name, err)
	}
	return nil
}

// repair puts filters back that somebody has taken from the interfaces.
func (p *Path) repair() {
	p.mu.Lock()
	defer p.mu.Unlock()
	programs := map[int]*ebpf.Program{}
	for link := range p.links {
		programs[link] = p.kernel.FromPeer
	}
	if p.uplink != 0 {
		programs[p.uplink] = p.kernel.FromPeer
	}
	for _, port := range p.ports {
		programs[port.Link] = p.kernel.FromTask
	}
	own := filter(0, p.opts.Name).Name
	for link, program := range programs {
		names, err := filters(p.opts.Links, link)
		if err == nil && (slices.Contains(names, own) || slices.Contains(names, own+ownQdisc)) {
			continue
		}
		if err := attach(p.opts.Links, link, p.opts.Name, program); errors.Is(err, unix.ENODEV) {
			continue // whoever removes it says so later
		} else if err != nil {
			p.log.Warn("packets between nodes go the slow way", "interface", link, "error", err)
			continue
		}
		p.log.Warn("the fast path was taken from an interface, and is there again", "interface", link)
	}
}

// Remove takes the filters of a name away from all interfaces, whoever put them
// there: what is on its way goes by the kernel's own way from here on.
func Remove(h *netlink.Handle, name string) error {
	all, err := h.QdiscList(nil)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil // a kernel without traffic control
	} else if err != nil {
		return fmt.Errorf("list queueing disciplines: %w", err)
	}
	var errs []error
	for _, q := range all {
		if q.Attrs().Parent != netlink.HANDLE_INGRESS { // clsact has the same
			continue
		}
		if err := detach(h, q.Attrs().LinkIndex, name); err != nil {
			errs = append(errs, fmt.Errorf("interface %d: %w", q.Attrs().LinkIndex, err))
		}
	}
	return errors.Join(errs...)
}
