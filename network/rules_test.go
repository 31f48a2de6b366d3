package network_test

import (
	"errors"
	"net/netip"
	"reflect"
	"testing"

	"github.com/orchestrate-go/orchestrate/network"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func ports(s ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, p := range s {
		out = append(out, netip.MustParseAddrPort(p))
	}
	return out
}

func TestCanonical(t *testing.T) {
	in := []network.Rule{
		{Service: "b", Address: addr("::ffff:10.96.0.1"), Port: 80, Endpoints: ports("10.1.0.3:80", "[fd00::3]:80", "10.1.0.2:80", "[::ffff:10.1.0.3]:80")},
		{Service: "a", Port: 80, Endpoints: ports("10.1.0.3:80", "[fd00::3]:80")},
		{Service: "c", Protocol: network.UDP, HostIP: addr("::1"), Port: 53, Endpoints: ports("10.1.0.3:53")},
	}
	got, err := network.Canonical(in)
	if err != nil {
		t.Fatal(err)
	}
	want := []network.Rule{
		{Service: "a", Protocol: network.TCP, Port: 80, Endpoints: ports("10.1.0.3:80", "[fd00::3]:80")},
		{Service: "b", Protocol: network.TCP, Address: addr("10.96.0.1"), Port: 80, Endpoints: ports("10.1.0.2:80", "10.1.0.3:80")},
		{Service: "c", Protocol: network.UDP, HostIP: addr("::1"), Port: 53, Endpoints: []netip.AddrPort{}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Canonical =\n%+v, want\n%+v", got, want)
	}
	if in[0].Protocol != "" || in[0].Endpoints[0] != ports("10.1.0.3:80")[0] {
		t.Errorf("Canonical changed its argument: %+v", in[0])
	}
}

func TestCanonicalRefuses(t *testing.T) {
	vip := addr("10.96.0.1")
	for _, tc := range []struct {
		name     string
		rules    []network.Rule
		conflict string // the frontend, or "" for a ConfigError
		field    string
	}{
		{"same virtual address and port", []network.Rule{{Service: "a", Address: vip, Port: 80}, {Service: "b", Address: vip, Port: 80}}, "tcp 10.96.0.1:80", ""},
		{"same by another spelling", []network.Rule{{Service: "a", Protocol: "tcp", Address: vip, Port: 80}, {Service: "b", Address: addr("::ffff:10.96.0.1"), Port: 80}}, "tcp 10.96.0.1:80", ""},
		{"same within one service", []network.Rule{{Service: "a", Port: 80}, {Service: "a", Port: 80}}, "tcp *:80", ""},
		{"same published", []network.Rule{{Service: "a", Protocol: "udp", Port: 80}, {Service: "b", Protocol: "udp", Port: 80}}, "udp *:80", ""},
		{"published on all and on one", []network.Rule{{Service: "a", Port: 80}, {Service: "b", HostIP: addr("127.0.0.1"), Port: 80}}, "tcp 127.0.0.1:80", ""},
		{"published on all of IPv4 and on one", []network.Rule{{Service: "a", HostIP: addr("0.0.0.0"), Port: 80}, {Service: "b", HostIP: addr("127.0.0.1"), Port: 80}}, "tcp 127.0.0.1:80", ""},
		{"virtual and an address of the node", []network.Rule{{Service: "a", Address: vip, Port: 80}, {Service: "b", HostIP: vip, Port: 80}}, "tcp 10.96.0.1:80", ""},
		{"no port", []network.Rule{{Service: "a", Address: vip}}, "", "port"},
		{"protocol", []network.Rule{{Service: "a", Address: vip, Port: 1, Protocol: "sctp"}}, "", "protocol"},
		{"both addresses", []network.Rule{{Service: "a", Address: vip, HostIP: vip, Port: 1}}, "", "host ip"},
		{"loopback virtual", []network.Rule{{Service: "a", Address: addr("127.0.0.1"), Port: 1}}, "", "address"},
		{"multicast host", []network.Rule{{Service: "a", HostIP: addr("224.0.0.1"), Port: 1}}, "", "host ip"},
		{"endpoint without address", []network.Rule{{Service: "a", Address: vip, Port: 1, Endpoints: make([]netip.AddrPort, 1)}}, "", "endpoints"},
		{"endpoint without port", []network.Rule{{Service: "a", Address: vip, Port: 1, Endpoints: ports("10.1.0.2:0")}}, "", "endpoints"},
		{"endpoint loopback", []network.Rule{{Service: "a", Address: vip, Port: 1, Endpoints: ports("127.0.0.1:1")}}, "", "endpoints"},
	} {
		got, err := network.Canonical(tc.rules)
		if got != nil {
			t.Errorf("%s: got rules %+v beside the error", tc.name, got)
		}
		var conflict *network.ConflictError
		var wrong *network.ConfigError
		switch {
		case tc.conflict != "":
			if !errors.As(err, &conflict) || conflict.Frontend != tc.conflict || len(conflict.Services) != 2 {
				t.Errorf("%s: got %v, want a *ConflictError about %s naming both services", tc.name, err, tc.conflict)
			}
		case !errors.As(err, &wrong) || wrong.Field != tc.field || wrong.Service != "a":
			t.Errorf("%s: got %v, want a *ConfigError of service a about %s", tc.name, err, tc.field)
		}
	}
}

func TestCanonicalAllows(t *testing.T) {
	vip := addr("10.96.0.1")
	for name, rules := range map[string][]network.Rule{
		"two ports":                    {{Address: vip, Port: 80}, {Address: vip, Port: 81}},
		"two protocols":                {{Address: vip, Port: 80}, {Address: vip, Port: 80, Protocol: "udp"}},
		"virtual and published":        {{Address: vip, Port: 80}, {Port: 80}},
		"two host addresses":           {{HostIP: addr("192.0.2.1"), Port: 80}, {HostIP: addr("192.0.2.2"), Port: 80}},
		"all of IPv4 and one of IPv6":  {{HostIP: addr("0.0.0.0"), Port: 80}, {HostIP: addr("::1"), Port: 80}},
		"all of IPv4 and all of IPv6":  {{HostIP: addr("0.0.0.0"), Port: 80}, {HostIP: addr("::"), Port: 80}},
		"nothing":                      nil,
		"virtual addresses of a kind":  {{Address: vip, Port: 80}, {Address: addr("fd00::1"), Port: 80}},
		"endpoints of families, mixed": {{Address: vip, Port: 80, Endpoints: ports("[fd00::2]:80")}},
	} {
		if _, err := network.Canonical(rules); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
