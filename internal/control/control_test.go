package control_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

var quick = control.Update{Parallelism: 1, Monitor: 2 * time.Second, ProgressDeadline: time.Minute}

func TestLoopDeploysUpdatesScalesAndRemoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, memory.New(memory.Options{}), 3)

		r := f.wait("web", f.apply("web", spec{Replicas: 3, Image: "v1", Memory: 100, Update: quick}))
		checkRollout(t, f, "web", r, "v1", 3)
		nodes := map[string]int{}
		for _, task := range f.tasks("web") {
			nodes[task.Node]++
		}
		if len(nodes) != 3 {
			t.Errorf("3 replicas are on %v, want one on each of 3 nodes", nodes)
		}

		r = f.wait("web", f.apply("web", spec{Replicas: 3, Image: "v2", Memory: 100, Update: quick}))
		checkRollout(t, f, "web", r, "v2", 3)
		before := f.tasks("web")

		r = f.wait("web", f.apply("web", spec{Replicas: 5, Image: "v2", Memory: 100, Update: quick, Labels: "x"}))
		checkRollout(t, f, "web", r, "v2", 5)
		ids := map[string]bool{}
		for _, task := range f.tasks("web") {
			ids[task.ID] = true
		}
		for _, task := range before {
			if !ids[task.ID] {
				t.Errorf("scaling replaced task %s; it must restart nothing", task.ID)
			}
		}

		r = f.wait("web", f.apply("web", spec{Replicas: 2, Image: "v2", Memory: 100, Update: quick}))
		checkRollout(t, f, "web", r, "v2", 2)

		f.commit(store.Delete(record.Key(record.Services, "default", "web")))
		time.Sleep(10 * time.Second)
		if tasks := f.tasks("web"); len(tasks) != 0 {
			t.Errorf("after removal there are %d tasks, want none: %+v", len(tasks), tasks)
		}
		if _, found := f.rollout("web"); found {
			t.Error("after removal there is a rollout, want none")
		}
		f.quiet(time.Hour)
	})
}

// checkRollout checks that r completed, and that what it says is what runs.
func checkRollout(t *testing.T, f *fleet, name string, r record.Rollout, image string, n int) {
	t.Helper()
	if r.State != record.RolloutCompleted || r.Hash != image || r.Ready != n || r.Updated != n || r.Desired != n {
		t.Errorf("rollout of %s is %+v, want completed with %d ready of %s", name, r, n, image)
	}
	tasks := f.tasks(name)
	for _, task := range tasks {
		if task.Hash != image || task.Stop != nil {
			t.Errorf("task %s of %s with stop %v is left, want only running ones of %s", task.ID, task.Hash, task.Stop, image)
		}
	}
	if len(tasks) != n {
		t.Errorf("%d tasks of %s run, want %d", len(tasks), name, n)
	}
}

// quiet checks that nothing is written while nothing happens, except that
// leases are kept.
func (f *fleet) quiet(d time.Duration) {
	f.t.Helper()
	rev := func() int64 {
		s, err := f.store.List(f.ctx, "/none")
		if err != nil {
			f.t.Fatal(err)
		}
		return s.Revision
	}
	time.Sleep(10 * time.Second) // what is under way ends
	before := rev()
	time.Sleep(d)
	if after := rev(); after != before {
		f.t.Errorf("%d commits in a quiet %v, want none", after-before, d)
	}
}

// A deployment always ends in a result. Each kind of failure has its own.
func TestLoopResults(t *testing.T) {
	for name, c := range map[string]struct {
		spec  spec
		state record.RolloutState
		why   string
		kind  record.FailureKind
	}{
		"good":           {spec{Replicas: 2, Image: "v2", Update: quick}, record.RolloutCompleted, "", ""},
		"none":           {spec{Replicas: 0, Image: "v2", Update: quick}, record.RolloutCompleted, "", ""},
		"crash loop":     {spec{Replicas: 2, Image: "bad", Update: quick}, record.RolloutFailed, record.WhyFailures, record.FailedExit},
		"never ready":    {spec{Replicas: 2, Image: "slow", Update: quick}, record.RolloutFailed, record.WhyDeadline, ""},
		"no capacity":    {spec{Replicas: 2, Image: "v2", Memory: 5000, Update: quick}, record.RolloutFailed, record.WhyCapacity, ""},
		"no network":     {spec{Replicas: 2, Image: "v2", Networks: []string{"x"}, Update: quick}, record.RolloutFailed, record.WhyNetwork, ""},
		"ready, and not": {spec{Replicas: 1, Image: "flaky", Update: control.Update{Monitor: 10 * time.Second, ProgressDeadline: time.Hour}}, record.RolloutFailed, record.WhyFailures, record.FailedExit},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startFleet(t, memory.New(memory.Options{}), 2)
				f.wait("web", f.apply("web", spec{Replicas: 2, Image: "v1", Memory: 100, Update: quick}))
				r := f.wait("web", f.apply("web", c.spec))
				if r.State != c.state || r.Reason != c.why {
					t.Errorf("the rollout is %s for %q (%s), want %s for %q", r.State, r.Reason, r.Message, c.state, c.why)
				}
				if kind := failureKind(r); kind != c.kind {
					t.Errorf("the rollout's failure is of kind %q, want %q", kind, c.kind)
				}
				if c.state == record.RolloutCompleted {
					return
				}
				if r.Message == "" {
					t.Error("the rollout failed without a word")
				}
				serving := 0
				for _, task := range f.tasks("web") {
					if task.Hash == "v1" && task.Stop == nil {
						serving++
					}
				}
				if serving != c.spec.Replicas {
					t.Errorf("%d old tasks serve after the failure, want %d: nothing that served may be lost", serving, c.spec.Replicas)
				}
				f.quiet(24 * time.Hour)
			})
		})
	}
}

func failureKind(r record.Rollout) record.FailureKind {
	if r.Failure == nil {
		return ""
	}
	return r.Failure.Kind
}

// TestLoopKilledLeader kills the leader in the middle of a rollout, at many
// moments. Another takes over, and the result is the same.
func TestLoopKilledLeader(t *testing.T) {
	for at := 100 * time.Millisecond; at < 12*time.Second; at += 700 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			f := startFleet(t, memory.New(memory.Options{}), 3)
			f.wait("web", f.apply("web", spec{Replicas: 3, Image: "v1", Memory: 100, Update: quick}))
			f.loop(f.ctx, "second")
			rev := f.apply("web", spec{Replicas: 3, Image: "v2", Memory: 100, Update: quick})
			time.Sleep(at)
			f.commit(store.Delete(record.Leader)) // deposed, without a word
			r := f.wait("web", rev)
			checkRollout(t, f, "web", r, "v2", 3)
		})
	}
}

// stalled is a store whose leader's commits can be held up on their way.
type stalled struct {
	store.Store

	mu     sync.Mutex
	hold   chan struct{} // when not nil, commits wait until it is closed
	result error         // of the last commit that waited
}

func (s *stalled) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	s.mu.Lock()
	hold := s.hold
	s.mu.Unlock()
	if hold == nil {
		return s.Store.Commit(ctx, txn)
	}
	<-hold
	rev, err := s.Store.Commit(context.WithoutCancel(ctx), txn) // it was on its way already
	s.mu.Lock()
	s.result = err
	s.mu.Unlock()
	return rev, err
}

// TestLoopStaleLeaderCannotWrite holds up a leader's commit until another has
// done its work.
func TestLoopStaleLeaderCannotWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, memory.New(memory.Options{}), 2)
		first, cancel := context.WithCancel(f.ctx)
		slow := &stalled{Store: f.store}
		f.commit(store.Put(record.Leader, nil)) // the one of startFleet is deposed, and waits
		time.Sleep(time.Second)
		f.loopOn(first, slow, "slow")
		f.commit(store.Delete(record.Leader))
		defer cancel()
		f.wait("web", f.apply("web", spec{Replicas: 2, Image: "v1", Memory: 100, Update: quick}))
		for f.leader() != "slow" {
			f.commit(store.Delete(record.Leader))
			time.Sleep(time.Minute)
		}

		hold := make(chan struct{})
		slow.mu.Lock()
		slow.hold = hold
		slow.mu.Unlock()
		rev := f.apply("web", spec{Replicas: 2, Image: "v2", Memory: 100, Update: quick})
		time.Sleep(time.Second)
		if r, _ := f.rollout("web"); r.Spec == rev {
			t.Fatal("the commit was not held up")
		}
		f.commit(store.Delete(record.Leader))
		r := f.wait("web", rev)
		checkRollout(t, f, "web", r, "v2", 2)
		before := f.tasks("web")

		cancel()
		close(hold)
		synctest.Wait()
		slow.mu.Lock()
		defer slow.mu.Unlock()
		if !errors.Is(slow.result, store.ErrConflict) {
			t.Errorf("the stale leader's commit ended with %v, want a conflict", slow.result)
		}
		if after := f.tasks("web"); !reflect.DeepEqual(before, after) {
			t.Errorf("the stale leader changed the tasks from %+v to %+v", before, after)
		}
	})
}

// leader is who leads.
func (f *fleet) leader() string {
	f.t.Helper()
	l, err := store.Election{Store: f.store, Key: record.Leader, ID: "?"}.Leader(f.ctx)
	if err != nil && !errors.Is(err, store.ErrNoLeader) {
		f.t.Fatal(err)
	}
	return l.ID
}

// TestLoopNodes kills, drains and brings back nodes.
func TestLoopNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, memory.New(memory.Options{}), 3)
		f.wait("web", f.apply("web", spec{Replicas: 3, Image: "v1", Memory: 100, Update: quick}))
		f.nodes["n1"]()
		time.Sleep(time.Minute)
		f.serving("web", "v1", 3, "n1")

		f.node("n1")
		time.Sleep(time.Minute)
		if tasks := f.tasks("web"); len(tasks) != 3 {
			t.Errorf("after its node returned there are %d tasks, want 3: the lost one stops", len(tasks))
		}
		f.commit(store.Put(record.Key(record.NodeSpecs, "n2"), marshal(t, record.NodeSpec{Drain: true})))
		time.Sleep(time.Minute)
		f.serving("web", "v1", 3, "n2")
		if r, _ := f.rollout("web"); r.State != record.RolloutCompleted {
			t.Errorf("the rollout is %s after its nodes failed, want still completed", r.State)
		}
		f.quiet(time.Hour)
	})
}

// serving checks that n tasks run, none of them on a node.
func (f *fleet) serving(name, image string, n int, without string) {
	f.t.Helper()
	serving := 0
	for _, task := range f.tasks(name) {
		item, found, err := store.Get(f.ctx, f.store, record.Key(record.Statuses, task.Node, task.ID))
		if err != nil {
			f.t.Fatal(err)
		}
		var st record.Status
		if found {
			unmarshal(f.t, item.Value, &st)
		}
		if st.State == record.Ready && task.Stop == nil && task.Hash == image {
			serving++
			if task.Node == without {
				f.t.Errorf("task %s still serves on %s", task.ID, without)
			}
		}
	}
	if serving != n {
		f.t.Errorf("%d tasks of %s serve, want %d", serving, name, n)
	}
}

// TestLoopCompactedWatch has the leader lose the history it was reading.
func TestLoopCompactedWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, memory.New(memory.Options{History: 2}), 3)
		for i := range 20 {
			f.apply(fmt.Sprintf("web%d", i), spec{Replicas: 3, Image: "v1", Memory: 1, Update: quick})
		}
		for i := range 20 {
			name := fmt.Sprintf("web%d", i)
			item, _, err := store.Get(f.ctx, f.store, record.Key(record.Services, "default", name))
			if err != nil {
				t.Fatal(err)
			}
			checkRollout(t, f, name, f.wait(name, item.Revision), "v1", 3)
		}
	})
}

// TestLoopBigService makes plans of more writes than fit a transaction.
func TestLoopBigService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, memory.New(memory.Options{}), 5)
		update := control.Update{Parallelism: 300, Monitor: time.Second, ProgressDeadline: time.Minute}
		checkRollout(t, f, "web", f.wait("web", f.apply("web", spec{Replicas: 1000, Image: "v1", Memory: 1, Update: update})), "v1", 1000)
		checkRollout(t, f, "web", f.wait("web", f.apply("web", spec{Replicas: 1000, Image: "v2", Memory: 1, Update: update})), "v2", 1000)
		f.commit(store.Delete(record.Key(record.Services, "default", "web")))
		time.Sleep(time.Minute)
		if tasks := f.tasks("web"); len(tasks) != 0 {
			t.Errorf("%d tasks are left after removal", len(tasks))
		}
	})
}

func TestNewRefusesMissingOptions(t *testing.T) {
	good := control.Options{Store: memory.New(memory.Options{}), ID: "x", Scheduler: newScheduler(t), Decode: decode}
	for want, spoil := range map[string]func(*control.Options){
		"Store":     func(o *control.Options) { o.Store = nil },
		"ID":        func(o *control.Options) { o.ID = "" },
		"Scheduler": func(o *control.Options) { o.Scheduler = nil },
		"Decode":    func(o *control.Options) { o.Decode = nil },
		"LeaseTTL":  func(o *control.Options) { o.LeaseTTL = -1 },
		"LostAfter": func(o *control.Options) { o.LostAfter = -1 },
	} {
		opts := good
		spoil(&opts)
		_, err := control.New(opts)
		var got *control.OptionError
		if !errors.As(err, &got) || got.Option != want {
			t.Errorf("New with a bad %s returns %v, want an OptionError that names it", want, err)
		}
	}
	if err := good.Store.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestLoopEndsWithItsStore: a store that is closed is not waited for.
func TestLoopEndsWithItsStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New(memory.Options{})
		loop, err := control.New(control.Options{Store: s, ID: "x", Scheduler: newScheduler(t), Decode: decode})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- loop.Run(t.Context()) }()
		time.Sleep(time.Second)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, store.ErrClosed) {
			t.Errorf("Run returned %v, want that the store is closed", err)
		}
	})
}

// late is a store whose watches lag behind.
type late struct{ store.Store }

func (s late) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	in, err := s.Store.Watch(ctx, prefix, after)
	if err != nil || prefix != "" {
		return in, err
	}
	out := make(chan store.Batch)
	go func() {
		defer close(out)
		for b := range in {
			if pause(ctx, 300*time.Millisecond) {
				select {
				case out <- b:
				case <-ctx.Done():
				}
			}
		}
	}()
	return out, nil
}

// TestLoopLateWatch: a leader that has not yet seen what it wrote does not write
// it again.
func TestLoopLateWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, late{memory.New(memory.Options{})}, 3)
		update := quick
		update.ProgressDeadline = 10 * time.Minute
		// The second spec arrives after the tasks for the first were written, and
		// before they are seen.
		f.apply("web", spec{Replicas: 5, Image: "v1", Memory: 1, Update: update})
		r := f.wait("web", f.apply("web", spec{Replicas: 5, Image: "v1", Memory: 1, Update: update, Labels: "x"}))
		checkRollout(t, f, "web", r, "v1", 5)
		f.mu.Lock()
		defer f.mu.Unlock()
		placed := 0
		for _, e := range f.events {
			if e.Kind == control.TaskPlaced {
				placed++
			}
		}
		if placed != 5 {
			t.Errorf("%d tasks were started for 5 replicas", placed)
		}
	})
}
