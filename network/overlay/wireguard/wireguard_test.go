//go:build linux

package wireguard

import (
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network/overlay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func prefixes(text ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range text {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func peer(n byte, keepalive time.Duration, allowed ...string) overlay.TunnelPeer {
	return overlay.TunnelPeer{
		Public: overlay.Key{n}, Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 51820),
		Allowed: prefixes(allowed...), Keepalive: keepalive,
	}
}

// What changes is said, and nothing else: a peer that stays keeps its sessions.
func TestChanges(t *testing.T) {
	old := overlay.TunnelConfig{Private: overlay.Key{9}, Port: 1, Peers: []overlay.TunnelPeer{
		peer(1, 0, "10.0.1.0/24"), peer(2, 0, "10.0.2.0/24", "10.0.3.0/24"), peer(3, 0, "10.0.4.0/24"),
	}}
	want := overlay.TunnelConfig{Private: overlay.Key{9}, Port: 1, Peers: []overlay.TunnelPeer{
		peer(1, 0, "10.0.1.0/24"), peer(2, 25*time.Second, "10.0.2.0/24", "10.0.4.0/24"), peer(4, 0, "10.0.3.0/24"),
	}}
	hex := func(n string) string { return n + strings.Repeat("0", 62) }
	changed := "public_key=" + hex("03") + "\nremove=true\n" +
		"public_key=" + hex("02") + "\npersistent_keepalive_interval=25\nallowed_ip=10.0.4.0/24\nallowed_ip=-10.0.3.0/24\n" +
		"public_key=" + hex("04") + "\nendpoint=192.0.2.4:51820\nallowed_ip=10.0.3.0/24\n"
	if got := protocol(want, between(old, want)); got != changed {
		t.Errorf("got\n%swant\n%s", got, changed)
	}
	if got := protocol(want, between(want, want)); got != "" {
		t.Errorf("from one to itself: got %q, want nothing", got)
	}
	config := netlinkConfig(want, between(old, want))
	if len(config.Peers) != 3 || config.PrivateKey != nil || config.ListenPort != nil || config.ReplacePeers {
		t.Fatalf("for the kernel: got %+v, want three peers alone", config)
	}
	if p := config.Peers[1]; !p.ReplaceAllowedIPs || len(p.AllowedIPs) != 2 || p.Endpoint != nil {
		t.Errorf("for the kernel: got %+v, want the peer's two ranges in place of those before", p)
	}
	// A new private key begins all anew.
	anew := want
	anew.Private = overlay.Key{8}
	if got := protocol(anew, between(want, anew)); !strings.HasPrefix(got, "private_key="+hex("08")+"\nreplace_peers=true\n") || strings.Count(got, "endpoint=") != 3 {
		t.Errorf("a new private key: got\n%swant all peers anew", got)
	}
	if config := netlinkConfig(anew, between(want, anew)); !config.ReplacePeers || len(config.Peers) != 3 {
		t.Errorf("a new private key, for the kernel: got %+v, want all peers anew", config)
	}
}

// The interface stays when its process lets go, and is taken up again.
func TestOpenAgain(t *testing.T) {
	runtime.LockOSThread() // and not unlocked: the thread, and with it the namespace, end here
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	private, err := overlay.MakeKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := overlay.MakeKey()
	if err != nil {
		t.Fatal(err)
	}
	config := overlay.TunnelConfig{Private: private, Port: 51820, Peers: []overlay.TunnelPeer{peer(1, 0, "10.0.1.0/24")}}
	config.Peers[0].Public = other.Public()
	index := 0
	for range 2 {
		tunnel, err := New(Options{}).Open("wg-test", "", 1420)
		if err != nil {
			t.Fatal(err)
		}
		if err := tunnel.Configure(config); err != nil {
			t.Fatal(err)
		}
		peers, err := tunnel.Peers()
		if state, ok := peers[other.Public()]; err != nil || len(peers) != 1 || !ok || !state.Handshake.IsZero() {
			t.Errorf("peers: got %v, %v, want the one that was never met", peers, err)
		}
		if err := tunnel.Close(); err != nil {
			t.Error(err)
		}
		link, err := netlink.LinkByName("wg-test")
		if err != nil {
			t.Fatalf("the interface after Close: %v", err)
		}
		if attrs := link.Attrs(); attrs.MTU != 1420 || attrs.Flags&1 == 0 || index != 0 && index != attrs.Index {
			t.Errorf("the interface after Close: MTU %d, flags %v, index %d, want 1420, up, and the same as before (%d)", attrs.MTU, attrs.Flags, attrs.Index, index)
		}
		index = link.Attrs().Index
	}
}
