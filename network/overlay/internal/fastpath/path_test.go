//go:build linux

package fastpath

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
)

// passes reports whether a packet of each of some trips goes by the fast path.
func passes(l *lab, of func(trip) bool) (all, none bool) {
	l.Helper()
	all, none = true, true
	for _, r := range trips() {
		if !of(r) {
			continue
		}
		l.know(r.sent, r.goes, 0)
		action, _, err := r.show(l, r.packet().bytes(), 0)
		check(l, err)
		all, none = all && action == actRedirect, none && action == actUnspecified
	}
	return all, none
}

func direct(r trip) bool { return !r.vxlan && !r.in }
func vxlan(r trip) bool  { return r.vxlan }

// What is known of interfaces decides which of them packets leave by.
func TestPathInterfaces(t *testing.T) {
	l := newLab(t, false)
	far := map[string]netip.Addr{net.HardwareAddr(macFar[:]).String(): l.far}
	other := map[string]netip.Addr{net.HardwareAddr(macTask[:]).String(): l.far}
	for _, step := range []struct {
		name          string
		do            func() error
		direct, vxlan bool
		uplink        string // what is at it
	}{
		{"as it is set", func() error { return nil }, true, true, "clsact lab+"},
		{"no uplink", func() error { return l.p.SetUplink(0) }, false, true, ""},
		{"no uplink again", func() error { return l.p.SetUplink(0) }, false, true, ""},
		{"the uplink", func() error { return l.p.SetUplink(l.uplink) }, true, true, "clsact lab+"},
		{"the uplink again", func() error { return l.p.SetUplink(l.uplink) }, true, true, "clsact lab+"},
		{"an uplink that is not of Ethernet", func() error { return l.p.SetUplink(1) }, false, true, ""},
		{"the right one", func() error { return l.p.SetUplink(l.uplink) }, true, true, "clsact lab+"},
		{"nobody at the end of VXLAN", func() error { return l.p.SetEnds(l.vx, labNumber, nil) }, true, false, "clsact lab+"},
		{"somebody else at the end of VXLAN", func() error { return l.p.SetEnds(l.vx, labNumber, other) }, true, false, "clsact lab+"},
		{"the right one at the end of VXLAN", func() error { return l.p.SetEnds(l.vx, labNumber, far) }, true, true, "clsact lab+"},
		{"no VXLAN link", func() error { l.p.RemoveLink(l.vx); return nil }, true, false, "clsact lab+"},
		{"a VXLAN link", func() error { return l.p.SetEnds(l.vx, labNumber, far) }, true, true, "clsact lab+"},
		{"nothing", l.p.Reset, false, false, ""},
		{"nothing again", l.p.Reset, false, false, ""},
	} {
		check(t, step.do())
		if all, none := passes(l, direct); all != step.direct || none == step.direct {
			t.Errorf("%s: of packets by the link all pass: %v, none: %v, want %v", step.name, all, none, step.direct)
		}
		if all, none := passes(l, vxlan); all != step.vxlan || none == step.vxlan {
			t.Errorf("%s: of packets by VXLAN all pass: %v, none: %v, want %v", step.name, all, none, step.vxlan)
		}
		if got := at(t, l.node, l.uplink); got != step.uplink {
			t.Errorf("%s: at the uplink is %q, want %q", step.name, got, step.uplink)
		}
		if got := at(t, l.node, 1); got != "" {
			t.Errorf("%s: at the loopback is %q, want nothing", step.name, got)
		}
	}
	if err := l.p.SetEnds(l.vx, labNumber, map[string]netip.Addr{"no address": l.far}); err == nil {
		t.Error("what is no hardware address is none for the fast path either, want an error")
	}
}

// An end that did not fit into the map is put there when it does.
func TestPathEndsAreTriedAgain(t *testing.T) {
	l := newLab(t, false)
	check(t, l.p.SetEnds(l.vx, labNumber, nil))
	var e end
	for i := uint32(0); ; i++ {
		e.Link = 1 << 20
		binary.NativeEndian.PutUint32(e.MAC[:], i)
		if err := l.p.kernel.Ends.Update(e, node{}, ebpf.UpdateNoExist); err != nil {
			break // it is full
		}
	}
	far := map[string]netip.Addr{net.HardwareAddr(macFar[:]).String(): l.far}
	if err := l.p.SetEnds(l.vx, labNumber, far); err == nil {
		t.Fatal("an end fits into a map that is full")
	}
	binary.NativeEndian.PutUint32(e.MAC[:], 0)
	check(t, l.p.kernel.Ends.Delete(e))
	check(t, l.p.SetEnds(l.vx, labNumber, far))
	if all, _ := passes(l, vxlan); !all {
		t.Error("an end that did not fit at first is not in the map, which has a place for it")
	}
}

// A task begins a connection by the ports of one that it reset, and it is translated
// to another end than that. What the first one's end sends is not let in any more.
func TestLearnAnew(t *testing.T) {
	d := newRoad(t, false)
	for _, r := range trips() {
		if r.in || r.sent == r.goes {
			continue
		}
		d.open(r)
		first := r.goes
		first.Dst = netip.AddrPortFrom(r.goes.Dst.Addr().Next(), r.goes.Dst.Port())
		_, in := d.know(r.sent, first, 0)
		k := keyOf(d.port, r.sent)
		d.p.known[k] = pair{port: "task", sent: r.sent, far: first.Back(), in: in}
		check(t, d.p.learn(k))
		d.wantKnown(r, true, "learnt anew")
		if _, ok := d.known(in); ok {
			t.Errorf("%s: what %v sends is still let in to %v", r.name, first.Dst, r.sent.Src)
		}
	}
}
