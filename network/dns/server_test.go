package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// anyPort is a network on which every address is 127.0.0.1 with a port of its
// own.
type anyPort struct {
	system
	mu    sync.Mutex // guards addresses
	addrs map[string]string
	fail  string // network on which listening fails
}

func (n *anyPort) note(network, address string, real net.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.addrs == nil {
		n.addrs = map[string]string{}
	}
	n.addrs[network+" "+address] = real.String()
}

func (n *anyPort) at(network, address string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.addrs[network+" "+address]
}

func (n *anyPort) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	if network == n.fail {
		return nil, errors.New("injected")
	}
	l, err := n.system.Listen(ctx, network, "127.0.0.1:0")
	if err == nil {
		n.note(network, address, l.Addr())
	}
	return l, err
}

func (n *anyPort) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	c, err := n.system.ListenPacket(ctx, network, "127.0.0.1:0")
	if err == nil {
		n.note(network, address, c.LocalAddr())
	}
	return c, err
}

// start runs a server until the test ends.
func start(t testing.TB, s *Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v, want the cause of its context", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close after Run = %v", err)
		}
		if err := s.Set(nil); !errors.Is(err, ErrClosed) {
			t.Errorf("Set after Close = %v, want ErrClosed", err)
		}
	})
}

// local is shop with clients at 127.0.0.1.
func local() Zone {
	z := shop()
	z.Clients = append(z.Clients, netip.MustParsePrefix("127.0.0.0/8"))
	return z
}

func ask(t testing.TB, network, server, name string, kind uint16) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, kind)
	c := &dns.Client{Net: network, Timeout: 5 * time.Second}
	in, _, err := c.Exchange(m, server)
	if err != nil {
		t.Fatalf("ask %s over %s: %v", name, network, err)
	}
	return in
}

func TestServerAnswers(t *testing.T) {
	n := &anyPort{}
	s := New(Options{Network: n, Upstream: []netip.AddrPort{}})
	start(t, s)
	if err := s.Set([]Zone{local()}); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		at := n.at(network, "10.71.0.1:53")
		if got := brief(ask(t, network, at, "web.shop.", dns.TypeA), reply); got != "NOERROR A 10.72.0.1" {
			t.Errorf("%s: got %q, want the virtual address", network, got)
		}
		if got := brief(ask(t, network, at, "example.com.", dns.TypeA), reply); got != "REFUSED" {
			t.Errorf("%s, without upstream servers: got %q, want REFUSED", network, got)
		}
	}
	// Set replaces what is answered; the socket stays.
	at := n.at("udp", "10.71.0.1:53")
	z := local()
	z.Services[0].Virtual = addrs("10.72.0.9")
	if err := s.Set([]Zone{z}); err != nil {
		t.Fatal(err)
	}
	if got := brief(ask(t, "udp", at, "web.shop.", dns.TypeA), reply); got != "NOERROR A 10.72.0.9" {
		t.Errorf("after Set: got %q, want the new address", got)
	}
	if n.at("udp", "10.71.0.1:53") != at {
		t.Error("Set opened the socket again")
	}
	// A Set that fails changes nothing.
	n.fail = "tcp"
	other := Zone{Network: "back", Listen: addrs("10.73.0.1"), Clients: local().Clients}
	if err := s.Set([]Zone{other}); err == nil {
		t.Error("Set with an address that cannot be listened on succeeds")
	}
	if got := brief(ask(t, "udp", at, "web.shop.", dns.TypeA), reply); got != "NOERROR A 10.72.0.9" {
		t.Errorf("after a failed Set: got %q, want what was before", got)
	}
	n.fail = ""
	// Two networks answer for themselves.
	if err := s.Set([]Zone{z, other}); err != nil {
		t.Fatal(err)
	}
	if got := brief(ask(t, "udp", n.at("udp", "10.73.0.1:53"), "web.shop.svc.orchestrate.internal.", dns.TypeA), reply); got != "NXDOMAIN SOA orchestrate.internal." {
		t.Errorf("a service of another network: got %q, want NXDOMAIN", got)
	}
	// A network that is gone is not listened for.
	if err := s.Set([]Zone{other}); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", n.at("tcp", "10.71.0.1:53")); err == nil {
		_ = c.Close()
		t.Error("a removed zone's address is still listened on")
	}
}

// upstream is a server of the outer world: it knows one name, and truncates
// over UDP what is asked for as big.
func upstream(t testing.TB) netip.AddrPort {
	t.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		_, udp := w.RemoteAddr().(*net.UDPAddr)
		switch r.Question[0].Name {
		case "example.com.":
			m.Answer = []dns.RR{addressRecord("example.com.", netip.MustParseAddr("192.0.2.7"), 60)}
		case "big.example.com.":
			if udp {
				m.Truncated = true
				break
			}
			for i := range 100 {
				m.Answer = append(m.Answer, addressRecord("big.example.com.", netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 60))
			}
		case "silent.example.com.":
			return
		default:
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m) // the test times out
	})
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", packets.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: listener, Handler: handler}} {
		var wg sync.WaitGroup
		ready := make(chan struct{})
		server.NotifyStartedFunc = func() { close(ready) }
		wg.Go(func() { _ = server.ActivateAndServe() })
		<-ready
		t.Cleanup(func() { _ = server.Shutdown(); wg.Wait() })
	}
	return netip.MustParseAddrPort(packets.LocalAddr().String())
}

func TestForwarding(t *testing.T) {
	n := &anyPort{}
	up := upstream(t)
	dead := netip.MustParseAddrPort("127.0.0.1:1")
	s := New(Options{Network: n, Upstream: []netip.AddrPort{dead, up}, Timeout: 300 * time.Millisecond})
	start(t, s)
	if err := s.Set([]Zone{local()}); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		at := n.at(network, "10.71.0.1:53")
		for name, want := range map[string]string{
			"example.com.":         "NOERROR A 192.0.2.7",
			"nothing.example.com.": "NXDOMAIN",
			"silent.example.com.":  "SERVFAIL",
		} {
			if got := brief(ask(t, network, at, name, dns.TypeA), reply); got != want {
				t.Errorf("%s: %s: got %q, want %q", network, name, got, want)
			}
		}
		m := ask(t, network, at, "big.example.com.", dns.TypeA)
		if network == "tcp" && (m.Truncated || len(m.Answer) != 100) {
			t.Errorf("big answer over TCP: truncated %v with %d records, want all 100", m.Truncated, len(m.Answer))
		}
		if network == "udp" && (!m.Truncated || len(m.Answer) == 0) {
			t.Errorf("big answer over UDP: truncated %v with %d records, want some and the flag", m.Truncated, len(m.Answer))
		}
	}
}

// More questions than Concurrency are answered, if only that it is too much.
func TestForwardingIsBounded(t *testing.T) {
	n := &anyPort{}
	s := New(Options{Network: n, Upstream: []netip.AddrPort{upstream(t)}, Concurrency: 2, Timeout: time.Second})
	start(t, s)
	if err := s.Set([]Zone{local()}); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp", n.at("udp", "10.71.0.1:53"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the end of the test
	conn := &dns.Conn{Conn: c}
	const asked = 20
	for range asked {
		m := new(dns.Msg)
		m.SetQuestion("silent.example.com.", dns.TypeA)
		if err := conn.WriteMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for i := range asked {
		m, err := conn.ReadMsg()
		if err != nil || m.Rcode != dns.RcodeServerFailure {
			t.Fatalf("answer %d of %d: %v, %v, want SERVFAIL", i+1, asked, m, err)
		}
	}
}

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(content string) {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := &resolvConf{path: path}
	if got := r.servers(); len(got) != 0 {
		t.Errorf("without a file: %v, want none", got)
	}
	write("nameserver 192.0.2.1\nnameserver fd00::53\nsearch x\n")
	if got := fmt.Sprint(r.servers()); got != "[192.0.2.1:53 [fd00::53]:53]" {
		t.Errorf("servers = %s", got)
	}
	write("nameserver 192.0.2.22\n")
	if got := fmt.Sprint(r.servers()); got != "[192.0.2.22:53]" {
		t.Errorf("servers after a change = %s", got)
	}
	// Never itself: that would go round for ever.
	n := &anyPort{}
	s := New(Options{Network: n})
	defer s.Close() //nolint:errcheck // listened on by nobody
	s.files.path = path
	write("nameserver 10.71.0.1\nnameserver 192.0.2.1\n")
	if err := s.Set([]Zone{local()}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s.upstream()); got != "[192.0.2.1:53]" {
		t.Errorf("upstream = %s, want without the server's own address", got)
	}
}

// One client that asks and waits, over UDP on loopback: the rate is that of
// one loop of the server.
func BenchmarkServer(b *testing.B) {
	n := &anyPort{}
	s := New(Options{Network: n})
	start(b, s)
	z := local()
	for i := range 1000 {
		z.Services = append(z.Services, Service{Namespace: "load", Name: fmt.Sprintf("s%d", i), Virtual: addrs("10.72.1.1")})
	}
	if err := s.Set([]Zone{z}); err != nil {
		b.Fatal(err)
	}
	at := n.at("udp", "10.71.0.1:53")
	req := new(dns.Msg)
	req.SetQuestion("s500.load.", dns.TypeA)
	packet, err := req.Pack()
	if err != nil {
		b.Fatal(err)
	}
	b.RunParallel(func(pb *testing.PB) {
		c, err := net.Dial("udp", at)
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close() //nolint:errcheck // the end
		buf := make([]byte, 1500)
		for pb.Next() {
			if _, err := c.Write(packet); err != nil {
				b.Error(err)
				return
			}
			if _, err := c.Read(buf); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
}

func BenchmarkRespond(b *testing.B) {
	table := compiled(b, shop())
	req := new(dns.Msg)
	req.SetQuestion("web.shop.", dns.TypeA)
	packet, err := req.Pack()
	if err != nil {
		b.Fatal(err)
	}
	client := netip.MustParseAddr("10.71.0.11")
	b.ReportAllocs()
	for b.Loop() {
		if _, _, v := table.respond(packet, client, 1, true); v != reply {
			b.Fatal(v)
		}
	}
}
