//go:build linux

package local

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/bare"
	"github.com/orchestrate-go/orchestrate/runtime/image"
)

// Each of these does the same through a whole fleet and with containerd's
// plain client in turn, so that both meet the same machine, and reports the
// ratio. The fleet does more in that time: a network with addresses, a place by
// the scheduler, and every step on disk.

// bareServer starts containerd, once for all benchmarks. What is in it has no
// way to be stopped.
var bareServer = sync.OnceValues(func() (*bare.Server, error) {
	img, err := image.FromBinary(testImage, binary, image.Options{Command: []string{"wait"}})
	if err != nil {
		return nil, err
	}
	r := img.Reader()
	defer r.Close()
	s, err := bare.Start(r)
	if err == nil {
		bareStarted = s
	}
	return s, err
})

var bareStarted *bare.Server // closed by TestMain

func startBare(b *testing.B) *bare.Server {
	b.Helper()
	s, err := bareServer()
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// waiting is a service whose tasks are ready as soon as they run.
func waiting() orchestrate.Service {
	s := silent("web", "wait")
	s.Replicas = orchestrate.None
	s.Containers[0].Resources = orchestrate.Resources{}
	s.StopGrace = time.Second
	return s
}

func scale(b *testing.B, f *Fleet, n int) {
	b.Helper()
	if err := f.Scale(b.Context(), "web", n); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkStartPath is one start at a time: from the commit of a task to its
// being ready, against create and start with a network namespace. It reports
// ms for both, and ours ÷ bare; lower is better. Apply-ms is from the
// application's call to the same end.
func BenchmarkStartPath(b *testing.B) {
	containerd := startBare(b)
	f := openFleet(b)
	up(b, f, waiting())
	events := watch(b, f)
	var ours, whole, plain time.Duration
	for i := range b.N {
		began := time.Now()
		scale(b, f, 1)
		placed := until(b, events, "it is placed", func(e orchestrate.Event) bool { return e.Kind == orchestrate.TaskPlaced })
		ready := until(b, events, "it is ready", func(e orchestrate.Event) bool { return e.Task == placed.Task && e.State == orchestrate.Ready })
		ours += ready.At.Sub(placed.At)
		whole += time.Since(began)
		scale(b, f, 0)
		until(b, events, "it is gone", func(e orchestrate.Event) bool { return e.Kind == orchestrate.TaskGone })
		plain += runBare(b, containerd, fmt.Sprint("start", i))
	}
	b.ReportMetric(whole.Seconds()*1000/float64(b.N), "apply-ms")
	report(b, ours, plain)
}

// runBare returns how long the plain client takes for a container, and removes
// it.
func runBare(b *testing.B, s *bare.Server, id string) time.Duration {
	b.Helper()
	began := time.Now()
	c, err := s.Run(context.Background(), id, "wait")
	took := time.Since(began)
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Remove(context.Background(), c); err != nil {
		b.Fatal(err)
	}
	return took
}

// Benchmark50AtOnce is fifty tasks at once, from the call to all of them being
// ready, against fifty containers by the plain client at several concurrencies,
// of which the best counts. It reports starts per second and ours ÷ bare, and
// the same by processor time; higher is better. The client's processor time is
// the least of its concurrencies.
func Benchmark50AtOnce(b *testing.B) {
	const n = 50
	containerd := startBare(b)
	dir := newFolder(b)
	cpu := newCPUMeter(b, "bare", filepath.Join("orchestrate", stateOf(dir)))
	f := openAt(b, dir)
	b.Cleanup(func() { destroy(b, f) })
	up(b, f, waiting())
	var ours, plain float64
	var oursCPU, plainCPU time.Duration
	for i := range b.N {
		began, used := time.Now(), cpu.now(b)
		scale(b, f, n)
		completed(b, f, "web")
		ours += n / time.Since(began).Seconds()
		oursCPU += cpu.now(b) - used
		scale(b, f, 0)
		completed(b, f, "web")
		best, least := 0.0, time.Duration(math.MaxInt64)
		for _, at := range []int{2, 4, 8, 16, n} {
			containers := make([]*bare.Container, n)
			began, used := time.Now(), cpu.now(b)
			each(b, n, at, func(k int) (err error) {
				containers[k], err = containerd.Run(context.Background(), fmt.Sprintf("many%d-%d-%d", i, at, k), "wait")
				return err
			})
			best = max(best, n/time.Since(began).Seconds())
			least = min(least, cpu.now(b)-used)
			each(b, n, at, func(k int) error { return containerd.Remove(context.Background(), containers[k]) })
		}
		plain += best
		plainCPU += least
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ours/float64(b.N), "ours/s")
	b.ReportMetric(plain/float64(b.N), "bare/s")
	b.ReportMetric(ours/plain, "ours/bare")
	b.ReportMetric(oursCPU.Seconds()*1000/float64(b.N*n), "ours-cpu-ms")
	b.ReportMetric(plainCPU.Seconds()*1000/float64(b.N*n), "bare-cpu-ms")
	b.ReportMetric(float64(plainCPU)/float64(oursCPU), "cpu-bare/ours")
}

// BenchmarkRecovery is the time from SIGKILL of a task's process to its
// successor being ready, against create and start alone. It reports ms for
// both, and ours ÷ bare; lower is better.
func BenchmarkRecovery(b *testing.B) {
	containerd := startBare(b)
	f := openFleet(b)
	s := waiting()
	s.Replicas = 1
	s.Restart = orchestrate.RestartPolicy{Reset: time.Millisecond} // each failure counts as the first
	up(b, f, s)
	events := watch(b, f)
	var ours, plain time.Duration
	for i := range b.N {
		task := one(b, f, "web")
		began := time.Now()
		if err := syscall.Kill(task.Containers[0].PID, syscall.SIGKILL); err != nil {
			b.Fatal(err)
		}
		until(b, events, "its successor is ready", func(e orchestrate.Event) bool {
			return e.Task == task.ID && e.State == orchestrate.Ready && e.Restarts == task.Restarts+1
		})
		ours += time.Since(began)
		plain += runBare(b, containerd, fmt.Sprint("recovery", i))
	}
	report(b, ours, plain)
}

// each calls f for 0 to n-1, at most so many at once.
func each(b *testing.B, n, at int, f func(i int) error) {
	b.Helper()
	errs := make([]error, n)
	limit := make(chan struct{}, at)
	var wg sync.WaitGroup
	for i := range n {
		limit <- struct{}{}
		wg.Go(func() {
			errs[i] = f(i)
			<-limit
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			b.Fatal(err)
		}
	}
}

func report(b *testing.B, ours, plain time.Duration) {
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ours.Seconds()*1000/float64(b.N), "ours-ms")
	b.ReportMetric(plain.Seconds()*1000/float64(b.N), "bare-ms")
	b.ReportMetric(float64(ours)/float64(plain), "ours/bare")
}
