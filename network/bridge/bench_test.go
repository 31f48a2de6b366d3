//go:build linux

package bridge

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/network"
)

// The part of a task's start that the network takes, alone.
func BenchmarkCreateAttach(b *testing.B) {
	w := newWorld(b)
	w.ensure(front)
	i := 0
	for b.Loop() {
		w.attachOne(b, i)
		b.StopTimer()
		w.detachOne(b, i)
		b.StartTimer()
		i++
	}
}

// The same with many at one time: the kernel serialises most of it.
func BenchmarkCreateAttachParallel(b *testing.B) {
	w := newWorld(b)
	w.ensure(front)
	var next atomic.Int64
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := int(next.Add(1))
			w.attachOne(b, i)
			w.detachOne(b, i)
		}
	})
}

// The part of a task's end.
func BenchmarkDetachDelete(b *testing.B) {
	w := newWorld(b)
	w.ensure(front)
	i := 0
	for b.Loop() {
		b.StopTimer()
		w.attachOne(b, i)
		b.StartTimer()
		w.detachOne(b, i)
		i++
	}
}

func (w *world) attachOne(b *testing.B, i int) {
	id := fmt.Sprintf("t%d", i)
	path, err := w.d.Create(b.Context(), id, nil)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := w.d.Attach(b.Context(), network.Attachment{Network: "front", Task: id, Namespace: path, Interface: "eth0", Default: true}); err != nil {
		b.Fatal(err)
	}
}

func (w *world) detachOne(b *testing.B, i int) {
	id := fmt.Sprintf("t%d", i)
	if err := w.d.Detach(b.Context(), network.Attachment{Network: "front", Task: id, Interface: "eth0"}); err != nil {
		b.Fatal(err)
	}
	if err := w.d.Delete(b.Context(), id); err != nil {
		b.Fatal(err)
	}
}

// services returns n services of ten endpoints each.
func services(n int) []network.Rule {
	rules := make([]network.Rule, 0, n)
	for i := range n {
		r := network.Rule{Service: fmt.Sprintf("s%d", i), Address: netip.AddrFrom4([4]byte{10, 72, byte(i >> 8), byte(i)}), Port: 80}
		for k := range 10 {
			r.Endpoints = append(r.Endpoints, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 71, byte(i / 20), byte(i%20*10 + k)}), 80))
		}
		rules = append(rules, r)
	}
	return rules
}

// What it costs to change one endpoint of one service, to change nothing, and
// to write everything, with few and many services.
func BenchmarkProgram(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprintf("one of %d services", n), func(b *testing.B) {
			w := newWorld(b)
			w.ensure(front)
			rules := services(n)
			w.program(rules...)
			last := rules[n/2].Endpoints
			i := 0
			for b.Loop() {
				rules[n/2].Endpoints = last[:9+i%2]
				w.program(rules...)
				i++
			}
		})
		b.Run(fmt.Sprintf("none of %d services", n), func(b *testing.B) {
			w := newWorld(b)
			w.ensure(front)
			rules := services(n)
			w.program(rules...)
			for b.Loop() {
				w.program(rules...)
			}
		})
		b.Run(fmt.Sprintf("all of %d services", n), func(b *testing.B) {
			w := newWorld(b)
			w.ensure(front)
			rules := services(n)
			for b.Loop() {
				w.program(rules...)
				w.program()
			}
		})
	}
}

// A virtual address against the endpoint's own, in one run, in turns: the
// share of throughput and of connection rate that is left.
func BenchmarkVirtualAddress(b *testing.B) {
	w := newWorld(b)
	w.ensure(front)
	server, client := w.task("server"), w.task("client")
	w.sink(server.ns, 80)
	// Beside it a thousand services, as on a node that is in use.
	rules := append(services(1000), network.Rule{Service: "web", Address: netip.MustParseAddr("10.72.200.200"), Port: 80, Endpoints: server.endpoints(80)})
	w.program(rules...)
	direct := netip.AddrPortFrom(server.addr(true), 80).String()
	virtual := "10.72.200.200:80"
	// Turns are short and in changing order, and the median counts: what
	// else the machine does falls on both alike.
	const turns = 31
	var bytesShare, connsShare, gbits, conns []float64
	for b.Loop() {
		for i := range turns {
			order := []string{direct, virtual}
			if i%2 == 1 {
				order = []string{virtual, direct}
			}
			moved, made := map[string]float64{}, map[string]float64{}
			for _, to := range order {
				moved[to] = throughput(b, client.ns, to)
			}
			for _, to := range order {
				made[to] = connectionRate(b, client.ns, to)
			}
			bytesShare = append(bytesShare, moved[virtual]/moved[direct])
			connsShare = append(connsShare, made[virtual]/made[direct])
			gbits = append(gbits, moved[virtual]*8/1e9)
			conns = append(conns, made[virtual])
		}
	}
	b.ReportMetric(median(bytesShare), "throughput-share")
	b.ReportMetric(median(connsShare), "connections-share")
	b.ReportMetric(median(gbits), "Gbit/s")
	b.ReportMetric(median(conns), "connections/s")
	b.ReportMetric(0, "ns/op")
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

const turn = 100 * time.Millisecond

// sink reads what it is sent; a connection that begins with "?" is answered
// and closed.
func (w *world) sink(ns *os.File, port uint16) {
	var l net.Listener
	err := inside(ns, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		w.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close() //nolint:errcheck // the client has what it needs
				first := make([]byte, 1)
				if _, err := c.Read(first); err != nil {
					return
				}
				if first[0] == '?' {
					_, _ = c.Write(first)
					return
				}
				buf := make([]byte, 256<<10)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
				}
			})
		}
	})
	w.Cleanup(func() { _ = l.Close(); wg.Wait() })
}

// throughput returns bytes a second of one connection.
func throughput(b *testing.B, ns *os.File, to string) float64 {
	c, err := connect(ns, "tcp", to, 5*time.Second)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // measured
	buf := slices.Repeat([]byte{'x'}, 256<<10)
	begun, sent := time.Now(), 0
	for time.Since(begun) < turn {
		n, err := c.Write(buf)
		if err != nil {
			b.Fatal(err)
		}
		sent += n
	}
	return float64(sent) / time.Since(begun).Seconds()
}

// connectionRate returns connections a second of two clients, each asked for
// and answered one byte.
func connectionRate(b *testing.B, ns *os.File, to string) float64 {
	var made atomic.Int64
	var wg sync.WaitGroup
	begun := time.Now()
	for range 2 {
		wg.Go(func() {
			err := inside(ns, func() error {
				buf := make([]byte, 1)
				for time.Since(begun) < turn {
					c, err := net.DialTimeout("tcp", to, 5*time.Second)
					if err != nil {
						return err
					}
					if _, err := c.Write([]byte("?")); err != nil {
						return err
					}
					if _, err := io.ReadFull(c, buf); err != nil {
						return err
					}
					// No TIME_WAIT: the ports of one client are few.
					if err := c.(*net.TCPConn).SetLinger(0); err != nil {
						return err
					}
					if err := c.Close(); err != nil {
						return err
					}
					made.Add(1)
				}
				return nil
			})
			if err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	return float64(made.Load()) / time.Since(begun).Seconds()
}

// A network that is as it should be.
func BenchmarkEnsureAgain(b *testing.B) {
	w := newWorld(b)
	w.ensure(front)
	for b.Loop() {
		w.ensure(front)
	}
}
