package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// shop is the zone that most tests ask.
func shop() Zone {
	return Zone{
		Network: "front",
		Listen:  addrs("10.71.0.1"),
		Clients: []netip.Prefix{netip.MustParsePrefix("10.71.0.0/16"), netip.MustParsePrefix("fd00:71::/64")},
		Services: []Service{
			{
				Namespace: "shop", Name: "web",
				Virtual: addrs("10.72.0.1", "fd00:72::1"),
				Tasks: []Task{
					{Slot: "1", Addresses: addrs("10.71.0.11", "fd00:71::11")},
					{Slot: "2", Addresses: addrs("10.71.0.12", "fd00:71::12")},
				},
				Ports: []Port{{Name: "http", Number: 80}, {Name: "dns", Protocol: "udp", Number: 53}, {Number: 9}},
			},
			{Namespace: "shop", Name: "db", Virtual: addrs("10.72.0.2")}, // no ready task
			{Name: "web", Virtual: addrs("10.72.0.3")},                   // of the default namespace
			{
				Namespace: "shop", Name: "pg", Virtual: addrs("10.72.0.4"),
				Tasks: []Task{
					{Slot: "0", Name: "pg-0", Addresses: addrs("10.71.0.20")},
					{Slot: "1", Name: "pg-1", Addresses: addrs("10.71.0.21"), Unready: true},
				},
			},
		},
	}
}

func compiled(t testing.TB, z Zone) *table {
	t.Helper()
	table, err := compile(z, "orchestrate.internal.")
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// What each name is answered, in short: rcode, answers, and who vouches for a
// negative one.
func TestAnswers(t *testing.T) {
	const (
		anyone   = "10.71.0.99" // a client of no known namespace
		shopTask = "10.71.0.11"
	)
	zone := shop()
	table := compiled(t, zone)
	for _, tc := range []struct {
		client, name string
		kind         uint16
		want         string
	}{
		// The service's name, by where the client is.
		{anyone, "web.", dns.TypeA, "NOERROR A 10.72.0.3"},
		{shopTask, "web.", dns.TypeA, "NOERROR A 10.72.0.1"},
		{shopTask, "web.", dns.TypeAAAA, "NOERROR AAAA fd00:72::1"},
		{shopTask, "WeB.", dns.TypeA, "NOERROR A 10.72.0.1"},
		{"fd00:71::12", "web.", dns.TypeA, "NOERROR A 10.72.0.1"},
		{anyone, "web.shop.", dns.TypeA, "NOERROR A 10.72.0.1"},
		{shopTask, "web.default.", dns.TypeA, "NOERROR A 10.72.0.3"},
		{anyone, "web.shop.svc.orchestrate.internal.", dns.TypeAAAA, "NOERROR AAAA fd00:72::1"},
		// Tasks.
		{shopTask, "tasks.web.", dns.TypeA, "NOERROR A 10.71.0.11 A 10.71.0.12"},
		{anyone, "tasks.web.shop.", dns.TypeAAAA, "NOERROR AAAA fd00:71::11 AAAA fd00:71::12"},
		{anyone, "tasks.web.shop.svc.orchestrate.internal.", dns.TypeA, "NOERROR A 10.71.0.11 A 10.71.0.12"},
		{shopTask, "2.web.", dns.TypeA, "NOERROR A 10.71.0.12"},
		{anyone, "2.web.shop.", dns.TypeA, "NOERROR A 10.71.0.12"},
		// Tasks with names, one of them not ready.
		{shopTask, "pg-0.pg.", dns.TypeA, "NOERROR A 10.71.0.20"},
		{anyone, "pg-1.pg.shop.", dns.TypeA, "NOERROR A 10.71.0.21"},
		{anyone, "PG-1.pg.shop.svc.orchestrate.internal.", dns.TypeA, "NOERROR A 10.71.0.21"},
		{shopTask, "0.pg.", dns.TypeA, "NOERROR A 10.71.0.20"},
		{shopTask, "1.pg.", dns.TypeA, "forward"},
		{shopTask, "tasks.pg.", dns.TypeA, "NOERROR A 10.71.0.20"},
		{"10.71.0.21", "web.", dns.TypeA, "NOERROR A 10.72.0.1"}, // it has a namespace already
		{anyone, "21.0.71.10.in-addr.arpa.", dns.TypePTR, "NOERROR PTR pg-1.pg.shop.svc.orchestrate.internal."},
		// Names that exist, without what is asked.
		{shopTask, "db.", dns.TypeAAAA, "NOERROR SOA db."},
		{shopTask, "web.", dns.TypeMX, "NOERROR SOA web."},
		{shopTask, "tasks.db.", dns.TypeA, "NOERROR SOA db."},
		{anyone, "db.shop.svc.orchestrate.internal.", dns.TypeAAAA, "NOERROR SOA orchestrate.internal."},
		{anyone, "shop.svc.orchestrate.internal.", dns.TypeA, "NOERROR SOA orchestrate.internal."},
		{anyone, "svc.orchestrate.internal.", dns.TypeA, "NOERROR SOA orchestrate.internal."},
		{anyone, "orchestrate.internal.", dns.TypeNS, "NOERROR SOA orchestrate.internal."},
		{anyone, "_tcp.web.shop.svc.orchestrate.internal.", dns.TypeA, "NOERROR SOA orchestrate.internal."},
		{shopTask, "web.", dns.TypeANY, "NOERROR HINFO"},
		// Names that do not exist, and are asked nobody else.
		{shopTask, "nothing.", dns.TypeA, "NXDOMAIN SOA nothing."},
		{anyone, "db.", dns.TypeA, "NXDOMAIN SOA db."},
		{anyone, "nothing.shop.svc.orchestrate.internal.", dns.TypeA, "NXDOMAIN SOA orchestrate.internal."},
		{anyone, "3.web.shop.svc.orchestrate.internal.", dns.TypeA, "NXDOMAIN SOA orchestrate.internal."},
		{anyone, "evilorchestrate.internal.", dns.TypeA, "forward"},
		// Ports.
		{shopTask, "_http._tcp.web.", dns.TypeSRV, "NOERROR SRV web.shop.svc.orchestrate.internal.:80"},
		{anyone, "_dns._udp.web.shop.svc.orchestrate.internal.", dns.TypeSRV, "NOERROR SRV web.shop.svc.orchestrate.internal.:53"},
		{anyone, "_none._tcp.web.shop.svc.orchestrate.internal.", dns.TypeSRV, "NXDOMAIN SOA orchestrate.internal."},
		// Addresses.
		{anyone, "1.0.72.10.in-addr.arpa.", dns.TypePTR, "NOERROR PTR web.shop.svc.orchestrate.internal."},
		{anyone, "12.0.71.10.in-addr.arpa.", dns.TypePTR, "NOERROR PTR 2.web.shop.svc.orchestrate.internal."},
		{anyone, "1.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.7.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, "NOERROR PTR 1.web.shop.svc.orchestrate.internal."},
		{anyone, "77.0.71.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN SOA arpa."},
		{anyone, "1.0.72.10.in-addr.arpa.", dns.TypeA, "NOERROR SOA arpa."},
		{anyone, "8.8.8.8.in-addr.arpa.", dns.TypePTR, "forward"},
		{anyone, "0.72.10.in-addr.arpa.", dns.TypePTR, "forward"},
		{anyone, "x.ip6.arpa.", dns.TypePTR, "forward"},
		// The rest of the world.
		{anyone, "example.com.", dns.TypeA, "forward"},
		{anyone, "web.nowhere.", dns.TypeA, "forward"},
		{anyone, ".", dns.TypeNS, "forward"},
		// Who is not of the network.
		{"198.51.100.2", "web.shop.", dns.TypeA, "REFUSED"},
		{"198.51.100.2", "example.com.", dns.TypeA, "REFUSED"},
		{"10.71.0.1", "web.shop.", dns.TypeA, "NOERROR A 10.72.0.1"}, // the node itself
	} {
		req := new(dns.Msg)
		req.SetQuestion(tc.name, tc.kind)
		m, v := table.answer(req, netip.MustParseAddr(tc.client), 1)
		if got := brief(m, v); got != tc.want {
			t.Errorf("%s asks %s %s: got %q, want %q", tc.client, tc.name, dns.TypeToString[tc.kind], got, tc.want)
		}
	}
	zone.Internal = true
	req := new(dns.Msg)
	req.SetQuestion("example.com.", dns.TypeA)
	if got := brief(compiled(t, zone).answer(req, netip.MustParseAddr(anyone), 1)); got != "REFUSED" {
		t.Errorf("an internal network asks example.com: got %q, want REFUSED", got)
	}
}

func brief(m *dns.Msg, v verdict) string {
	switch v {
	case drop:
		return "drop"
	case forward:
		return "forward"
	}
	words := []string{}
	for _, rr := range m.Answer {
		word := dns.TypeToString[rr.Header().Rrtype]
		switch rr := rr.(type) {
		case *dns.A:
			word += " " + rr.A.String()
		case *dns.AAAA:
			word += " " + rr.AAAA.String()
		case *dns.PTR:
			word += " " + rr.Ptr
		case *dns.SRV:
			word += fmt.Sprintf(" %s:%d", rr.Target, rr.Port)
		}
		words = append(words, word)
	}
	slices.Sort(words) // tasks come shuffled
	for _, rr := range m.Ns {
		words = append(words, dns.TypeToString[rr.Header().Rrtype]+" "+rr.Header().Name)
	}
	return strings.Join(append([]string{dns.RcodeToString[m.Rcode]}, words...), " ")
}

func TestTasksComeShuffled(t *testing.T) {
	table := compiled(t, shop())
	first := map[string]bool{}
	for range 64 { // always the same one by chance: 2^-63
		req := new(dns.Msg)
		req.SetQuestion("tasks.web.shop.", dns.TypeA)
		m, _ := table.answer(req, netip.MustParseAddr("10.71.0.11"), 1)
		first[m.Answer[0].(*dns.A).A.String()] = true
	}
	if len(first) != 2 {
		t.Errorf("the first address was always one of %v, want both tasks to be first at times", first)
	}
}

func TestMessagesThatAreNoQuestions(t *testing.T) {
	table := compiled(t, shop())
	client := netip.MustParseAddr("10.71.0.11")
	for name, tc := range map[string]struct {
		change func(*dns.Msg)
		want   string
	}{
		"a reply":           {func(m *dns.Msg) { m.Response = true }, "drop"},
		"an update":         {func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, "NOTIMP"},
		"no question":       {func(m *dns.Msg) { m.Question = nil }, "FORMERR"},
		"two questions":     {func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, "FORMERR"},
		"of class CHAOS":    {func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, "REFUSED"},
		"of a future EDNS0": {func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, "BADVERS"},
	} {
		req := new(dns.Msg)
		req.SetQuestion("web.shop.", dns.TypeA)
		tc.change(req)
		got := brief(table.answer(req, client, 1))
		if tc.want == "BADVERS" {
			got = strings.Replace(got, "BADSIG", "BADVERS", 1) // one number, two names
		}
		if got != tc.want {
			t.Errorf("%s: got %q, want %q", name, got, tc.want)
		}
	}
	// What cannot be parsed gets FORMERR where there is a header to answer.
	out, _, v := table.respond([]byte{1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 63}, client, 1, true)
	if v != reply || out[0] != 1 || out[1] != 2 || out[3]&0xf != dns.RcodeFormatError {
		t.Errorf("half a question: %v, %v, want FORMERR with its ID", out, v)
	}
	if _, _, v := table.respond([]byte{1, 2, 3}, client, 1, true); v != drop {
		t.Errorf("three bytes: verdict %v, want drop", v)
	}
}

// An answer that does not fit is cut, and says so.
func TestTruncation(t *testing.T) {
	zone := shop()
	for i := range 200 {
		zone.Services[0].Tasks = append(zone.Services[0].Tasks, Task{Slot: fmt.Sprint(i + 10), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 71, 1, byte(i)})}})
	}
	table := compiled(t, zone)
	ask := func(edns uint16, udp bool) *dns.Msg {
		req := new(dns.Msg)
		req.SetQuestion("tasks.web.shop.", dns.TypeA)
		if edns > 0 {
			req.SetEdns0(edns, false)
		}
		packet, err := req.Pack()
		if err != nil {
			t.Fatal(err)
		}
		out, _, _ := table.respond(packet, netip.MustParseAddr("10.71.0.11"), 1, udp)
		limit := 65535
		if udp {
			limit = max(512, min(int(edns), maxUDP))
		}
		if len(out) > limit {
			t.Errorf("edns %d, udp %v: %d bytes, want at most %d", edns, udp, len(out), limit)
		}
		m := new(dns.Msg)
		if err := m.Unpack(out); err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, edns := range []uint16{0, 512, 1232, 4096} {
		if m := ask(edns, true); !m.Truncated || len(m.Answer) == 0 {
			t.Errorf("edns %d: truncated %v with %d answers, want some and the flag", edns, m.Truncated, len(m.Answer))
		}
	}
	if m := ask(0, false); m.Truncated || len(m.Answer) != 202 {
		t.Errorf("over TCP: truncated %v with %d answers, want all 202", m.Truncated, len(m.Answer))
	}
}

func TestSetRefusesBadZones(t *testing.T) {
	s := New(Options{})
	defer s.Close() //nolint:errcheck // listens nowhere
	for field, change := range map[string]func(*Zone){
		"listen":      func(z *Zone) { z.Listen = addrs("0.0.0.0") },
		"clients":     func(z *Zone) { z.Clients = nil },
		"services[0]": func(z *Zone) { z.Services[0].Name = "a.b" },
		"services[1]": func(z *Zone) { z.Services[1].Name = "web" },
		"services[2]": func(z *Zone) { z.Services[2].Tasks = []Task{{Slot: "tasks"}} },
		"services[3]": func(z *Zone) { z.Services[3].Tasks[1].Name = "0" }, // a slot's label
	} {
		z := shop()
		change(&z)
		err, ok := s.Set([]Zone{z}).(*ZoneError)
		if !ok || err.Field != field || err.Network != "front" {
			t.Errorf("Set with bad %s = %v, want a *ZoneError about it", field, err)
		}
	}
}

func FuzzRespond(f *testing.F) {
	for _, name := range []string{"web.", "tasks.web.shop.", "example.com.", "1.0.72.10.in-addr.arpa.", "_http._tcp.web."} {
		m := new(dns.Msg)
		m.SetQuestion(name, dns.TypeA)
		m.SetEdns0(1232, true)
		packet, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packet, true)
	}
	f.Add([]byte{0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0}, false)
	table := compiled(f, shop())
	client := netip.MustParseAddr("10.71.0.11")
	f.Fuzz(func(t *testing.T, packet []byte, udp bool) {
		out, req, v := table.respond(packet, client, 1, udp)
		switch v {
		case drop:
			return
		case forward:
			if len(req.Question) != 1 {
				t.Fatalf("forwards a message with %d questions", len(req.Question))
			}
			return
		}
		if len(packet) < 12 || packet[2]&0x80 != 0 {
			t.Fatalf("answers what is no question: %x", packet)
		}
		m := new(dns.Msg)
		if err := m.Unpack(out); err != nil {
			t.Fatalf("the answer %x to %x cannot be read: %v", out, packet, err)
		}
		if !m.Response || m.Id != uint16(packet[0])<<8|uint16(packet[1]) {
			t.Fatalf("the answer to %x has another ID or is none: %v", packet, m)
		}
		if udp && len(out) > maxUDP {
			t.Fatalf("%d bytes over UDP", len(out))
		}
	})
}

func FuzzReverse(f *testing.F) {
	for _, s := range []string{"10.72.0.1", "fd00:72::1", "::", "255.255.255.255"} {
		name, err := dns.ReverseAddr(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		a, ok := reverse(name)
		if !ok {
			return
		}
		back, err := dns.ReverseAddr(a.String())
		if err != nil {
			t.Fatal(err)
		}
		if b, ok := reverse(back); !ok || b != a {
			t.Fatalf("%s is %s, whose name %s is %s", name, a, back, b)
		}
	})
}
