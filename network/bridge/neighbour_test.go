//go:build linux

package bridge

import (
	"context"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/orchestrate-go/orchestrate/network"
)

// The node knows where a task's addresses are without asking, for as long as
// they are the task's.
func TestNodeKnowsItsTasks(t *testing.T) {
	w := newWorld(t)
	w.ensure(front)
	k := w.task("a")
	permanent := func() map[string]string {
		found := map[string]string{}
		neighbours, err := w.d.host.NeighList(w.d.nets[front.Name].index, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range neighbours {
			if n.State&netlink.NUD_PERMANENT != 0 && !n.IP.IsMulticast() {
				found[n.IP.String()] = n.HardwareAddr.String()
			}
		}
		return found
	}
	found := permanent()
	for _, p := range k.iface.Addresses {
		if got := found[p.Addr().String()]; got != k.iface.MAC {
			t.Errorf("the neighbour entry of %v is %q, want the task's %s", p.Addr(), got, k.iface.MAC)
		}
	}
	if err := w.d.Detach(context.Background(), network.Attachment{Network: front.Name, Task: k.id, Interface: k.iface.Name}); err != nil {
		t.Fatal(err)
	}
	found = permanent()
	for _, p := range k.iface.Addresses {
		if got, ok := found[p.Addr().String()]; ok {
			t.Errorf("the neighbour entry of %v is still %s after Detach", p.Addr(), got)
		}
	}
}
