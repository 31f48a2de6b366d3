//go:build linux

package containerd_test

import (
	stdcontext "context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
)

// Each of these does the same with this package and with containerd's plain
// client in turn, so that both meet the same machine, and reports the ratio.

// BenchmarkStart is one start at a time, each with a network namespace of its
// own. It reports ms for both and ours ÷ bare; lower is better.
func BenchmarkStart(b *testing.B) {
	bareServer, bareCtx := bareContext(b)
	for name, warm := range map[string]int{"warm": 1, "cold": -1} {
		b.Run(name, func(b *testing.B) {
			rt := openFor(b, containerd.Options{Root: b.TempDir(), WarmShims: warm})
			var ours, bare time.Duration
			for i := range b.N {
				id := fmt.Sprint("s", i)
				ours += timed(b, func() error {
					return rt.Start(stdcontext.Background(), runtime.Spec{ID: id, Image: testImage, Args: []string{"ignore"}})
				})
				settle(rt)
				var c client.Container
				var task client.Task
				bare += timed(b, func() (err error) {
					c, task, err = bareServer.start(bareCtx, id, "ignore")
					return err
				})
				if err := rt.Remove(stdcontext.Background(), id); err != nil {
					b.Fatal(err)
				}
				if err := bareServer.remove(bareCtx, c, task); err != nil {
					b.Fatal(err)
				}
			}
			report(b, ours, bare)
		})
	}
}

// BenchmarkFifty is fifty starts, all at once for ours and at several
// concurrencies for the bare client, of which the best counts. It reports
// starts per second and ours ÷ bare's; higher is better.
func BenchmarkFifty(b *testing.B) {
	const n = 50
	bareServer, bareCtx := bareContext(b)
	rt := openFor(b, containerd.Options{Root: b.TempDir()})
	var ours, best float64
	for range b.N {
		d := timed(b, func() error {
			return each(n, n, func(i int) error {
				return rt.Start(stdcontext.Background(), runtime.Spec{ID: fmt.Sprint("f", i), Image: testImage, Args: []string{"ignore"}})
			})
		})
		ours += n / d.Seconds()
		if err := each(n, 8, func(i int) error { return rt.Remove(stdcontext.Background(), fmt.Sprint("f", i)) }); err != nil {
			b.Fatal(err)
		}
		rate := 0.0
		for _, at := range []int{2, 4, 8} {
			containers, tasks := make([]client.Container, n), make([]client.Task, n)
			d := timed(b, func() error {
				return each(n, at, func(i int) (err error) {
					containers[i], tasks[i], err = bareServer.start(bareCtx, fmt.Sprint("f", i), "ignore")
					return err
				})
			})
			rate = max(rate, n/d.Seconds())
			if err := each(n, 8, func(i int) error { return bareServer.remove(bareCtx, containers[i], tasks[i]) }); err != nil {
				b.Fatal(err)
			}
		}
		best += rate
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ours/float64(b.N), "ours/s")
	b.ReportMetric(best/float64(b.N), "bare/s")
	b.ReportMetric(ours/best, "ours/bare")
}

// BenchmarkRecovery is the time from SIGKILL of a container to its successor
// running, against the bare client's create and start alone. It reports ms
// and the ratio; lower is better.
func BenchmarkRecovery(b *testing.B) {
	bareServer, bareCtx := bareContext(b)
	rt := openFor(b, containerd.Options{Root: b.TempDir()})
	ctx := stdcontext.Background()
	spec := runtime.Spec{ID: "r", Image: testImage, Args: []string{"ignore"}}
	for _, way := range []struct {
		name string
		next func(i int) runtime.Spec
	}{
		{"same ID", func(int) runtime.Spec { return spec }},
		{"new ID", func(i int) runtime.Spec { s := spec; s.ID = fmt.Sprint("r", i); return s }},
	} {
		b.Run(way.name, func(b *testing.B) {
			current := way.next(-1)
			if err := rt.Start(ctx, current); err != nil {
				b.Fatal(err)
			}
			var ours, bare time.Duration
			for i := range b.N {
				old, next := current, way.next(i)
				ours += timed(b, func() error {
					if err := rt.Kill(ctx, old.ID, runtime.SIGKILL); err != nil {
						return err
					}
					if _, err := rt.Wait(ctx, old.ID); err != nil {
						return err
					}
					return rt.Start(ctx, next)
				})
				if old.ID != next.ID {
					if err := rt.Remove(ctx, old.ID); err != nil {
						b.Fatal(err)
					}
				}
				current = next
				settle(rt)
				var c client.Container
				var task client.Task
				bare += timed(b, func() (err error) {
					c, task, err = bareServer.start(bareCtx, fmt.Sprint("r", i), "ignore")
					return err
				})
				if err := bareServer.remove(bareCtx, c, task); err != nil {
					b.Fatal(err)
				}
			}
			if err := rt.Remove(ctx, current.ID); err != nil {
				b.Fatal(err)
			}
			report(b, ours, bare)
		})
	}
}

func openFor(b *testing.B, opts containerd.Options) *containerd.Runtime {
	b.Helper()
	rt, err := containerd.Open(opts)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		ctx := stdcontext.Background()
		list, err := rt.List(ctx, nil)
		if err != nil {
			b.Error(err)
		}
		if err := each(len(list), 8, func(i int) error { return rt.Remove(ctx, list[i].ID) }); err != nil {
			b.Error(err)
		}
		if err := rt.Close(); err != nil {
			b.Error(err)
		}
	})
	load(b, rt)
	return rt
}

// settle waits until the runtime has its idle shim again, which it starts after
// a start: the bare client must not pay for that.
func settle(rt *containerd.Runtime) { containerd.Settle(rt) }

func timed(b *testing.B, f func() error) time.Duration {
	b.Helper()
	began := time.Now()
	if err := f(); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

// each calls f for 0 to n-1, at most so many at once.
func each(n, at int, f func(i int) error) error {
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
			return err
		}
	}
	return nil
}

func report(b *testing.B, ours, bare time.Duration) {
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ours.Seconds()*1000/float64(b.N), "ours-ms")
	b.ReportMetric(bare.Seconds()*1000/float64(b.N), "bare-ms")
	b.ReportMetric(float64(ours)/float64(bare), "ours/bare")
}
