//go:build linux

package overlay

import (
	"context"
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
)

// sink takes what it is sent; a connection that begins with 'p' is answered a
// byte for each byte instead, one with 'e' gets back all that it sends.
func (w *world) sink(ns *os.File, port uint16) {
	var l net.Listener
	check(w, in(ns, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	}))
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(ctx, func() { _ = c.Close() }) // the client's end may not reach it
			wg.Go(func() {
				defer stop()
				defer c.Close()
				kind := []byte{0}
				if _, err := io.ReadFull(c, kind); err != nil {
					return
				}
				if size := map[byte]int{'p': 1, 'e': 64 << 10}[kind[0]]; size > 0 {
					_, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, size))
					return
				}
				_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 1<<20))
			})
		}
	})
	w.Cleanup(func() {
		_ = l.Close()
		cancel()
		wg.Wait()
	})
}

func dialIn(b testing.TB, ns *os.File, to, kind string) (c net.Conn) {
	b.Helper()
	check(b, in(ns, func() (err error) {
		c, err = net.DialTimeout("tcp", to, 10*time.Second)
		return err
	}))
	_, err := io.WriteString(c, kind)
	check(b, err)
	return c
}

// throughput sends by several connections for a while and returns bytes a second.
func throughput(b *testing.B, ns *os.File, to string, streams int) float64 {
	var wg sync.WaitGroup
	var sent atomic.Int64
	var conns []net.Conn
	for range streams {
		conns = append(conns, dialIn(b, ns, to, "s"))
	}
	began := time.Now()
	for _, c := range conns {
		wg.Go(func() {
			defer c.Close()
			buf := make([]byte, 256<<10)
			for time.Since(began) < 500*time.Millisecond {
				n, err := c.Write(buf)
				if err != nil {
					b.Error(err)
					return
				}
				sent.Add(int64(n))
			}
		})
	}
	wg.Wait()
	return float64(sent.Load()) / time.Since(began).Seconds()
}

// roundTrip returns the median time of one byte there and back.
func roundTrip(b *testing.B, ns *os.File, to string) float64 {
	c := dialIn(b, ns, to, "p")
	defer c.Close()
	buf := []byte{1}
	var times []float64
	for range 2000 {
		began := time.Now()
		_, err := c.Write(buf)
		check(b, err)
		_, err = io.ReadFull(c, buf)
		check(b, err)
		times = append(times, float64(time.Since(began)))
	}
	return median(times)
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// BenchmarkOverlay compares the way between tasks of two nodes with the bare
// kernel path between the same two namespaces: routed by two more hosts on the
// same link that have nothing of ours. The kernel's own VXLAN, between two more
// such hosts, is compared with it too. All are measured in turn; the medians of
// the ratios of one turn are told.
func BenchmarkOverlay(b *testing.B) {
	for _, way := range []struct {
		name string
		mode Direct
		fast FastPath
	}{
		{"direct", DirectAuto, FastPathAuto},
		{"vxlan", DirectNever, FastPathAuto},
		{"direct-slow", DirectAuto, FastPathNever},
		{"vxlan-slow", DirectNever, FastPathNever},
		{"encrypted", sealed, FastPathAuto},
	} {
		b.Run(way.name, func(b *testing.B) {
			w := newFastWorld(b, 2, false, way.mode, func(o *Options) { o.FastPath = way.fast })
			server, client := w.hosts[1].task("server", "front"), w.hosts[0].task("client", "front")
			w.sink(server.ns, 80)
			ends := [2]*os.File{client.ns, server.ns}
			var to [3]string // ours, bare, and bare VXLAN
			for i, addr := range []netip.Addr{server.addrs[0], w.barePath(ends, false), w.barePath(ends, true)} {
				to[i] = netip.AddrPortFrom(addr, 80).String()
			}
			var rates, times, of1, of4, ofTime, vxlan1, vxlan4, vxlanTime []float64
			for first := 0; b.Loop(); first++ {
				var one, four, trip [3]float64
				for j := range to {
					i := (first + j) % len(to) // each is the first as often
					one[i], four[i], trip[i] = throughput(b, client.ns, to[i], 1), throughput(b, client.ns, to[i], 4), roundTrip(b, client.ns, to[i])
				}
				rates, times = append(rates, four[0]), append(times, trip[0])
				of1, of4, ofTime = append(of1, one[0]/one[1]), append(of4, four[0]/four[1]), append(ofTime, trip[1]/trip[0])
				vxlan1, vxlan4, vxlanTime = append(vxlan1, one[2]/one[1]), append(vxlan4, four[2]/four[1]), append(vxlanTime, trip[1]/trip[2])
			}
			b.ReportMetric(median(rates)*8/1e9, "Gbit/s")
			b.ReportMetric(median(times)/1e3, "µs-round-trip")
			b.ReportMetric(median(of1), "of-bare-1-stream")
			b.ReportMetric(median(of4), "of-bare-4-streams")
			b.ReportMetric(median(ofTime), "of-bare-latency")
			b.ReportMetric(median(vxlan1), "bare-vxlan-of-bare-1-stream")
			b.ReportMetric(median(vxlan4), "bare-vxlan-of-bare-4-streams")
			b.ReportMetric(median(vxlanTime), "bare-vxlan-of-bare-latency")
			b.ReportMetric(0, "ns/op")
		})
	}
}
