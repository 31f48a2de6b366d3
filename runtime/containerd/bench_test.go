//go:build linux

package containerd_test

import (
	stdcontext "context"
	"fmt"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/bare"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
	"github.com/orchestrate-go/orchestrate/runtime/image"
)

// Each of these does the same with this package and with containerd's plain
// client in turn, so that both meet the same machine, and reports ms for both
// and ours ÷ bare; lower is better. Package local has the ones of a whole
// fleet, and of many at once.

var bareServer *bare.Server // of all benchmarks; closed by TestMain

func startBare(b *testing.B) *bare.Server {
	b.Helper()
	if bareServer != nil {
		return bareServer
	}
	img, err := image.FromBinary(testImage, program, image.Options{})
	if err != nil {
		b.Fatal(err)
	}
	r := img.Reader()
	defer r.Close()
	if bareServer, err = bare.Start(r); err != nil {
		b.Fatal(err)
	}
	return bareServer
}

// BenchmarkStart is one start at a time, each with a network namespace of its
// own: by a shim that is there, and by one that has to be started.
func BenchmarkStart(b *testing.B) {
	for name, warm := range map[string]int{"warm": 1, "cold": -1} {
		b.Run(name, func(b *testing.B) {
			rt, err := containerd.Open(containerd.Options{Root: b.TempDir(), WarmShims: warm})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() {
				if err := rt.Close(); err != nil {
					b.Error(err)
				}
			})
			load(b, rt)
			inTurn(b, rt, func() { containerd.Settle(rt) })
		})
	}
}

// BenchmarkClientStart is one start at a time by a Client and by containerd's
// plain client, of the same daemon.
func BenchmarkClientStart(b *testing.B) {
	c, err := dial(&daemon{socket: startBare(b).Socket()}, containerd.ConnectOptions{Root: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := c.Close(); err != nil {
			b.Error(err)
		}
	})
	if err := loadInto(b.Context(), c); err != nil {
		b.Fatal(err)
	}
	inTurn(b, c, func() {})
}

// inTurn starts and removes containers by rt and by the plain client. After
// each of ours settle waits for what goes on in the background: the plain
// client must not pay for it.
func inTurn(b *testing.B, rt runtime.Runtime, settle func()) {
	b.Helper()
	server := startBare(b)
	ctx := stdcontext.Background()
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	var ours, plain time.Duration
	for i := range b.N {
		id := fmt.Sprint("s", i)
		began := time.Now()
		err := rt.Start(ctx, runtime.Spec{ID: id, Image: testImage, Args: []string{"ignore"}})
		ours += time.Since(began)
		must(err)
		settle()
		began = time.Now()
		c, err := server.Run(ctx, id, "ignore")
		plain += time.Since(began)
		must(err)
		must(rt.Remove(ctx, id))
		must(server.Remove(ctx, c))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ours.Seconds()*1000/float64(b.N), "ours-ms")
	b.ReportMetric(plain.Seconds()*1000/float64(b.N), "bare-ms")
	b.ReportMetric(float64(ours)/float64(plain), "ours/bare")
}
