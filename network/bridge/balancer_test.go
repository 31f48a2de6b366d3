//go:build linux

package bridge

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/network"
)

// Whatever the history, edits take what is there and put what is not, which
// the kernel insists on, and end where writing everything anew would.
func TestEditsEqualRewriting(t *testing.T) {
	address := rapid.SampledFrom([]string{"10.72.0.1", "10.72.0.2", "fd00:72::1"})
	endpoint := rapid.SampledFrom([]string{"10.71.0.2:80", "10.71.0.3:80", "10.71.0.3:81", "10.71.0.4:80", "[fd00:71::2]:80", "[fd00:71::3]:80"})
	hostIP := rapid.SampledFrom([]string{"", "127.0.0.1", "0.0.0.0", "::", "::1"})
	rules := rapid.Custom(func(t *rapid.T) []network.Rule {
		var all []network.Rule
		for range rapid.IntRange(0, 6).Draw(t, "rules") {
			r := network.Rule{
				Protocol:       rapid.SampledFrom([]network.Protocol{"tcp", "udp"}).Draw(t, "protocol"),
				Port:           rapid.SampledFrom([]uint16{80, 81}).Draw(t, "port"),
				SourceAffinity: rapid.Bool().Draw(t, "affinity"),
			}
			if rapid.Bool().Draw(t, "virtual") {
				r.Address = netip.MustParseAddr(address.Draw(t, "address"))
			} else if ip := hostIP.Draw(t, "host ip"); ip != "" {
				r.HostIP = netip.MustParseAddr(ip)
			}
			for _, e := range rapid.SliceOfN(endpoint, 0, 5).Draw(t, "endpoints") {
				r.Endpoints = append(r.Endpoints, netip.MustParseAddrPort(e))
			}
			all = append(all, r)
		}
		return all
	})
	rapid.Check(t, func(t *rapid.T) {
		b := balance{known: true, hairpin: map[netip.Addr]int{}}
		table := map[element]value{}
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			canonical, err := network.Canonical(rules.Draw(t, "rules"))
			if err != nil {
				continue // contradicting rules change nothing
			}
			next, changed, gone := b.compare(canonical)
			e, counts := b.edit(next, changed, gone)
			del, add := e.difference()
			for el, v := range del {
				if had, ok := table[el]; !ok || had != v {
					t.Fatalf("takes %q, which is not there", el)
				}
				delete(table, el)
			}
			for el, v := range add {
				if _, ok := table[el]; ok {
					t.Fatalf("puts %q, which is there", el)
				}
				table[el] = v
			}
			b.rules = next
			for addr, n := range counts {
				if b.hairpin[addr] += n; b.hairpin[addr] == 0 {
					delete(b.hairpin, addr)
				}
			}
			anew := newEdit()
			for _, r := range canonical {
				anew.put(elementsOf(r))
				for _, e := range r.Endpoints {
					anew.put(hairpin(e.Addr()))
				}
			}
			for el, v := range anew.new {
				if table[el] != v {
					t.Fatalf("%q is %v, want %v", el, table[el], v)
				}
			}
			if len(table) != len(anew.new) {
				t.Fatalf("the table has %d elements, want %d", len(table), len(anew.new))
			}
		}
	})
}

func FuzzParseListener(f *testing.F) {
	f.Add(make([]byte, inetDiagMsgSize))
	f.Fuzz(func(t *testing.T, data []byte) {
		if l, ok := parseListener(data, network.TCP); ok && (l.address.Port() == 0 || !l.address.Addr().IsValid()) {
			t.Fatalf("%x is taken for %+v", data, l)
		}
	})
}
