package orchestrate_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/runtime"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
)

// The tests of this file are of inputs at the edges: odd shares, one replica, no
// room, two things at once.

// census is how many tasks of a service were ready at least, and how many there
// were at most that were not told to stop.
type census struct{ least, most int }

// count takes a census at each event of a service until stop is called.
func (m *machines) count(service string) (stop func() census) {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.t.Context())
	events, err := m.fleet.Watch(ctx, orchestrate.WatchOnly(orchestrate.EventFilter{Service: service, Kinds: []orchestrate.EventKind{orchestrate.TaskChanged, orchestrate.TaskPlaced, orchestrate.TaskGone}}))
	if err != nil {
		m.t.Fatal(err)
	}
	out := make(chan census)
	go func() {
		c := census{least: 1 << 30}
		for range events {
			tasks, err := m.fleet.Tasks(context.Background(), service)
			if err != nil {
				continue
			}
			ready, wanted := 0, 0
			for _, t := range tasks {
				if t.State == orchestrate.Ready {
					ready++
				}
				if t.Stopping == "" {
					wanted++
				}
			}
			c.least, c.most = min(c.least, ready), max(c.most, wanted)
		}
		out <- c
	}()
	return func() census {
		synctest.Wait()
		cancel()
		return <-out
	}
}

// What may be missing and what may be too many is kept with shares that come out
// odd, with one replica, and with none to spare.
func TestUpdatesAtTheEdges(t *testing.T) {
	for name, tc := range map[string]struct {
		replicas                        int
		parallelism, surge, unavailable orchestrate.Amount
		least, most                     int
	}{
		"a third of seven, rounded up":       {7, "33%", "", "", 7, 10},
		"one percent is one":                 {3, "1%", "", "", 3, 4},
		"a share that is missing":            {7, "", "0", "20%", 6, 7}, // one, rounded down
		"one replica without surge":          {1, "", "0", "1", 0, 1},
		"one replica":                        {1, "", "", "", 1, 2},
		"all at a time":                      {3, "100%", "", "", 3, 6},
		"surge and missing together":         {5, "3", "1", "1", 4, 6},
		"surge that is more than is at work": {5, "1", "4", "", 5, 6},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachines(t, 3, 8<<30)
				s := tried(1, orchestrate.RollingUpdate, tc.replicas)
				s.Update.Parallelism, s.Update.MaxSurge, s.Update.MaxUnavailable = tc.parallelism, tc.surge, tc.unavailable
				mustApply(t, m.fleet, s)
				mustEnd(t, m.fleet, "web", orchestrate.RolloutCompleted)
				stop := m.count("web")
				s.Containers[0].Image = "img:2"
				mustApply(t, m.fleet, s)
				mustEnd(t, m.fleet, "web", orchestrate.RolloutCompleted)
				time.Sleep(time.Minute)
				if got := stop(); got.least < tc.least || got.most > tc.most {
					t.Errorf("from %d ready tasks on and up to %d were there, want at least %d and at most %d", got.least, got.most, tc.least, tc.most)
				}
			})
		})
	}
}

// A canary is given up while a node with old tasks is lost: what serves is brought
// back to what was asked for, and nothing of the canary stays.
func TestAbortWhileANodeIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachines(t, 3, 8<<30)
		s := tried(1, orchestrate.CanaryUpdate, 6)
		s.Update.Canary.Tasks = "2"
		mustApply(t, m.fleet, s)
		mustEnd(t, m.fleet, "web", orchestrate.RolloutCompleted)
		s.Containers[0].Image = "img:2"
		mustApply(t, m.fleet, s)
		mustEnd(t, m.fleet, "web", orchestrate.RolloutWaiting)
		m.kill[2]()
		time.Sleep(7 * time.Second) // its lease is over, and it is not yet lost
		if err := m.fleet.Abort(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		r := mustEnd(t, m.fleet, "web", orchestrate.RolloutFailed)
		if r.Reason != orchestrate.ReasonAborted || r.Rollback == nil || r.Rollback.Outcome != orchestrate.RolloutCompleted {
			t.Errorf("%v; want aborted, and back at the first revision", r)
		}
		time.Sleep(2 * time.Minute)
		tasks, err := m.fleet.Tasks(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, task := range tasks {
			if task.Node != "n3" {
				got = append(got, fmt.Sprint(task.Revision, " ", task.State))
			}
		}
		if !slices.Equal(got, slices.Repeat([]string{"1 ready"}, 6)) {
			t.Errorf("on the nodes that are left run %q, want six of the first revision", got)
		}
	})
}

// Without room for a second set nothing is switched, and the result says why.
func TestBlueGreenWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachines(t, 2, 4<<30)
		s := tried(1, orchestrate.BlueGreenUpdate, 4)
		s.Containers[0].Resources.Memory = 1500 << 20 // two to a node
		mustApply(t, m.fleet, s)
		mustEnd(t, m.fleet, "web", orchestrate.RolloutCompleted)
		stop := m.count("web")
		s.Containers[0].Image = "img:2"
		mustApply(t, m.fleet, s)
		r := mustEnd(t, m.fleet, "web", orchestrate.RolloutFailed)
		if r.Reason != orchestrate.ReasonCapacity || !strings.Contains(r.String(), "memory") {
			t.Errorf("%v; want no capacity, and what is missing", r)
		}
		time.Sleep(time.Minute)
		if got := stop(); got.least < 4 {
			t.Errorf("%d tasks were ready at a time, want the four of the old set all along", got.least)
		}
		if got := m.backends(0, "web"); !slices.Equal(got, []string{"1", "1", "1", "1"}) {
			t.Errorf("the node balances over revisions %v, want the old set", got)
		}
	})
}

// A gang of which some are enough starts together, and its rest is stopped.
func TestGangOfWhichSomeAreEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachines(t, 2, 4<<30)
		release := make(chan struct{})
		m.image("work", runtimememory.Image{Program: runtimememory.Program{Run: func(ctx context.Context, p *runtimememory.Process) int {
			if slices.Contains(p.Env, orchestrate.EnvIndex+"=3") {
				select { // it takes for ever
				case <-p.Signals:
					return 143
				case <-ctx.Done():
					return 137
				}
			}
			select {
			case <-release:
			case <-ctx.Done():
				return 137
			}
			return 0
		}}})
		j := aJob("mpi", 4, 4)
		j.Gang, j.Enough = true, 3
		j.Containers[0].Resources.Memory = 3 << 30 // one to a node
		mustApply(t, m.fleet, j)
		time.Sleep(time.Minute)
		if n := tasksOf(t, m.fleet, "mpi"); n != 0 {
			t.Errorf("%d of a gang of four run where there is room for two, want none", n)
		}
		j.Containers[0].Resources.Memory = 1 << 30
		mustApply(t, m.fleet, j)
		time.Sleep(time.Minute)
		if n := tasksOf(t, m.fleet, "mpi"); n != 4 {
			t.Errorf("%d of a gang of four run where there is room for all", n)
		}
		close(release)
		r := mustEndJob(t, m.fleet, "mpi", orchestrate.JobCompleted)
		if r.Completed != 3 || r.Failures != 0 || r.Failed != 0 {
			t.Errorf("%+v; want three completed, and the fourth not counted", r)
		}
		time.Sleep(time.Minute)
		for _, rt := range m.runtimes {
			list, err := rt.List(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range list {
				if c.State == runtime.Running {
					t.Errorf("%s runs still, after the job has completed", c.ID)
				}
			}
		}
	})
}

// Clocks change by half an hour, at midnight, and not at all.
func TestCronInOddZones(t *testing.T) {
	for name, tc := range map[string]struct {
		zone, schedule string
		from           time.Time
		want           int // runs in two days
	}{
		"half an hour forward":    {"Australia/Lord_Howe", "15 2 * * *", time.Date(2000, 8, 25, 18, 0, 0, 0, time.UTC), 1}, // 27 August has no 02:15
		"half an hour back":       {"Australia/Lord_Howe", "45 1 * * *", time.Date(2000, 3, 24, 18, 0, 0, 0, time.UTC), 3}, // 26 March has two 01:45
		"midnight does not exist": {"America/Sao_Paulo", "0 0 * * *", time.Date(2000, 10, 6, 12, 0, 0, 0, time.UTC), 1},    // 8 October begins at 01:00
		"each hour all the same":  {"America/Sao_Paulo", "0 * * * *", time.Date(2000, 10, 7, 12, 30, 0, 0, time.UTC), 48},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Until(tc.from))
				f, rt, _ := openCrons(t)
				l := work(rt, time.Second, ok)
				c := aCron("c", tc.schedule)
				c.TimeZone = tc.zone
				mustApply(t, f, c)
				time.Sleep(48 * time.Hour)
				if st := cronStatus(t, f, "c"); l.total() != tc.want || st.Missed != 0 {
					t.Errorf("%d runs and %d missed, want %d runs", l.total(), st.Missed, tc.want)
				}
			})
		})
	}
}

// An image is replaced while a rollout goes on: that supersedes it, and what it was
// about to bring is brought too.
func TestReplaceImageDuringARollout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		one := w.push(appTag, "one", runtimememory.Program{StartTime: 20 * time.Second})
		fixed := w.push("reg.example/app:2", "fixed", runtimememory.Program{StartTime: 20 * time.Second})
		mustApply(t, w.Fleet, app())
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		mustApply(t, w.Fleet, app(env("next")))
		time.Sleep(10 * time.Second)
		results := make(chan orchestrate.Result, 1)
		go func() {
			r, err := w.Wait(context.Background(), "web")
			if err != nil {
				t.Error(err)
			}
			results <- r
		}()
		synctest.Wait()
		done, err := w.ReplaceImage(t.Context(), one, fixed, orchestrate.ReplaceOptions{})
		if err != nil || len(done.Changes) != 1 || done.Changes[0].From != 2 || done.Changes[0].To != 3 {
			t.Fatalf("it changed %+v, %v; want revision 2 to 3", done, err)
		}
		if r := <-results; r.Outcome != orchestrate.RolloutSuperseded {
			t.Errorf("the rollout before ended as %v, want superseded", r)
		}
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		time.Sleep(time.Minute)
		w.runs("after it", 3, fixed)
		st, err := w.Get(t.Context(), "web")
		if err != nil || st.Containers[0].Env["V"] != "next" || st.Digests[appTag] != fixed {
			t.Errorf("it is %+v, %v; want what the rollout before would have brought, with the fixed image", st.Template, err)
		}
	})
}

// A partition holds the slots below it at what completed before; parallel slots
// start and stop without waiting for each other.
func TestStatefulUpdatesAtTheEdges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachines(t, 2, 8<<30)
		s := tried(1, orchestrate.RollingUpdate, 4)
		s.Stateful = &orchestrate.Stateful{Order: orchestrate.ParallelSlots}
		slow := func(version int) {
			m.image(fmt.Sprint("img:", version), runtimememory.Image{Program: runtimememory.Program{StartTime: 30 * time.Second}})
		}
		slow(1)
		began := time.Now()
		mustApply(t, m.fleet, s)
		mustEnd(t, m.fleet, "web", orchestrate.RolloutCompleted)
		if took := time.Since(began); took > 50*time.Second {
			t.Errorf("four parallel slots took %v to start, want no more than one", took)
		}
		revisions := func() map[int]int64 {
			tasks, err := m.fleet.Tasks(t.Context(), "web")
			if err != nil {
				t.Fatal(err)
			}
			all := map[int]int64{}
			for _, task := range tasks {
				all[task.Slot] = task.Revision
			}
			return all
		}
		slow(2)
		s.Containers[0].Image = "img:2"
		s.Stateful = &orchestrate.Stateful{Order: orchestrate.ParallelSlots, Partition: 3}
		mustApply(t, m.fleet, s)
		r := mustEnd(t, m.fleet, "web", orchestrate.RolloutCompleted)
		if got := revisions(); !maps.Equal(got, map[int]int64{0: 1, 1: 1, 2: 1, 3: 2}) || r.Revision != 2 {
			t.Errorf("with a partition of 3 the slots run revisions %v, want the last alone of the second", got)
		}
		// What fails below the partition comes back as it was.
		tasks, err := m.fleet.Tasks(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		if err := m.fleet.Evict(t.Context(), tasks[0].ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		if got := revisions(); !maps.Equal(got, map[int]int64{0: 1, 1: 1, 2: 1, 3: 2}) {
			t.Errorf("after slot 0 was moved the slots run revisions %v, want them as before", got)
		}
		s.Stateful = &orchestrate.Stateful{Order: orchestrate.ParallelSlots}
		mustApply(t, m.fleet, s)
		mustEnd(t, m.fleet, "web", orchestrate.RolloutCompleted)
		if got := revisions(); !maps.Equal(got, map[int]int64{0: 2, 1: 2, 2: 2, 3: 2}) {
			t.Errorf("without a partition the slots run revisions %v, want the second", got)
		}
		// To none and back, twice over.
		for _, n := range []int{0, 4, 0, 1} {
			if err := m.fleet.Scale(t.Context(), "web", n); err != nil {
				t.Fatal(err)
			}
			mustEnd(t, m.fleet, "web", orchestrate.RolloutCompleted)
			time.Sleep(time.Minute)
			if got := len(revisions()); got != n {
				t.Errorf("scaled to %d there are %d slots", n, got)
			}
		}
	})
}
