//go:build linux

package fastpath

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network/internal/conntrack"
)

func TestFarSide(t *testing.T) {
	sent := tuple(unix.IPPROTO_TCP, "10.1.0.2:4000", "10.9.0.1:80")
	far := tuple(unix.IPPROTO_TCP, "10.2.0.9:8080", "10.1.0.2:4000")
	udp := func(t conntrack.Tuple) conntrack.Tuple { t.Protocol = unix.IPPROTO_UDP; return t }
	const open = conntrack.Confirmed | conntrack.SeenReply
	for _, c := range []struct {
		name string
		f    conntrack.Flow
		sent conntrack.Tuple
		want conntrack.Tuple // the zero value if it must not pass
	}{
		{"the task has begun it", conntrack.Flow{Original: sent, Reply: far, Status: open, Established: true}, sent, far},
		{"the other end has begun it", conntrack.Flow{Original: far, Reply: sent, Status: open, Established: true}, sent, far},
		{"translated", conntrack.Flow{Original: sent, Reply: far, Status: open | conntrack.SourceNAT | conntrack.DestinationNAT, Established: true}, sent, far},
		{"UDP", conntrack.Flow{Original: udp(sent), Reply: udp(far), Status: open}, udp(sent), udp(far)},
		{"not answered", conntrack.Flow{Original: sent, Reply: far, Status: conntrack.Confirmed, Established: true}, sent, conntrack.Tuple{}},
		{"not confirmed", conntrack.Flow{Original: sent, Reply: far, Status: conntrack.SeenReply, Established: true}, sent, conntrack.Tuple{}},
		{"not open both ways", conntrack.Flow{Original: sent, Reply: far, Status: open}, sent, conntrack.Tuple{}},
		{"dying", conntrack.Flow{Original: sent, Reply: far, Status: open | conntrack.Dying, Established: true}, sent, conntrack.Tuple{}},
		{"with a helper", conntrack.Flow{Original: sent, Reply: far, Status: open | conntrack.Helper, Established: true}, sent, conntrack.Tuple{}},
		{"with other sequence numbers", conntrack.Flow{Original: sent, Reply: far, Status: open | conntrack.SequenceAdjust, Established: true}, sent, conntrack.Tuple{}},
		{"another flow", conntrack.Flow{Original: sent, Reply: far, Status: open, Established: true}, sent.Back(), conntrack.Tuple{}},
	} {
		if got, err := farSide(c.f, c.sent); got != c.want || (err == nil) != (c.want != conntrack.Tuple{}) {
			t.Errorf("%s: the far side sends %v, %v, want %v", c.name, got, err, c.want)
		}
	}
}

func TestBudget(t *testing.T) {
	var b budget
	now := time.Unix(100, 0)
	for _, at := range []time.Duration{0, time.Second, 5 * time.Second} {
		for task := range uint32(mostAsked / mostAskedEach) {
			for range mostAskedEach {
				if !b.spend(now.Add(at), task) {
					t.Fatalf("less than what may be asked is refused after %v", at)
				}
			}
			if b.spend(now.Add(at+999*time.Millisecond), task) {
				t.Fatalf("a task's share has no end after %v", at)
			}
		}
		if b.spend(now.Add(at+999*time.Millisecond), mostAsked) {
			t.Fatalf("more than what may be asked is not refused after %v", at)
		}
	}
}

func TestKeyIsATuple(t *testing.T) {
	for _, want := range []conntrack.Tuple{
		tuple(unix.IPPROTO_TCP, "10.1.0.2:4000", "10.9.0.1:80"), tuple(unix.IPPROTO_UDP, "[fd01::2]:258", "[fd09::1]:65535"),
	} {
		k := keyOf(7, want)
		if got := k.tuple(); got != want || k.Interface != 7 {
			t.Errorf("the key of %v has %v and the interface %d, want 7", want, got, k.Interface)
		}
		data, err := binary.Append(nil, binary.NativeEndian, k)
		check(t, err)
		var read key
		if !read.decode(data) || read != k {
			t.Errorf("%v is read as %v", k, read)
		}
		if read.decode(data[:len(data)-1]) {
			t.Errorf("%d bytes are read as a key, want %d", len(data)-1, len(data))
		}
	}
}

// A program calls once a task has sent so many packets by a flow that is not known,
// and each time that it has sent twice as many.
func TestBusy(t *testing.T) {
	l := newLab(t, false)
	for _, r := range trips() {
		if r.in {
			continue
		}
		var calls []int
		var record ringbuf.Record
		for n := 1; n <= 40; n++ {
			action, _, err := r.show(l, r.packet().bytes(), 0)
			check(t, err)
			if action != actUnspecified {
				t.Fatalf("%s: the program said %d of a flow that is not known", r.name, int32(action))
			}
			l.p.busy.SetDeadline(time.Unix(1, 0)) // what is there is there
			err = l.p.busy.ReadInto(&record)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
			check(t, err)
			calls = append(calls, n)
			var k key
			if !k.decode(record.RawSample) || k != keyOf(l.port, r.sent) {
				t.Errorf("%s: the program calls of %v", r.name, k)
			}
		}
		if got := fmt.Sprint(calls); got != "[4 8 16 32]" {
			t.Errorf("%s: the program calls after %s packets, want [4 8 16 32]", r.name, got)
		}
	}
	// What begins or ends a connection is no reason to know it.
	p := trips()[0].packet()
	p.Tuple, p.flags = tuple(unix.IPPROTO_TCP, "10.1.0.2:9", "10.2.0.9:80"), syn
	for range 40 {
		_, _, err := l.run(l.p.kernel.FromTask, l.port, p.bytes(), 0)
		check(t, err)
	}
	l.p.busy.SetDeadline(time.Unix(1, 0))
	var record ringbuf.Record
	if err := l.p.busy.ReadInto(&record); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("of connections that begin the program calls: %v", err)
	}
}

// A packet of a flow that is known, and that connection tracking is to see, is no
// reason to know it.
func TestKnownIsNotCounted(t *testing.T) {
	l := newLab(t, false)
	r := trips()[0]
	for range 10 {
		l.know(r.sent, r.goes, l.p.opts.Refresh+time.Minute)
		action, _, err := r.show(l, r.packet().bytes(), 0)
		check(t, err)
		if action != actUnspecified {
			t.Fatalf("the program said %d of a packet that is due, want %d", int32(action), int32(-1))
		}
	}
	l.p.busy.SetDeadline(time.Unix(1, 0))
	var record ringbuf.Record
	if err := l.p.busy.ReadInto(&record); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("of a flow that is known the program calls: %v", err)
	}
}

// said is a slog.Handler that hands on messages.
type said chan string

func (s said) Enabled(context.Context, slog.Level) bool { return true }
func (s said) WithAttrs([]slog.Attr) slog.Handler       { return s }
func (s said) WithGroup(string) slog.Handler            { return s }
func (s said) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += fmt.Sprintf(" %s=%v", a.Key, a.Value); return true })
	s <- text
	return nil
}

func TestRunAsksAboutWhatIsBusy(t *testing.T) {
	l := newLab(t, false)
	log := make(said)
	l.p.log = slog.New(log)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.p.Run(ctx) }()
	r := trips()[0]
	for range 4 {
		_, _, err := r.show(l, r.packet().bytes(), 0)
		check(t, err)
	}
	// Nobody has sent it by the kernel's own way.
	if got := <-log; !strings.Contains(got, "10.1.0.2:4000") || !strings.Contains(got, unix.ENOENT.Error()) {
		t.Errorf("of a flow that connection tracking does not know, Run says %q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run ends with %v", err)
	}
}

// road is a lab whose node lets packets of tasks by as a node does: by a table that
// translates, and connection tracking.
type road struct {
	*lab
	task, wire, far *tap
}

func newRoad(t *testing.T, underlay6 bool) *road {
	l := newLab(t, underlay6)
	d := &road{l, l.task.tap(t, "eth0"), l.peer.tap(t, "wire"), l.peer.tap(t, "vx")}
	for to, addr := range map[string]string{"10.1.0.0/24": "10.1.0.2", "fd01::/64": "fd01::2"} {
		l.node.neighbour(t, l.port, addr, macTask)
		l.node.route(t, l.port, to, "")
	}
	rules, err := nftables.New(nftables.WithNetNSFd(int(l.node.ns.Fd())))
	check(t, err)
	table := rules.AddTable(&nftables.Table{Name: "test", Family: nftables.TableFamilyINet})
	pre := rules.AddChain(&nftables.Chain{Name: "pre", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	post := rules.AddChain(&nftables.Chain{Name: "post", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	for _, r := range trips() {
		if r.in || r.sent == r.goes {
			continue
		}
		family := byte(unix.NFPROTO_IPV4)
		if r.sent.Src.Addr().Is6() {
			family = unix.NFPROTO_IPV6
		}
		of := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{r.sent.Protocol}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, r.sent.Src.Port())},
		}
		for chain, to := range map[*nftables.Chain]netip.AddrPort{pre: r.goes.Dst, post: r.goes.Src} {
			kind := expr.NATTypeDestNAT
			if chain == post {
				kind = expr.NATTypeSourceNAT
			}
			rules.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(of[:len(of):len(of)],
				&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
				&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
				&expr.NAT{Type: kind, Family: uint32(family), RegAddrMin: 1, RegProtoMin: 2, Specified: true},
			)})
		}
	}
	check(t, rules.Flush())
	return d
}

// there and back send a packet of a trip by the kernel's own way, and return when it
// is there.
func (d *road) there(r trip, flags uint8, sequence uint32) {
	d.Helper()
	p := packet{Tuple: r.sent, toMAC: macPort, fromMAC: macTask, ttl: 64, flags: flags, sequence: sequence}
	d.task.send(vnet{}, p.bytes())
	if r.vxlan {
		d.far.next(mark(r.goes))
	} else {
		d.wire.next(mark(r.goes))
	}
}

func (d *road) back(r trip, flags uint8, sequence uint32) {
	d.Helper()
	p := packet{Tuple: r.goes.Back(), toMAC: macUplink, fromMAC: macWire, ttl: 64, flags: flags, sequence: sequence}
	if r.vxlan {
		p.toMAC, p.fromMAC = macVXLAN, macFar
		d.far.send(vnet{}, p.bytes())
	} else {
		d.wire.send(vnet{}, p.bytes())
	}
	d.task.next(mark(r.sent.Back()))
}

// open begins a flow, both ways.
func (d *road) open(r trip) {
	d.Helper()
	if r.sent.Protocol == unix.IPPROTO_UDP {
		d.there(r, 0, 0)
		d.back(r, 0, 0)
		return
	}
	d.there(r, syn, 0)
	d.back(r, syn|ack, 0)
	d.there(r, ack, 1)
}

// mark is what a packet has of a tuple in its headers.
func mark(t conntrack.Tuple) []byte {
	b := append(t.Src.Addr().AsSlice(), t.Dst.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, t.Src.Port())
	return binary.BigEndian.AppendUint16(b, t.Dst.Port())
}

func (d *road) wantKnown(r trip, known bool, why string) {
	d.Helper()
	_, out := d.known(keyOf(d.port, r.sent))
	_, in := d.known(keyOf(0, r.goes.Back()))
	_, noted := d.p.known[keyOf(d.port, r.sent)]
	if out != known || in != known || noted != known {
		d.Errorf("%s, %s: the flow is known: to the program as it goes %v, as it comes %v, and noted %v, want %v", r.name, why, out, in, noted, known)
	}
}

// A flow is learnt once connection tracking has it open both ways, with what is
// done to its packets; and forgotten when it has it no more.
func TestLearn(t *testing.T) {
	for _, underlay := range []string{"IPv4", "IPv6"} {
		d := newRoad(t, underlay == "IPv6")
		for _, r := range trips() {
			if r.in {
				continue
			}
			t.Run(fmt.Sprintf("underlay of %s/%s", underlay, r.name), func(t *testing.T) {
				d.TB, d.task.TB, d.wire.TB, d.far.TB = t, t, t, t
				k := keyOf(d.port, r.sent)
				if err := d.p.learn(k); !errors.Is(err, unix.ENOENT) {
					t.Errorf("a flow that nobody has sent by: %v, want %v", err, unix.ENOENT)
				}
				steps := []func(){func() { d.there(r, 0, 0) }, func() { d.back(r, 0, 0) }}
				if r.sent.Protocol == unix.IPPROTO_TCP {
					steps = []func(){func() { d.there(r, syn, 0) }, func() { d.back(r, syn|ack, 0) }, func() { d.there(r, ack, 1) }}
				}
				for i, step := range steps {
					step()
					if i == len(steps)-1 {
						break
					}
					if err := d.p.learn(k); err == nil {
						t.Errorf("a flow is learnt after %d packets, want it to be open both ways", i+1)
					}
					d.wantKnown(r, false, "not open")
				}
				check(t, d.p.learn(k))
				d.wantKnown(r, true, "learnt")
				entry, err := d.p.flows.Get(r.sent)
				check(t, err)
				if tcp := r.sent.Protocol == unix.IPPROTO_TCP; entry.Loose != tcp {
					t.Errorf("connection tracking minds sequence numbers: %v, want %v", !entry.Loose, !tcp)
				}
				var n uint32
				if err := d.p.kernel.Sent.Lookup(k, &n); !errors.Is(err, ebpf.ErrKeyNotExist) {
					t.Errorf("packets of a flow that is known are counted: %d, %v", n, err)
				}
				// What is known is what the program is tested with elsewhere.
				out, _ := d.known(k)
				gotIn, _ := d.known(keyOf(0, r.goes.Back()))
				d.know(r.sent, r.goes, 0)
				wantOut, _ := d.known(k)
				wantIn, _ := d.known(keyOf(0, r.goes.Back()))
				for _, f := range []*flow{&out, &gotIn, &wantOut, &wantIn} {
					f.Checked = 0
				}
				if out != wantOut || gotIn != wantIn {
					t.Errorf("learnt is\n%v\n%v, want\n%v\n%v", out, gotIn, wantOut, wantIn)
				}
				for _, protocol := range []uint8{0, unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
					d.p.Verify(protocol)
					d.wantKnown(r, true, "verified")
				}
				check(t, d.p.flows.Delete(entry))
				d.p.Verify(unix.IPPROTO_TCP + unix.IPPROTO_UDP - r.sent.Protocol)
				d.wantKnown(r, true, "with the other protocol verified")
				d.p.Verify(r.sent.Protocol)
				d.wantKnown(r, false, "deleted from connection tracking")

				d.open(r)
				check(t, d.p.learn(k))
				check(t, d.p.kernel.Flows.Delete(keyOf(0, r.goes.Back())))
				d.p.Verify(0)
				d.wantKnown(r, false, "ended by a packet to the task")

				check(t, d.p.learn(k))
				f, _ := d.known(k)
				f.Checked -= uint64(2*d.p.opts.Idle + time.Minute)
				check(t, d.p.kernel.Flows.Put(k, f))
				d.p.Verify(0)
				d.wantKnown(r, false, "silent for long")

				check(t, d.p.learn(k))
				if s, err := d.p.Stats(); err != nil || s.Flows != 1 {
					t.Errorf("%d flows are known, %v, want 1", s.Flows, err)
				}
				port := d.p.ports["task"]
				d.p.RemovePort("task")
				d.wantKnown(r, false, "its task gone")
				if err := d.p.learn(k); err == nil {
					t.Error("a flow of a task that is gone is learnt")
				}
				check(t, d.p.SetPort("task", port))

				check(t, d.p.learn(k))
				other := port
				other.MAC = macFar[:]
				check(t, d.p.SetPort("task", other))
				d.wantKnown(r, false, "its port replaced")
				check(t, d.p.SetPort("task", port))

				for name, change := range map[string]func(*Port){
					"no address of the task's":    func(p *Port) { p.Addresses = []netip.Addr{netip.MustParseAddr("10.1.0.3")} },
					"an end outside the network":  func(p *Port) { p.Whole = p.Own },
					"an end on the node itself":   func(p *Port) { p.Own = p.Whole },
					"another interface than that": func(p *Port) { p.Link = d.uplink + 100 },
				} {
					other := port
					change(&other)
					d.p.ports["task"] = other
					if err := d.p.learn(k); err == nil {
						t.Errorf("a flow is learnt with %s", name)
					}
					d.wantKnown(r, false, name)
				}
				d.p.ports["task"] = port

				check(t, d.p.learn(k))
				if r.sent.Protocol == unix.IPPROTO_TCP {
					d.there(r, fin|ack, 1)
					if _, ok := d.known(k); ok {
						t.Error("a packet that ends the connection has not ended the flow")
					}
					if err := d.p.learn(k); err == nil {
						t.Error("a connection that ends is learnt")
					}
					d.p.Verify(0)
					d.wantKnown(r, false, "ended")
				}
				check(t, d.p.Reset())
				d.wantKnown(r, false, "reset")
				d.set()
			})
		}
	}
}

// A connection is doubted when its other end has said nothing for long, which was
// heard before; and not when it was never heard, or is answered. It is no longer when
// the other end is heard again.
func TestDoubt(t *testing.T) {
	d := newRoad(t, false)
	r := trips()[0]
	out, in := keyOf(d.port, r.sent), keyOf(0, r.goes.Back())
	d.open(r)
	check(t, d.p.learn(out))
	learnt := d.p.known[out].learnt - int64(time.Hour)
	f := d.p.known[out]
	f.learnt = learnt
	d.p.known[out] = f
	for _, step := range []struct {
		what       string
		sent, back time.Duration // after the flow was learnt
		doubted    bool
	}{
		{"both are heard", time.Hour, time.Hour, false},
		{"the other end was never heard", 2*d.p.opts.Refresh + time.Hour, 0, false},
		{"the other end is silent", 2*d.p.opts.Refresh + time.Hour, time.Minute, true},
		{"it still is", 2*d.p.opts.Refresh + 2*time.Hour, time.Minute, true},
		{"it is heard again", 2*d.p.opts.Refresh + 2*time.Hour, 2 * d.p.opts.Refresh, false},
		{"it is silent again", 5 * d.p.opts.Refresh, 2 * d.p.opts.Refresh, true},
	} {
		for k, after := range map[key]time.Duration{out: step.sent, in: step.back} {
			f, ok := d.known(k)
			if !ok {
				t.Fatalf("%s: one direction is not known", step.what)
			}
			f.Checked = uint64(learnt + int64(after))
			check(t, d.p.kernel.Flows.Put(k, f))
		}
		d.p.Verify(0)
		entry, err := d.p.flows.Get(r.sent)
		check(t, err)
		if doubted := !entry.Loose && entry.Timeout <= 5*time.Minute; doubted != step.doubted || entry.Loose == step.doubted {
			t.Errorf("%s: connection tracking keeps it for %v, loose: %v; want it doubted: %v", step.what, entry.Timeout, entry.Loose, step.doubted)
		}
		check(t, d.p.learn(out)) // as when a call comes late: it changes nothing
	}
}
