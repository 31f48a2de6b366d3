package control_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/bolt"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

// auditor reads every commit from the first and checks that what the leader did
// to a task is told in the same commit, once, and that nothing else is told.
type auditor struct {
	t     *testing.T
	tasks map[string]record.Task // by key
	told  map[string]int         // how often, by kind and task
	lost  map[string]int         // NodeLost less NodeReturned, by node
	count int
	// commits is how many commits had events of the leader.
	commits int
}

// audit runs until the returned function is called.
func audit(t *testing.T, s store.Store) (done func() *auditor) {
	t.Helper()
	a := &auditor{t: t, tasks: map[string]record.Task{}, told: map[string]int{}, lost: map[string]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	batches, err := s.Watch(ctx, "/", 0)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for b := range batches {
			if b.Err != nil {
				t.Errorf("the audit lost history: %v", b.Err)
				return
			}
			a.commit(b)
		}
	})
	return func() *auditor {
		synctest.Wait()
		cancel()
		wg.Wait()
		return a
	}
}

func (a *auditor) commit(b store.Batch) {
	did, says := map[string]bool{}, map[string]bool{}
	for _, c := range b.Changes {
		switch {
		case strings.HasPrefix(c.Item.Key, record.Tasks):
			old, had := a.tasks[c.Item.Key]
			if c.Deleted {
				did[string(control.TaskDeleted)+" "+old.ID] = true
				delete(a.tasks, c.Item.Key)
				continue
			}
			var rec record.Task
			unmarshal(a.t, c.Item.Value, &rec)
			a.tasks[c.Item.Key] = rec
			if !had {
				did[string(control.TaskPlaced)+" "+rec.ID] = true
			}
			if rec.Stop != nil && old.Stop == nil {
				did[string(control.TaskStopping)+" "+rec.ID] = true
			}
		case strings.HasPrefix(c.Item.Key, record.Kept+"leader/") && !c.Deleted:
			a.commits++
			events, err := record.DecodeEvents(c.Item.Value)
			if err != nil {
				a.t.Error(err)
			}
			for _, e := range events {
				a.count++
				switch e.Kind {
				case control.TaskPlaced, control.TaskStopping, control.TaskDeleted:
					what := string(e.Kind) + " " + e.Task
					says[what] = true
					a.told[what]++
				case control.NodeLost:
					a.lost[e.Node]++
				case control.NodeReturned:
					a.lost[e.Node]--
				}
				if e.Cause.Actor == "" {
					a.t.Errorf("%s of %s names no actor: %+v", e.Kind, e.Object(), e)
				}
			}
		}
	}
	for what := range did {
		if !says[what] {
			a.t.Errorf("commit %d does not tell: %s", b.Revision, what)
		}
	}
	for what := range says {
		if !did[what] {
			a.t.Errorf("commit %d tells, and does not do: %s", b.Revision, what)
		}
	}
}

func (a *auditor) verdict() {
	a.t.Helper()
	for what, n := range a.told {
		if n != 1 {
			a.t.Errorf("told %d times: %s", n, what)
		}
	}
	if len(a.told) == 0 {
		a.t.Error("nothing was told")
	}
}

// dying is a store of which the n-th commit of the leader goes wrong: before it
// is made, or after.
type dying struct {
	store.Store
	mu    sync.Mutex
	left  int
	after bool
}

var errDied = errors.New("the power went off")

func (d *dying) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	fenced := len(txn.If) > 0 && txn.If[0].Key == record.Leader && txn.If[0].Revision > 0
	d.mu.Lock()
	dies := false
	if fenced {
		d.left--
		dies = d.left == 0
	}
	d.mu.Unlock()
	if dies && !d.after {
		return 0, errDied
	}
	rev, err := d.Store.Commit(ctx, txn)
	if dies {
		return 0, errDied
	}
	return rev, err
}

// Whichever commit a leader dies in, before it is made or after, the next leader
// tells of each decision once: of all that were made, and of no other.
func TestEventsAreToldOnce(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n := 1; n <= 25; n += 2 {
			synctest.Test(t, func(t *testing.T) {
				s := memory.New(memory.Options{})
				done := audit(t, s)
				f := startFleet(t, &dying{Store: s, left: n, after: after}, 3)
				f.loop(f.ctx, "second")
				f.wait("web", f.apply("web", spec{Replicas: 3, Image: "v1", Memory: 100, Update: quick}))
				f.nodes["n1"]()
				rev := f.apply("web", spec{Replicas: 4, Image: "v2", Memory: 100, Update: quick})
				time.Sleep(3 * time.Second)
				f.commit(store.Delete(record.Leader)) // and one is deposed, without a word
				f.wait("web", rev)
				time.Sleep(5 * time.Minute)
				f.commit(store.Delete(record.Leader)) // n1 is silent still: that has been told
				time.Sleep(5 * time.Minute)
				a := done()
				a.verdict()
				if a.lost["n1"] != 1 {
					t.Errorf("dying in commit %d: that n1 is lost is told %d times, want once", n, a.lost["n1"])
				}
			})
		}
	}
}

// A rollout of a thousand tasks costs one record of events a commit, and leaves
// of its history only the latest, and of another's all.
func TestEventsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New(memory.Options{})
		done := audit(t, s)
		f := startFleet(t, s, 5)
		f.wait("quiet", f.apply("quiet", spec{Replicas: 2, Image: "v1", Memory: 1, Update: quick}))
		quiet := f.kept("default/quiet")
		update := control.Update{Parallelism: 200, Monitor: time.Second, ProgressDeadline: time.Minute}
		// Records are forgotten some at a time, so enough of them must come.
		for i := range 16 {
			f.wait("web", f.apply("web", spec{Replicas: 600, Image: fmt.Sprintf("v%d", i), Memory: 1, Update: update}))
		}
		if now := f.kept("default/quiet"); fmt.Sprint(now) != fmt.Sprint(quiet) {
			t.Errorf("of the quiet service is kept\n%v\nwant\n%v", now, quiet)
		}
		n := len(f.kept("default/web"))
		a := done()
		a.verdict()
		if n < control.KeepEventsEach || n >= a.count/2 {
			t.Errorf("%d of %d events are kept, want at least %d, and most forgotten", n, a.count, control.KeepEventsEach)
		}
		// How many commits the agents' words arrive in is for the machine to say.
		if a.commits*2 > a.count {
			t.Errorf("%d events took %d records, want several in one", a.count, a.commits)
		}
		if item, found, err := store.Get(f.ctx, s, record.Oblivion); err != nil || !found {
			t.Errorf("nothing says what was forgotten: %v, %v", item, err)
		}
	})
}

// kept lists the events of an object that are in the store, as kind and task.
func (f *fleet) kept(object string) (lines []string) {
	f.t.Helper()
	snapshot, err := f.store.List(f.ctx, record.Kept)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, item := range snapshot.Items {
		events, err := record.DecodeEvents(item.Value)
		if err != nil {
			f.t.Fatal(err)
		}
		for _, e := range events {
			if e.Object() == object {
				lines = append(lines, fmt.Sprint(e.Kind, " ", e.Task))
			}
		}
	}
	return lines
}

// The history is in the file, with its places, when a program starts again.
func TestEventsSurviveARestart(t *testing.T) {
	path := t.TempDir() + "/state.db"
	var before, after []store.Item
	for _, items := range []*[]store.Item{&before, &after} {
		s, err := bolt.Open(path, bolt.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if before == nil {
			for n := range 3 {
				value := record.EncodeEvents([]record.Event{{Kind: control.TaskPlaced, Namespace: "default", Service: "web", Slot: n}})
				if _, err := s.Commit(t.Context(), store.Txn{Writes: []store.Write{store.Put(record.LeaderEvents(7, n), value)}}); err != nil {
					t.Fatal(err)
				}
			}
		}
		snapshot, err := s.List(t.Context(), record.Kept)
		if err != nil {
			t.Fatal(err)
		}
		*items = snapshot.Items
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(after) != 3 || fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("after a restart the events are %v, want %v", after, before)
	}
}

// Whatever is decided in whatever mixture, each object keeps at least its share,
// no more than a few batches are kept beyond the bounds, and a leader that loads
// the store knows what the one before knew.
func TestBoundsOfEvents(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const each, all = 5, 400
		s := newSim(t)
		config := control.Config{Decode: decode, Place: s.place, KeepEventsEach: each, KeepEvents: all}
		s.state = control.NewState(config)
		written := map[string]int{}
		objects := rapid.IntRange(1, 6).Draw(rt, "objects")
		for n := range rapid.IntRange(1, 900).Draw(rt, "commits") {
			var events []record.Event
			for range 1 + n%3 {
				name := fmt.Sprintf("s%d", (n*n+len(events))%objects)
				if n%50 == 0 {
					name = "rare"
				}
				events = append(events, record.Event{Kind: control.TaskPlaced, Namespace: "default", Service: name})
				written["default/"+name]++
			}
			s.commit(store.Put(record.LeaderEvents(1, n), record.EncodeEvents(events)))
			if rapid.IntRange(0, 200).Draw(rt, "new leader") == 0 {
				snapshot := store.Snapshot{Revision: s.rev, Items: s.items()}
				s.state = control.NewState(config)
				s.state.Load(snapshot, s.now)
			}
			if p := s.state.Plan(s.now); len(p.Writes) > 0 {
				s.commit(p.Writes...)
			}
		}
		kept, total := map[string]int{}, 0
		for _, item := range s.items() {
			if !strings.HasPrefix(item.Key, record.Kept) {
				continue
			}
			events, err := record.DecodeEvents(item.Value)
			if err != nil {
				rt.Fatal(err)
			}
			for _, e := range events {
				kept[e.Object()]++
				total++
			}
		}
		for object, n := range written {
			if kept[object] < min(each, n) {
				rt.Fatalf("%d events of %s are kept of %d, want at least %d", kept[object], object, n, each)
			}
		}
		if total > all+3*100 {
			rt.Fatalf("%d events are kept, want at most %d and a batch", total, all)
		}
	})
}
