package control_test

import (
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
	before := rev()
	time.Sleep(d)
	if after := rev(); after != before {
		f.t.Errorf("%d commits in a quiet %v, want none", after-before, d)
	}
}
