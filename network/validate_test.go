package network_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/orchestrate-go/orchestrate/network"
)

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestNetworkValidate(t *testing.T) {
	good := network.Network{Name: "front", Subnets: prefixes("10.1.0.0/16", "fd00:1::/64"), Virtual: prefixes("10.96.0.0/24", "fd00:2::/112"), MTU: 1400}
	if err := good.Validate(); err != nil {
		t.Fatalf("Validate of a good network = %v", err)
	}
	for _, tc := range []struct {
		field  string
		change func(*network.Network)
	}{
		{"name", func(n *network.Network) { n.Name = "" }},
		{"subnets", func(n *network.Network) { n.Subnets = nil }},
		{"subnets", func(n *network.Network) { n.Subnets = prefixes("10.1.0.0/31") }},
		{"subnets", func(n *network.Network) { n.Subnets = prefixes("10.1.0.0/24", "10.2.0.0/24") }},
		{"subnets", func(n *network.Network) { n.Subnets = []netip.Prefix{{}} }},
		{"virtual", func(n *network.Network) { n.Virtual = prefixes("10.1.7.0/24") }},
		{"virtual", func(n *network.Network) { n.Virtual = prefixes("10.96.0.0/24", "10.96.0.0/16") }},
		{"virtual", func(n *network.Network) { n.Virtual = prefixes("127.0.0.0/24") }},
		{"mtu", func(n *network.Network) { n.MTU = 67 }},
		{"mtu", func(n *network.Network) { n.MTU = 1279 }}, // IPv6 needs 1280
		{"mtu", func(n *network.Network) { n.MTU = 65536 }},
	} {
		n := good
		tc.change(&n)
		var wrong *network.ConfigError
		if err := n.Validate(); !errors.As(err, &wrong) || wrong.Field != tc.field {
			t.Errorf("Validate of %+v = %v, want a *ConfigError about %s", n, err, tc.field)
		}
	}
}

func TestAttachmentValidate(t *testing.T) {
	good := network.Attachment{Network: "n", Task: "t", Namespace: "/ns", Interface: "eth0"}
	if err := good.Validate(); err != nil {
		t.Fatalf("Validate of a good attachment = %v", err)
	}
	for _, tc := range []struct {
		field  string
		change func(*network.Attachment)
	}{
		{"network", func(a *network.Attachment) { a.Network = "" }},
		{"task", func(a *network.Attachment) { a.Task = "" }},
		{"namespace", func(a *network.Attachment) { a.Namespace = "" }},
		{"interface", func(a *network.Attachment) { a.Interface = "" }},
		{"interface", func(a *network.Attachment) { a.Interface = "interface-too-long" }},
		{"interface", func(a *network.Attachment) { a.Interface = "a/b" }},
		{"interface", func(a *network.Attachment) { a.Interface = "lo" }},
		{"interface", func(a *network.Attachment) { a.Interface = ".." }},
	} {
		a := good
		tc.change(&a)
		var wrong *network.ConfigError
		if err := a.Validate(); !errors.As(err, &wrong) || wrong.Field != tc.field {
			t.Errorf("Validate of %+v = %v, want a *ConfigError about %s", a, err, tc.field)
		}
	}
}

func TestSplit(t *testing.T) {
	n := network.Network{Name: "n", Subnets: prefixes("10.1.0.0/16", "fd00:1::/64")}
	got, err := n.Split([]netip.Addr{addr("fd00:1::9")})
	if err != nil || got[0].IsValid() || got[1] != addr("fd00:1::9") {
		t.Errorf("Split(fd00:1::9) = %v, %v, want any IPv4 address and that one", got, err)
	}
	for _, asked := range [][]netip.Addr{{addr("10.2.0.1")}, {addr("10.1.0.2"), addr("10.1.0.3")}} {
		var wrong *network.ConfigError
		if _, err := n.Split(asked); !errors.As(err, &wrong) || wrong.Field != "addresses" {
			t.Errorf("Split(%v) = %v, want a *ConfigError about addresses", asked, err)
		}
	}
}

func TestValidateNamespace(t *testing.T) {
	if err := network.ValidateNamespace("web.1", map[string]string{"net.core.somaxconn": "1", "net/ipv4/ip_forward": "1"}); err != nil {
		t.Errorf("a good namespace is refused: %v", err)
	}
	for _, id := range []string{"", "..", ".", "a/b", "a\x00b"} {
		if network.ValidateNamespace(id, nil) == nil {
			t.Errorf("namespace %q is not refused", id)
		}
	}
	for _, name := range []string{"kernel.hostname", "net", "net.", "net/../kernel/hostname", "netx.y"} {
		if network.ValidateNamespace("a", map[string]string{name: "1"}) == nil {
			t.Errorf("sysctl %q is not refused", name)
		}
	}
}
