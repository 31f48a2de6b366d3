package orchestrate_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/autoscale"
	networkmemory "github.com/orchestrate-go/orchestrate/network/memory"
	"github.com/orchestrate-go/orchestrate/runtime"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/store"
	storememory "github.com/orchestrate-go/orchestrate/store/memory"
)

// worker is a service whose tasks each do ten jobs of a queue at a time.
func worker(policy autoscale.Policy) orchestrate.Service {
	s := service("worker", 0)
	policy.Metrics = []autoscale.Metric{{Name: "queue", Average: 10}}
	s.Autoscale = &policy
	return s
}

// queued is a fleet whose metric "queue" is a number.
func queued(t *testing.T) (*orchestrate.Fleet, *atomic.Int64, *runtimememory.Runtime) {
	t.Helper()
	length := new(atomic.Int64)
	s := storememory.New(storememory.Options{})
	f, rt := openFleet(t, s, orchestrate.WithMetric("queue", func(_ context.Context, service string) (float64, error) {
		if n := length.Load(); n >= 0 {
			return float64(n), nil
		}
		return 0, fmt.Errorf("the queue of %s is gone", service)
	}))
	return f, length, rt
}

// tasksOf is how many ready tasks a service has.
func tasksOf(t *testing.T, f *orchestrate.Fleet, name string) (ready int) {
	t.Helper()
	tasks, err := f.Tasks(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if task.State == orchestrate.Ready && task.Stopping == "" {
			ready++
		}
	}
	return ready
}

// The load doubles, goes, and comes back.
func TestAutoscale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, queue, _ := queued(t)
		queue.Store(40)
		s := worker(autoscale.Policy{Min: autoscale.None, Max: 20, Idle: 2 * time.Minute})
		s.Replicas = 4
		mustApply(t, f, s)
		mustEnd(t, f, "worker", orchestrate.RolloutCompleted)
		for _, scene := range []struct {
			queue  int64
			after  time.Duration
			want   int
			reason autoscale.Reason
		}{
			{40, time.Minute, 4, autoscale.ByTolerance},
			{80, time.Minute, 8, autoscale.ByTolerance},
			{-1, 10 * time.Minute, 8, autoscale.ByMissing},
			{40, time.Minute, 8, autoscale.ByWindow},
			{40, 5 * time.Minute, 4, autoscale.ByTolerance},
			{0, time.Minute, 4, autoscale.ByWindow},
			{0, 2 * time.Minute, 0, autoscale.ByIdle},
			{0, time.Hour, 0, autoscale.ByIdle},
			{1, time.Minute, 1, autoscale.ByTolerance},
			{1000, 2 * time.Minute, 20, autoscale.ByMax},
		} {
			queue.Store(scene.queue)
			time.Sleep(scene.after)
			st, err := f.Get(t.Context(), "worker")
			if err != nil {
				t.Fatal(err)
			}
			if n := tasksOf(t, f, "worker"); n != scene.want || st.Scale == nil || st.Scale.Replicas != n || st.Scale.Reason != scene.reason || st.Replicas != 4 {
				t.Errorf("%v after the queue became %d there are %d ready tasks, and Get says %+v of spec %d; want %d, %s", scene.after, scene.queue, n, st.Scale, st.Replicas, scene.want, scene.reason)
			}
			// What was true stays so: Wait says that the service is as it is to be.
			mustEnd(t, f, "worker", orchestrate.RolloutCompleted)
		}
		events, err := f.Events(t.Context(), orchestrate.EventFilter{Service: "worker", Kinds: []orchestrate.EventKind{orchestrate.ServiceScaled}})
		if err != nil {
			t.Fatal(err)
		}
		last := 4
		for _, e := range events {
			if e.Scale == nil || e.Scale.From != last || len(e.Scale.Metrics) != 1 || e.Cause.Actor != "autoscaler" || e.Reason == "" {
				t.Fatalf("event %v with %+v; want the change from %d, with its metric and its reason", e, e.Scale, last)
			}
			last = e.Scale.To
		}
		if last != 20 || len(events) < 5 {
			t.Errorf("%d events, the last to %d tasks; want the whole story up to 20", len(events), last)
		}
		placed, err := f.Events(t.Context(), orchestrate.EventFilter{Service: "worker", Kinds: []orchestrate.EventKind{orchestrate.TaskPlaced}})
		if err != nil || placed[len(placed)-1].Cause.Actor != "autoscaler" {
			t.Errorf("the last task was placed because of %q (%v), want the autoscaler", placed[len(placed)-1].Cause.Actor, err)
		}
	})
}

// A policy can come, change and go.
func TestAutoscalePolicyChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, queue, _ := queued(t)
		queue.Store(95)
		plain := service("worker", 0)
		plain.Replicas = 2
		mustApply(t, f, plain)
		mustEnd(t, f, "worker", orchestrate.RolloutCompleted)
		expect := func(n int, when string) {
			t.Helper()
			time.Sleep(2 * time.Minute)
			if got := tasksOf(t, f, "worker"); got != n {
				t.Fatalf("%s: %d tasks, want %d", when, got, n)
			}
		}
		s := worker(autoscale.Policy{Max: 20})
		s.Replicas = 2
		mustApply(t, f, s)
		expect(10, "with a policy")
		var e *orchestrate.AutoscaledError
		if err := f.Scale(t.Context(), "worker", 3); !errors.As(err, &e) || !errors.Is(err, orchestrate.ErrAutoscaled) || e.Max != 20 {
			t.Errorf("scaling it by hand: %v, want that its policy decides", err)
		}
		s.Autoscale.Max = 5
		mustApply(t, f, s)
		expect(5, "with a lower maximum")
		s.Autoscale.Max = 20
		s.Containers[0].Image = "img:2"
		mustApply(t, f, s)
		expect(10, "with another image at the same time")
		mustEnd(t, f, "worker", orchestrate.RolloutCompleted)
		mustApply(t, f, plain)
		expect(2, "without a policy")
		if st, err := f.Get(t.Context(), "worker"); err != nil || st.Scale != nil {
			t.Errorf("without a policy Get says %+v, %v", st.Scale, err)
		}
		mustApply(t, f, s)
		expect(10, "with the policy again")
		if err := f.Remove(t.Context(), "worker"); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "worker", orchestrate.RolloutRemoved)
		s.Replicas, s.Autoscale.Max = 1, 3
		queue.Store(10)
		mustApply(t, f, s)
		expect(1, "as another service of the same name")
		if s.Autoscale.Metrics[0].Name = "unknown"; !errors.Is(f.Apply(t.Context(), s), orchestrate.ErrInvalid) {
			t.Error("a metric that nobody can read was accepted")
		}
	})
}

// A rollout that fails is rolled back to as many tasks as there are to be.
func TestAutoscaleRollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, queue, rt := queued(t)
		rt.SetImage("bad:1", runtimememory.Image{Program: runtimememory.Program{Life: time.Second, Code: 1}})
		queue.Store(40)
		s := worker(autoscale.Policy{Max: 20})
		s.Restart.Attempts = 1
		mustApply(t, f, s)
		time.Sleep(time.Minute)
		s.Containers[0].Image = "bad:1"
		mustApply(t, f, s)
		queue.Store(80)
		r := mustEnd(t, f, "worker", orchestrate.RolloutFailed)
		if r.Rollback == nil || r.Rollback.Outcome != orchestrate.RolloutCompleted {
			t.Fatalf("%v; want that it was rolled back", r)
		}
		time.Sleep(2 * time.Minute)
		if n := tasksOf(t, f, "worker"); n != 8 {
			t.Errorf("%d tasks after the rollback, want 8 of the revision before", n)
		}
		queue.Store(160)
		time.Sleep(2 * time.Minute)
		if n := tasksOf(t, f, "worker"); n != 16 {
			t.Errorf("%d tasks of the revision gone back to, want that it is scaled to 16", n)
		}
	})
}

// What the nodes measure: tasks that use more CPU than they should.
func TestAutoscaleByUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		var load atomic.Int64 // thousandths of a core, of all tasks together
		var tasks atomic.Int64
		tasks.Store(1)
		rt.SetImage("img:1", runtimememory.Image{Program: runtimememory.Program{
			Load:  func() float64 { return float64(load.Load()) / float64(tasks.Load()) },
			Stats: runtime.Stats{Memory: 64 << 20},
		}})
		s := service("web", 0)
		s.Containers[0].Resources.CPU = 500
		s.Autoscale = &autoscale.Policy{Max: 10, Metrics: []autoscale.Metric{{Name: "cpu", Utilization: 50}, {Name: "memory", Average: 128 << 20}},
			Down: autoscale.Rules{Window: time.Minute}}
		load.Store(250)
		mustApply(t, f, s)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		for _, scene := range []struct{ load, want int64 }{{250, 1}, {1000, 4}, {500, 2}} {
			load.Store(scene.load)
			for range 20 {
				time.Sleep(15 * time.Second)
				tasks.Store(int64(max(1, tasksOf(t, f, "web"))))
			}
			st, err := f.Get(t.Context(), "web")
			if n := tasksOf(t, f, "web"); err != nil || int64(n) != scene.want {
				t.Errorf("%d thousandths of a core make %d tasks (%+v, %v), want %d", scene.load, n, st.Scale, err, scene.want)
			}
		}
	})
}

// Another control plane that takes over knows what was decided, changes nothing
// for a load that stays, and shrinks nothing before it has seen a window.
func TestAutoscaleOfAnotherLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var length atomic.Int64
		metric := orchestrate.WithMetric("queue", func(context.Context, string) (float64, error) { return float64(length.Load()), nil })
		s := storememory.New(storememory.Options{})
		f, _ := openFleet(t, s, metric)
		length.Store(80)
		mustApply(t, f, worker(autoscale.Policy{Max: 20}))
		time.Sleep(time.Minute)
		second, err := orchestrate.New(s, metric)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- second.Run(ctx) }()
		defer cancel()
		events, err := second.Watch(ctx, orchestrate.WatchOnly(orchestrate.EventFilter{Kinds: []orchestrate.EventKind{orchestrate.ServiceScaled, orchestrate.TaskStopping}}))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		select {
		case e := <-events:
			t.Fatalf("the load stayed, and the new leader did: %v", e)
		default:
		}
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		third, err := orchestrate.New(s, metric)
		if err != nil {
			t.Fatal(err)
		}
		length.Store(10)
		began := time.Now()
		last, stop := context.WithCancel(t.Context())
		defer func() {
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}()
		go func() { ended <- third.Run(last) }()
		if events, err = third.Watch(last, orchestrate.WatchOnly(orchestrate.EventFilter{Kinds: []orchestrate.EventKind{orchestrate.ServiceScaled}})); err != nil {
			t.Fatal(err)
		}
		e := <-events
		if took := time.Since(began); took < 5*time.Minute || e.Scale.From != 8 || e.Scale.To != 1 {
			t.Errorf("after %v: %v; want that it shrinks from 8 to 1, and not before 5 minutes", took, e)
		}
	})
}

// Connections wake a service that sleeps, and keep it awake.
func TestAutoscaleByRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := storememory.New(storememory.Options{})
		network := networkmemory.New(networkmemory.Options{})
		f, _ := openFleetOn(t, st, network)
		s := service("web", 8080)
		s.Replicas = orchestrate.None
		s.Autoscale = &autoscale.Policy{Min: autoscale.None, Max: 10, Idle: 2 * time.Minute,
			Metrics: []autoscale.Metric{{Name: autoscale.Requests, Average: 10}}, Down: autoscale.Rules{Window: -1}}
		mustApply(t, f, s)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		here := netip.MustParseAddrPort("192.0.2.1:8080")
		client := netip.MustParseAddr("192.0.2.2")
		for _, scene := range []struct {
			rate, want int
			refused    bool
		}{{0, 0, false}, {1, 1, true}, {35, 4, false}, {0, 0, false}} {
			refused := false
			for range 180 { // three minutes
				for range scene.rate {
					_, err := network.Dial("tcp", client, here)
					refused = refused || err != nil
				}
				time.Sleep(time.Second)
			}
			status, err := f.Get(t.Context(), "web")
			if n := tasksOf(t, f, "web"); err != nil || n != scene.want || refused != scene.refused {
				t.Errorf("%d connections a second make %d tasks (%+v, %v), and one was refused: %v; want %d, %v", scene.rate, n, status.Scale, err, refused, scene.want, scene.refused)
			}
		}
		if n := records(t, st, "/usage/"); n != 1 {
			t.Errorf("%d records of use, want one of the node", n)
		}
		s.Autoscale = nil
		mustApply(t, f, s)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		time.Sleep(time.Minute)
		if n := records(t, st, "/usage/") + records(t, st, "/scales/"); n != 0 {
			t.Errorf("%d records are left of an autoscaler that is gone", n)
		}
	})
}

// A metric of single tasks: what each says of itself, asked for those there are.
func TestAutoscaleByTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var each atomic.Int64
		s := storememory.New(storememory.Options{})
		f, _ := openFleet(t, s, orchestrate.WithTaskMetric("queue", func(_ context.Context, service string, tasks []string) (map[string]float64, error) {
			if service != "default/worker" || each.Load() < 0 {
				return nil, fmt.Errorf("no metric of %s", service)
			}
			values := map[string]float64{}
			for _, id := range tasks {
				values[id] = float64(each.Load())
			}
			return values, nil
		}))
		each.Store(10)
		w := worker(autoscale.Policy{Max: 20})
		w.Replicas = 4
		mustApply(t, f, w)
		mustEnd(t, f, "worker", orchestrate.RolloutCompleted)
		time.Sleep(time.Minute)
		if n := tasksOf(t, f, "worker"); n != 4 {
			t.Errorf("each of 4 tasks has what one is to have: there are %d, want still 4", n)
		}
		each.Store(20)
		time.Sleep(15 * time.Second) // once decided
		if n := tasksOf(t, f, "worker"); n < 8 {
			t.Errorf("each of 4 tasks has twice what one is to have: there are %d, want at least 8", n)
		}
		each.Store(-1)
		before := tasksOf(t, f, "worker")
		time.Sleep(10 * time.Minute)
		if n := tasksOf(t, f, "worker"); n < before {
			t.Errorf("the metric failed: there are %d tasks, want no fewer than %d", n, before)
		}
	})
}

// watchCounter counts the watches that are open of each prefix.
type watchCounter struct {
	store.Store
	mu   sync.Mutex
	open map[string]int
}

func (c *watchCounter) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	batches, err := c.Store.Watch(ctx, prefix, after)
	if err == nil {
		c.add(prefix, 1)
		context.AfterFunc(ctx, func() { c.add(prefix, -1) })
	}
	return batches, err
}

func (c *watchCounter) add(prefix string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[prefix] += n
}

func (c *watchCounter) of(prefix string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open[prefix]
}

// A leader of services that are not scaled does not look at what autoscalers do.
func TestAutoscalersCostNothingWhereNothingIsScaled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &watchCounter{Store: storememory.New(storememory.Options{}), open: map[string]int{}}
		f, _ := openFleet(t, s, orchestrate.WithMetric("queue", func(context.Context, string) (float64, error) { return 40, nil }))
		plain := service("plain", 1)
		mustApply(t, f, plain)
		mustEnd(t, f, "plain", orchestrate.RolloutCompleted)
		scaled := worker(autoscale.Policy{Min: 1, Max: 20})
		for i := range 3 {
			synctest.Wait()
			rest := s.of("/status/")
			if n := s.of("/usage/"); n != 0 {
				t.Errorf("round %d: without a service that is scaled there are %d watches of use, want none", i, n)
			}
			mustApply(t, f, scaled)
			time.Sleep(5 * time.Minute)
			if n, status := s.of("/usage/"), s.of("/status/"); n != 1 || status != rest+1 {
				t.Errorf("round %d: with one there are %d watches of use and %d of statuses, want 1 and %d", i, n, status, rest+1)
			}
			if n := tasksOf(t, f, "worker"); n != 4 {
				t.Errorf("round %d: %d ready tasks, want the 4 that the metric asks for", i, n)
			}
			if err := f.Remove(t.Context(), "worker"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
	})
}
