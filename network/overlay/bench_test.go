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

// throughput sends for a while and returns bytes a second.
func throughput(b *testing.B, ns *os.File, to string) float64 {
	c := dialIn(b, ns, to, "s")
	defer c.Close()
	buf := make([]byte, 1<<20)
	began, sent := time.Now(), 0
	for time.Since(began) < 300*time.Millisecond {
		n, err := c.Write(buf)
		check(b, err)
		sent += n
	}
	return float64(sent) / time.Since(began).Seconds()
}

// roundTrip returns the median time of one byte there and back.
func roundTrip(b *testing.B, ns *os.File, to string) time.Duration {
	c := dialIn(b, ns, to, "p")
	defer c.Close()
	buf := []byte{1}
	var times []time.Duration
	for range 2000 {
		began := time.Now()
		_, err := c.Write(buf)
		check(b, err)
		_, err = io.ReadFull(c, buf)
		check(b, err)
		times = append(times, time.Since(began))
	}
	slices.Sort(times)
	return times[len(times)/2]
}

// BenchmarkOverlay compares the way between tasks of two nodes with the bare
// path: two namespaces on the same hosts, routed over the same link without
// VXLAN, translation or a bridge. Both in turn; medians.
func BenchmarkOverlay(b *testing.B) {
	w := newWorld(b, 2, false)
	w.ensure(front)
	server, client := w.hosts[1].task("server", "front"), w.hosts[0].task("client", "front")
	w.sink(server.ns, 80)
	bare := w.barePath()
	w.sink(bare[1], 80)
	over, plain := netip.AddrPortFrom(server.addrs[0], 80).String(), "198.51.100.130:80"
	var rates, times [2][]float64
	for b.Loop() {
		for i, way := range []struct {
			ns *os.File
			to string
		}{{client.ns, over}, {bare[0], plain}} {
			rates[i] = append(rates[i], throughput(b, way.ns, way.to))
			times[i] = append(times[i], float64(roundTrip(b, way.ns, way.to)))
		}
	}
	median := func(v []float64) float64 {
		slices.Sort(v)
		return v[len(v)/2]
	}
	b.ReportMetric(median(rates[0])*8/1e9, "Gbit/s")
	b.ReportMetric(median(rates[0])/median(rates[1]), "of-bare-throughput")
	b.ReportMetric(median(times[0])/1e3, "µs-round-trip")
	b.ReportMetric(median(times[1])/median(times[0]), "of-bare-latency")
	b.ReportMetric(0, "ns/op")
}
