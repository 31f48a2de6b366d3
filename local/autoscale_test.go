//go:build linux

package local

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/autoscale"
)

// pour sends a steady load to a path until stop is called. It does not mind what
// is answered.
func pour(address, path string, rate int) (stop func()) {
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				wg.Go(func() { _, _ = ask(address, path) })
			}
		}
	})
	return sync.OnceFunc(func() {
		close(quit)
		wg.Wait()
	})
}

// scaledTo waits for the number of tasks that an autoscaler decides for.
func scaledTo(t *testing.T, events <-chan orchestrate.Event, name string, ok func(int) bool) {
	t.Helper()
	until(t, events, "the autoscaler of "+name+" has changed it", func(e orchestrate.Event) bool {
		if e.Kind == orchestrate.ServiceScaled {
			t.Log(e)
		}
		return e.Kind == orchestrate.ServiceScaled && e.Service == name && ok(e.Scale.To)
	})
}

// serving waits until so many tasks are ready.
func serving(t *testing.T, f *Fleet, events <-chan orchestrate.Event, name string, n int) {
	t.Helper()
	until(t, events, fmt.Sprintf("%d tasks of %s are ready", n, name), func(e orchestrate.Event) bool {
		ready := 0
		for _, task := range tasks(t, f, name) {
			if task.State == orchestrate.Ready && task.Stopping == "" {
				ready++
			}
		}
		return ready >= n
	})
}

// Containers that use the processor are joined by more, by what their cgroups
// say, and those go again.
func TestAutoscaleByUse(t *testing.T) {
	f := openFleet(t)
	s := service("web", 1)
	s.Autoscale = &autoscale.Policy{
		Max: 4, Interval: time.Second, Metrics: []autoscale.Metric{{Name: autoscale.CPU, Average: 100}},
		Up: autoscale.Rules{Limits: []autoscale.Limit{{Tasks: 1, Period: time.Second}}}, Down: autoscale.Rules{Window: 3 * time.Second},
	}
	events := watch(t, f)
	up(t, f, s)
	// A quarter of a core in all, of which each task is to use a tenth.
	stop := pour(at(virtual(t, f, "web")[0], 80), "/burn?10ms", 25)
	defer stop()
	scaledTo(t, events, "web", func(n int) bool { return n >= 3 })
	serving(t, f, events, "web", 3)
	stop()
	scaledTo(t, events, "web", func(n int) bool { return n == 1 })
	st, err := f.Get(t.Context(), "web")
	if err != nil || st.Scale == nil || len(st.Scale.Metrics) != 1 {
		t.Errorf("Get says %+v, %v; want what was measured", st.Scale, err)
	}
}

// A service without a task is woken by the first who asks, is as many as ask,
// and sleeps when nobody does. Two nodes of one machine count each connection
// once.
func TestAutoscaleByRequests(t *testing.T) {
	f := openFleet(t, WithNode("a", nil), WithNodes("b"))
	s := service("web", orchestrate.None)
	s.Ports[0].Published = 8081
	s.Autoscale = &autoscale.Policy{
		Min: orchestrate.None, Max: 8, Interval: time.Second, Idle: 5 * time.Second,
		Metrics: []autoscale.Metric{{Name: autoscale.Requests, Average: 20}}, Down: autoscale.Rules{Window: 3 * time.Second},
	}
	events := watch(t, f)
	up(t, f, s)
	if n := len(tasks(t, f, "web")); n != 0 {
		t.Fatalf("%d tasks before anybody asks, want none", n)
	}
	stop := pour("127.0.0.1:8081", "/", 60)
	defer stop()
	scaledTo(t, events, "web", func(n int) bool { return n == 3 || n == 4 }) // 60 a second and a few that were refused
	serving(t, f, events, "web", 3)
	if counts := answers(t, "127.0.0.1:8081", 40); len(counts) < 3 {
		t.Errorf("answers of %v, want of 3 tasks at least", counts)
	}
	stop()
	scaledTo(t, events, "web", func(n int) bool { return n == 0 })
	until(t, events, "the last task is gone", func(e orchestrate.Event) bool {
		return e.Kind == orchestrate.TaskGone && len(tasks(t, f, "web")) == 0
	})
}

// Two of three nodes are drained at once, and a task is moved, under load: none
// of it fails, and the budget is kept.
func TestSteadyDrains(t *testing.T) {
	f := openFleet(t, WithNode("a", nil), WithNodes("b", "c"))
	s := service("web", 6)
	s.Ports[0].Published = 8081
	s.DrainDelay = 200 * time.Millisecond
	s.Budget.MinAvailable = "100%"
	up(t, f, s)
	load := startSteady([]string{"127.0.0.1:8081", at(virtual(t, f, "web")[0], 80)})
	ended := make(chan error, 2)
	for _, node := range []string{"b", "c"} {
		go func() { ended <- f.Drain(t.Context(), node, orchestrate.DrainWithin(2*time.Minute)) }()
	}
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	completed(t, f, "web")
	if got := perNode(t, f, "web"); got["a"] != 6 || len(got) != 1 {
		t.Errorf("tasks by node: got %v, want all 6 on a", got)
	}
	if err := f.Uncordon(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	events := watch(t, f)
	task := tasks(t, f, "web")[0]
	if err := f.Evict(t.Context(), task.ID); err != nil {
		t.Fatal(err)
	}
	until(t, events, "the task is gone", func(e orchestrate.Event) bool { return e.Kind == orchestrate.TaskGone && e.Task == task.ID })
	if got := fmt.Sprint(perNode(t, f, "web")); got != "map[a:5 b:1]" {
		t.Errorf("tasks by node after one was moved: got %v, want it on b", got)
	}
	sent, rate := load.stop()
	t.Logf("%d requests, %.0f a second, %d failed", sent, rate, load.failed.Load())
	if load.failed.Load() > 0 {
		t.Errorf("%d of %d requests failed, want none; the first: %q", load.failed.Load(), sent, load.errs)
	}
}
