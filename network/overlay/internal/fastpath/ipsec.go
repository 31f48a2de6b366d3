//go:build linux

package fastpath

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ipsec is what is known of an administrator's IPsec between the nodes. The kernel
// applies its policies on the kernel's own way alone: what passes it by would leave
// as plain text, and be taken as that.
type ipsec struct {
	c    *netlink.Handle // nil where the kernel has none
	at   time.Time       // when the kernel was asked last
	used bool
}

// openIPsec opens a socket in a network namespace, as for Options.
func openIPsec(namespace int) (s ipsec, err error) {
	if namespace == 0 {
		s.c, err = netlink.NewHandle(unix.NETLINK_XFRM)
	} else {
		s.c, err = netlink.NewHandleAt(netns.NsHandle(namespace), unix.NETLINK_XFRM)
	}
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return ipsec{}, nil
	}
	if err != nil {
		return ipsec{}, fmt.Errorf("socket for IPsec: %w", err)
	}
	return s, nil
}

func (s *ipsec) close() {
	if s.c != nil {
		s.c.Close()
	}
}

// inUse asks the kernel, unless it has said so less than a while ago. Whether a
// policy is about packets between nodes is not looked into.
func (s *ipsec) inUse(now time.Time, old time.Duration) (bool, error) {
	if s.c == nil || !s.at.IsZero() && now.Sub(s.at) < old {
		return s.used, nil
	}
	all, err := s.c.XfrmPolicyList(netlink.FAMILY_ALL)
	if err != nil {
		return true, fmt.Errorf("list policies of IPsec: %w", err)
	}
	s.at, s.used = now, slices.ContainsFunc(all, func(p netlink.XfrmPolicy) bool {
		forwards := p.Dir == netlink.XFRM_DIR_OUT || p.Dir == netlink.XFRM_DIR_FWD
		return forwards && (len(p.Tmpls) > 0 || p.Action == netlink.XFRM_POLICY_BLOCK)
	})
	return s.used, nil
}
