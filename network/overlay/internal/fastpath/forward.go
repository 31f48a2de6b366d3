//go:build linux

package fastpath

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// forward has the kernel tell the programs its routes of IPv6 for what comes by a
// bridge, as it does for an interface that forwards. It may be that nothing else is
// forwarded by IPv6 on the node: where tasks have IPv4 alone, and the underlay is of
// IPv6. What is really forwarded depends on the whole node's setting.
func (p *Path) forward(bridge int) error {
	link, err := p.opts.Links.LinkByIndex(bridge)
	if err != nil {
		return err
	}
	path := filepath.Join("/proc/sys/net/ipv6/conf", link.Attrs().Name, "forwarding")
	done := make(chan error, 1)
	go func() {
		var err error
		if p.namespace != nil {
			runtime.LockOSThread() // and not unlocked: the thread ends here
			err = unix.Setns(int(p.namespace.Fd()), unix.CLONE_NEWNET)
		}
		var on []byte
		if err == nil {
			on, err = os.ReadFile(path)
		}
		if err == nil && on[0] == '0' {
			err = os.WriteFile(path, []byte("1"), 0)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("have routes of IPv6 told: %w", err)
	}
	return nil
}
