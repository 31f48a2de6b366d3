package control_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
	"pgregory.net/rapid"
)

// jobWorld is a store with one job, whose agents the test plays.
type jobWorld struct {
	t    testing.TB
	work control.JobWork
	kv   map[string]store.Item
	rev  int64
	now  time.Time
	wake time.Time
	s    *control.State
	// ends counts the tasks of an index that the agents saw end, by how.
	completed, failed map[int]int
}

func newJobWorld(t testing.TB, work control.JobWork) *jobWorld {
	w := &jobWorld{t: t, work: work, kv: map[string]store.Item{}, now: epoch, completed: map[int]int{}, failed: map[int]int{}}
	w.lead()
	w.put(record.Nodes+"n1", record.Node{Node: scheduler.Node{ID: "n1", Capacity: scheduler.Resources{CPU: 1 << 30, Memory: 1 << 50}}})
	w.put(record.Alive+"n1", struct{}{})
	w.put(record.Jobs+"default/j", record.Job{Run: 1, Hash: "h", Created: epoch, Spec: json.RawMessage(`{}`)})
	return w
}

func (w *jobWorld) lead() {
	w.s = control.NewState(control.Config{Place: evenly{}, Decode: decode,
		DecodeJob: func(string, string, record.Job) (control.JobWork, error) { return w.work, nil }})
	snapshot := store.Snapshot{Revision: w.rev}
	for _, key := range slices.Sorted(maps.Keys(w.kv)) {
		snapshot.Items = append(snapshot.Items, w.kv[key])
	}
	w.s.Load(snapshot, w.now)
}

func (w *jobWorld) fork() *jobWorld {
	c := *w
	c.kv, c.completed, c.failed = maps.Clone(w.kv), maps.Clone(w.completed), maps.Clone(w.failed)
	c.lead() // each branch is a new leader, which must come to the same end
	return &c
}

func (w *jobWorld) write(writes ...store.Write) {
	w.rev++
	b := store.Batch{Revision: w.rev}
	for _, wr := range writes {
		item := store.Item{Key: wr.Key, Value: wr.Value, Revision: w.rev}
		if wr.Delete {
			delete(w.kv, wr.Key)
		} else {
			w.kv[wr.Key] = item
		}
		b.Changes = append(b.Changes, store.Change{Item: item, Deleted: wr.Delete})
	}
	w.s.Apply(b, w.now)
}

func (w *jobWorld) put(key string, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		w.t.Fatal(err)
	}
	w.write(store.Put(key, data))
}

// plan carries out what is planned until nothing is. With most at 0 or more the
// leader dies after so many writes, and another follows.
func (w *jobWorld) plan(most int) {
	for round := 0; ; round++ {
		p := w.s.Plan(w.now)
		w.wake = p.Wake
		if len(p.Writes) == 0 {
			return
		}
		if round > 10 {
			w.t.Fatal("the planner does not come to rest")
		}
		if most >= 0 && len(p.Writes) > most {
			if p.Writes = p.Writes[:most]; most > 0 {
				w.write(p.Writes...)
			}
			most = -1
			w.lead()
			continue
		}
		w.write(p.Writes...)
	}
}

func (w *jobWorld) run() (r record.Run) {
	if err := json.Unmarshal(w.kv[record.Runs+"default/j"].Value, &r); err != nil {
		w.t.Fatal(err)
	}
	return r
}

// tasks are those that have not ended, by ID.
func (w *jobWorld) tasks() (tasks []record.Task) {
	for _, key := range slices.Sorted(maps.Keys(w.kv)) {
		rest, ok := strings.CutPrefix(key, record.Tasks)
		if _, ended := w.kv[record.Statuses+rest]; !ok || ended {
			continue
		}
		var t record.Task
		if err := json.Unmarshal(w.kv[key].Value, &t); err != nil {
			w.t.Fatal(err)
		}
		tasks = append(tasks, t)
	}
	return tasks
}

func (w *jobWorld) end(t record.Task, state record.State) {
	st := record.Status{Task: t.ID, Node: t.Node, Service: t.Service, Namespace: t.Namespace, State: state, Since: w.now}
	switch state {
	case record.Failed:
		st.Failure = &record.Failure{Kind: record.FailedExit, ExitCode: 1, Message: "exit code 1"}
		if t.Stop == nil {
			w.failed[t.Slot]++
		}
	case record.Completed:
		w.completed[t.Slot]++
	}
	w.put(record.Key(record.Statuses, t.Node, t.ID), st)
}

// check holds what is always true.
func (w *jobWorld) check() {
	w.t.Helper()
	live := map[int]int{}
	for _, t := range w.tasks() {
		if live[t.Slot]++; live[t.Slot] > 1 {
			w.t.Fatalf("index %d runs twice", t.Slot)
		}
	}
	if len(live) > w.work.Parallelism {
		w.t.Fatalf("%d tasks run, want at most %d", len(live), w.work.Parallelism)
	}
	r := w.run()
	for i := range w.work.Indexes {
		if r.Done.Has(i) != (w.completed[i] > 0) || w.completed[i] > 1 {
			if !r.State.Final() || r.Done.Has(i) {
				w.t.Fatalf("index %d: done %v, and its tasks completed %d times", i, r.Done.Has(i), w.completed[i])
			}
		}
		if r.Failed.Has(i) && w.failed[i] != w.work.Retries+1 {
			w.t.Fatalf("index %d is given up after %d failures, want %d", i, w.failed[i], w.work.Retries+1)
		}
		if !r.Failed.Has(i) && !r.State.Final() && r.Tries[i].Failures != w.failed[i] && !r.Done.Has(i) {
			w.t.Fatalf("index %d has %d failures, want %d", i, r.Tries[i].Failures, w.failed[i])
		}
	}
	switch {
	case r.State == record.RunCompleted && r.Done.Len() < w.work.Enough,
		r.State == record.RunFailed && r.Failed.Len() <= w.work.Indexes-w.work.Enough:
		w.t.Fatalf("it is %s with %d done and %d given up", r.State, r.Done.Len(), r.Failed.Len())
	case r.State == record.RunActive && len(live) == 0 && w.wake.IsZero():
		w.t.Fatal("it hangs: active, without a task or a time to look again")
	}
}

func smallJob(indexes, parallelism, retries, enough, keep int) control.JobWork {
	return control.JobWork{Workload: control.Workload{Replicas: parallelism, Template: json.RawMessage(`{}`)},
		Indexes: indexes, Parallelism: parallelism, Retries: retries, Enough: enough, Keep: keep,
		Backoff: time.Second, MaxBackoff: time.Minute}
}

// TestJobWalk walks through every order in which the tasks of small jobs can end,
// with a new leader at each step and one that dies after each number of writes.
func TestJobWalk(t *testing.T) {
	for _, work := range []control.JobWork{
		smallJob(1, 1, 1, 1, 0), smallJob(2, 1, 1, 2, 1), smallJob(2, 2, 1, 2, 0), smallJob(3, 2, 0, 2, 2), smallJob(3, 3, 0, 1, 0),
	} {
		t.Run(fmt.Sprintf("%d-%d-%d-%d", work.Indexes, work.Parallelism, work.Retries, work.Enough), func(t *testing.T) {
			ends, steps := 0, 0
			var walk func(w *jobWorld)
			walk = func(w *jobWorld) {
				steps++
				w.check()
				tasks := w.tasks()
				if len(tasks) == 0 {
					if w.run().State.Final() {
						ends++
						return
					}
					next := w.fork()
					next.now = w.wake
					next.plan(-1)
					walk(next)
					return
				}
				for _, task := range tasks {
					states := []record.State{record.Completed, record.Failed}
					if task.Stop != nil {
						states = []record.State{record.Stopped, record.Failed}
					}
					for _, state := range states {
						for most := -1; most < 3; most++ {
							next := w.fork()
							next.end(task, state)
							next.plan(most)
							walk(next)
						}
					}
				}
			}
			w := newJobWorld(t, work)
			w.plan(-1)
			walk(w)
			if ends == 0 {
				t.Error("no walk came to an end")
			}
			t.Logf("%d steps, %d ends", steps, ends)
		})
	}
}

// TestJobProperties draws larger jobs, with suspensions and lost leaders.
func TestJobProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 60).Draw(rt, "indexes")
		work := smallJob(n, rapid.IntRange(1, 20).Draw(rt, "parallelism"), rapid.IntRange(0, 3).Draw(rt, "retries"),
			rapid.IntRange(1, n).Draw(rt, "enough"), rapid.IntRange(0, 5).Draw(rt, "keep"))
		w := newJobWorld(t, work)
		w.plan(-1)
		for step := 0; ; step++ {
			w.check()
			tasks := w.tasks()
			if w.run().State.Final() && len(tasks) == 0 {
				break
			}
			if step > 5000 {
				rt.Fatal("it does not end")
			}
			if len(tasks) == 0 {
				w.now = w.wake
			} else {
				task := tasks[rapid.IntRange(0, len(tasks)-1).Draw(rt, "task")]
				state := record.Stopped
				if task.Stop == nil {
					state = rapid.SampledFrom([]record.State{record.Completed, record.Completed, record.Failed}).Draw(rt, "state")
				}
				w.end(task, state)
			}
			if rapid.IntRange(0, 5).Draw(rt, "leader") == 0 {
				w.plan(rapid.IntRange(0, 5).Draw(rt, "writes"))
			} else {
				w.plan(-1)
			}
		}
	})
}

// BenchmarkJobEvent is one task's end and the start of the next, in a job of
// many indexes that is half done.
func BenchmarkJobEvent(b *testing.B) {
	for _, n := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newJobWorld(b, smallJob(n, 10, 3, n, 10))
			w.plan(-1)
			for b.Loop() {
				tasks := w.tasks()
				if len(tasks) == 0 {
					b.StopTimer()
					w = newJobWorld(b, w.work)
					w.plan(-1)
					tasks = w.tasks()
					b.StartTimer()
				}
				w.end(tasks[0], record.Completed)
				w.plan(-1)
			}
		})
	}
}
