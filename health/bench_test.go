//go:build unix

package health_test

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/health"
)

// What ten thousand checks cost that are not due: goroutines beside those of
// the test, and heap for each check.
func BenchmarkTenThousandAtRest(b *testing.B) {
	const n = 10_000
	for range b.N {
		goroutines, heap := runtime.NumGoroutine(), heapInUse()
		m, end := runMonitor(b, health.CheckerFunc(func(context.Context, health.Target, health.Check) error { return nil }))
		for i := range n {
			if err := m.Add(health.Target{ID: fmt.Sprint("task-", i)}, custom(health.Check{Delay: time.Hour})); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines), "goroutines")
		b.ReportMetric(float64(heapInUse()-heap)/n, "B/check")
		end()
	}
}

// What a probe costs beside what its checker does: ten thousand checks at the
// rate that the machine can do.
func BenchmarkProbe(b *testing.B) {
	const n = 10_000
	var probes atomic.Int64
	done := make(chan struct{})
	m, end := runMonitor(b, health.CheckerFunc(func(context.Context, health.Target, health.Check) error {
		if probes.Add(1) == int64(b.N) {
			close(done)
		}
		return nil
	}))
	defer end()
	b.ReportAllocs()
	before := cpu()
	for i := range n {
		if err := m.Add(health.Target{ID: fmt.Sprint("task-", i)}, custom(health.Check{Interval: health.MinInterval})); err != nil {
			b.Fatal(err)
		}
	}
	<-done
	b.ReportMetric(float64(cpu()-before)/float64(probes.Load()), "cpu-ns/probe")
}

func runMonitor(b *testing.B, c health.Checker) (*health.Monitor, func()) {
	m := health.NewMonitor(health.Options{Checkers: map[string]health.Checker{"test": c}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	return m, func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	}
}

func heapInUse() int64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

// cpu is the time that all threads took.
func cpu() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		panic(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
