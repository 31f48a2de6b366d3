package orchestrate_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/health"
	networkmemory "github.com/orchestrate-go/orchestrate/network/memory"
	"github.com/orchestrate-go/orchestrate/node"
	"github.com/orchestrate-go/orchestrate/runtime"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
	storememory "github.com/orchestrate-go/orchestrate/store/memory"
	volumememory "github.com/orchestrate-go/orchestrate/volume/memory"
)

// machines is a fleet of several nodes in memory, in virtual time.
type machines struct {
	t        *testing.T
	store    store.Store
	fleet    *orchestrate.Fleet
	runtimes []*runtimememory.Runtime
	networks []*networkmemory.Node
	kill     []func() // the agents
	wg       sync.WaitGroup
}

// newMachines starts n nodes, n1 and so on, and a fleet that leads.
func newMachines(t *testing.T, n int, memory int64) *machines {
	t.Helper()
	m := &machines{t: t, store: storememory.New(storememory.Options{})}
	for i := range n {
		rt := runtimememory.New(runtimememory.Options{})
		network := networkmemory.New(networkmemory.Options{})
		agent, err := node.New(m.store, node.Options{
			Node:    scheduler.Node{ID: fmt.Sprintf("n%d", i+1), Capacity: scheduler.Resources{CPU: 8000, Memory: memory}},
			Runtime: rt, Network: network, Namespaces: network, Balancer: network,
			Volumes: new(volumememory.Driver), Dir: t.TempDir(),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- agent.Run(ctx) }()
		m.kill = append(m.kill, sync.OnceFunc(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("the agent's Run returned %v", err)
			}
		}))
		m.runtimes, m.networks = append(m.runtimes, rt), append(m.networks, network)
	}
	t.Cleanup(func() { // after the fleets have been closed
		for _, kill := range m.kill {
			kill()
		}
		m.wg.Wait()
		for _, rt := range m.runtimes {
			rt.Close()
		}
		m.store.Close()
	})
	synctest.Wait()
	m.fleet = m.lead(t)
	return m
}

// lead runs another control plane over the store, until it is closed.
func (m *machines) lead(t *testing.T) *orchestrate.Fleet {
	t.Helper()
	f, err := orchestrate.New(m.store)
	if err != nil {
		t.Fatal(err)
	}
	m.wg.Go(func() {
		if err := f.Run(context.Background()); err != nil {
			t.Errorf("the fleet's Run returned %v", err)
		}
	})
	t.Cleanup(func() { f.Close() })
	synctest.Wait()
	return f
}

func (m *machines) image(name string, i runtimememory.Image) {
	for _, rt := range m.runtimes {
		rt.SetImage(name, i)
	}
}

// backends are the images behind a service's published port on a node, as its
// balancer has it.
func (m *machines) backends(on int, service string) []string {
	m.t.Helper()
	tasks, err := m.fleet.Tasks(m.t.Context(), service)
	if err != nil {
		m.t.Fatal(err)
	}
	var out []string
	for _, rule := range m.networks[on].Rules() {
		if rule.Address.IsValid() || rule.Service != "default/"+service {
			continue
		}
		for _, e := range rule.Endpoints {
			for _, task := range tasks {
				if slices.Contains(task.Addresses["default"], e.Addr()) && e.Addr().Is4() {
					out = append(out, fmt.Sprint(task.Revision))
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// tried is a service that is published, in an image of a version.
func tried(version int, strategy orchestrate.UpdateStrategy, replicas int) orchestrate.Service {
	s := service("web", 80)
	s.Replicas = replicas
	s.Containers[0].Image = fmt.Sprintf("img:%d", version)
	s.Update.Strategy = strategy
	s.Update.ProgressDeadline = time.Minute
	return s
}

// A canary waits for a call and says so, takes its share of the traffic, and is
// promoted; the next is given up, and costs no old task.
func TestCanary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachines(t, 2, 8<<30)
		f, ctx := m.fleet, t.Context()
		mustApply(t, f, tried(1, orchestrate.CanaryUpdate, 3))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		mustApply(t, f, tried(2, orchestrate.CanaryUpdate, 3))
		r := mustEnd(t, f, "web", orchestrate.RolloutWaiting)
		if r.Phase != orchestrate.PhaseWaiting || r.Updated != 1 || r.Ready != 4 || r.Err() != nil {
			t.Errorf("%+v; want one canary beside three tasks that waits, which is no error", r)
		}
		time.Sleep(24 * time.Hour)
		if st, err := f.Get(ctx, "web"); err != nil || st.Rollout.Phase != orchestrate.PhaseWaiting || st.Rollout.Outcome != "" {
			t.Errorf("after a day the rollout is %+v, %v; want that it waits", st.Rollout, err)
		}
		for on := range 2 {
			if got := m.backends(on, "web"); !slices.Equal(got, []string{"1", "1", "1", "2"}) {
				t.Errorf("node %d balances over revisions %v, want three old tasks and the canary", on+1, got)
			}
		}
		if err := f.Promote(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		var phase *orchestrate.PhaseError
		if err := f.Promote(ctx, "web"); !errors.Is(err, orchestrate.ErrPhase) || !errors.As(err, &phase) || phase.Phase != "" {
			t.Errorf("promoting it again: %v, want that no rollout goes on", err)
		}
		if err := f.Abort(ctx, "nobody"); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("aborting what is not there: %v, want not found", err)
		}

		before, err := f.Tasks(ctx, "web")
		if err != nil {
			t.Fatal(err)
		}
		mustApply(t, f, tried(3, orchestrate.CanaryUpdate, 3))
		mustEnd(t, f, "web", orchestrate.RolloutWaiting)
		if err := f.Abort(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		r = mustEnd(t, f, "web", orchestrate.RolloutFailed)
		if r.Reason != orchestrate.ReasonAborted || r.Rollback == nil || r.Rollback.Outcome != orchestrate.RolloutCompleted || r.Rollback.Revision != 2 {
			t.Errorf("%v; want aborted, and back at revision 2", r)
		}
		after, err := f.Tasks(ctx, "web")
		if err != nil || len(after) != 3 {
			t.Fatalf("%d tasks, %v; want the three of before", len(after), err)
		}
		for i := range after {
			if after[i].ID != before[i].ID {
				t.Errorf("task %s was replaced by %s, want it left alone", before[i].ID, after[i].ID)
			}
		}
	})
}

// A canary that bakes is promoted by health alone, and superseded it leaves
// nothing.
func TestCanaryByHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newMachines(t, 2, 8<<30).fleet
		baked := func(version int) orchestrate.Service {
			s := tried(version, orchestrate.CanaryUpdate, 4)
			s.Update.Canary = orchestrate.Canary{Tasks: "50%", Bake: 10 * time.Minute}
			return s
		}
		mustApply(t, f, baked(1))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		begun := time.Now()
		mustApply(t, f, baked(2))
		time.Sleep(5 * time.Minute)
		st, err := f.Get(t.Context(), "web")
		if r := st.Rollout; err != nil || r.Phase != orchestrate.PhaseBake || r.Updated != 2 || r.Until.Before(begun.Add(10*time.Minute)) {
			t.Errorf("the rollout is %+v, %v; want two canaries that bake until ten minutes are over", st.Rollout, err)
		}
		mustApply(t, f, baked(3))
		if r := mustEnd(t, f, "web", orchestrate.RolloutCompleted); r.Revision != 3 || r.Ended.Sub(begun) < 15*time.Minute {
			t.Errorf("%v after %v; want revision 3 after its own ten minutes", r, r.Ended.Sub(begun))
		}
		tasks, err := f.Tasks(t.Context(), "web")
		if err != nil || len(tasks) != 4 || slices.ContainsFunc(tasks, func(t orchestrate.Task) bool { return t.Revision != 3 }) {
			t.Errorf("tasks %+v, %v; want four of revision 3", tasks, err)
		}
	})
}

// In a blue/green change each node's balancer has all of one set or all of the
// other, at every moment.
func TestBlueGreen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachines(t, 2, 8<<30)
		f, ctx := m.fleet, t.Context()
		blueGreen := func(version int) orchestrate.Service {
			s := tried(version, orchestrate.BlueGreenUpdate, 2)
			s.Update.BlueGreen = orchestrate.BlueGreen{Manual: true, Bake: time.Hour}
			return s
		}
		want := func(revision string) {
			t.Helper()
			synctest.Wait()
			for on := range 2 {
				if got := m.backends(on, "web"); !slices.Equal(got, []string{revision, revision}) {
					t.Errorf("node %d balances over revisions %v, want two of %s", on+1, got, revision)
				}
			}
		}
		m.image("img:2", runtimememory.Image{Program: runtimememory.Program{StartTime: time.Second}})
		mustApply(t, f, blueGreen(1))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		want("1")
		mustApply(t, f, blueGreen(2))
		for range 20 {
			time.Sleep(100 * time.Millisecond)
			want("1")
		}
		mustEnd(t, f, "web", orchestrate.RolloutWaiting)
		want("1")
		if err := f.Promote(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		want("2")
		time.Sleep(time.Minute)
		want("2")
		if err := f.Abort(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		want("1")
		if r := mustEnd(t, f, "web", orchestrate.RolloutFailed); r.Reason != orchestrate.ReasonAborted || r.Phase != orchestrate.PhaseBake {
			t.Errorf("%v in phase %s; want aborted while it baked", r, r.Phase)
		}
		want("1")

		mustApply(t, f, blueGreen(3))
		mustEnd(t, f, "web", orchestrate.RolloutWaiting)
		if err := f.Promote(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		want("3")
		if r := mustEnd(t, f, "web", orchestrate.RolloutCompleted); r.Ended.Sub(r.Started) < time.Hour {
			t.Errorf("it took %v, want its hour of baking", r.Ended.Sub(r.Started))
		}
		want("3")
		if n := records(t, m.store, "/tasks/"); n != 2 {
			t.Errorf("%d tasks are left, want two", n)
		}
		if err := f.Remove(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutRemoved)
		if n := records(t, m.store, "/directives/"); n != 0 {
			t.Errorf("%d directives are left of a service that was removed", n)
		}
	})
}

// A second set that stops serving with the traffic gives it back at once.
func TestBlueGreenFailsInItsBake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachines(t, 2, 8<<30)
		f := m.fleet
		m.image("img:2", runtimememory.Image{Program: runtimememory.Program{Life: time.Minute, Code: 3}})
		mustApply(t, f, tried(1, orchestrate.BlueGreenUpdate, 2))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		bad := tried(2, orchestrate.BlueGreenUpdate, 2)
		bad.Restart.Backoff = time.Second
		mustApply(t, f, bad)
		r := mustEnd(t, f, "web", orchestrate.RolloutFailed)
		if r.Reason != orchestrate.ReasonBake || r.Rollback == nil || r.Rollback.Outcome != orchestrate.RolloutCompleted {
			t.Errorf("%v; want that it failed in its bake, and the old set has the traffic", r)
		}
		synctest.Wait()
		if got := m.backends(0, "web"); !slices.Equal(got, []string{"1", "1"}) {
			t.Errorf("the node balances over revisions %v, want the old set", got)
		}
	})
}

// Each way for a deployment to fail has a typed result.
func TestFailureStories(t *testing.T) {
	const room = 8 << 30
	for name, story := range map[string]struct {
		memory int64 // of each of two nodes
		image  runtimememory.Image
		spec   func(*orchestrate.Service)
		while  func(t *testing.T, m *machines)
		want   orchestrate.Result // what of it is set
		says   string
		goesOn orchestrate.Outcome // of the rollback
	}{
		"image that does not exist": {
			image: runtimememory.Image{PullErr: runtime.ErrImageNotFound},
			want:  orchestrate.Result{Outcome: orchestrate.RolloutFailed, Reason: orchestrate.ReasonFailures, Failure: &orchestrate.Failure{Kind: orchestrate.FailedImage, Permanent: true}},
			says:  "img:2", goesOn: orchestrate.RolloutCompleted,
		},
		"crash loop": {
			image: runtimememory.Image{Program: runtimememory.Program{Life: -1, Code: 3, Output: []runtimememory.Output{{Text: "I give up"}}}},
			spec:  func(s *orchestrate.Service) { s.Restart.Attempts = 2 },
			want:  orchestrate.Result{Outcome: orchestrate.RolloutFailed, Reason: orchestrate.ReasonFailures, Failure: &orchestrate.Failure{Kind: orchestrate.FailedExit, ExitCode: 3}},
			says:  "tasks failed in a row", goesOn: orchestrate.RolloutCompleted,
		},
		"never ready": {
			spec: func(s *orchestrate.Service) {
				s.Containers[0].Readiness = &health.Check{Exec: &health.Exec{Command: []string{"/ready"}}, Interval: time.Second}
			},
			image: runtimememory.Image{Program: runtimememory.Program{Exec: func(context.Context, runtime.Exec) (int, error) { return 1, nil }}},
			want:  orchestrate.Result{Outcome: orchestrate.RolloutFailed, Reason: orchestrate.ReasonDeadline},
			says:  "is running", goesOn: orchestrate.RolloutCompleted,
		},
		"no capacity": {
			memory: 1 << 30,
			spec:   func(s *orchestrate.Service) { s.Containers[0].Resources.Memory = 2 << 30 },
			want:   orchestrate.Result{Outcome: orchestrate.RolloutFailed, Reason: orchestrate.ReasonCapacity},
			says:   "memory",
		},
		"port conflict": {
			// The node's own ports, each of which one task can have: of three
			// replicas two have a place.
			spec: func(s *orchestrate.Service) {
				s.HostNetwork, s.Replicas = true, 3
				s.Ports = []orchestrate.Port{{Port: 80}}
			},
			want: orchestrate.Result{Outcome: orchestrate.RolloutFailed, Reason: orchestrate.ReasonCapacity},
			says: "port 80",
		},
		"node lost in the middle": {
			while: func(t *testing.T, m *machines) { m.kill[1]() },
			want:  orchestrate.Result{Outcome: orchestrate.RolloutCompleted, Updated: 2, Ready: 2},
		},
		"leader killed in the middle": {
			while: func(t *testing.T, m *machines) {
				next := m.lead(t)
				m.fleet.Close()
				m.fleet = next
			},
			want: orchestrate.Result{Outcome: orchestrate.RolloutCompleted, Updated: 2, Ready: 2},
		},
		"superseded in the middle": {
			while: func(t *testing.T, m *machines) { mustApply(t, m.fleet, tried(3, orchestrate.RollingUpdate, 2)) },
			want:  orchestrate.Result{Outcome: orchestrate.RolloutSuperseded},
			says:  "later change",
		},
		"aborted in the middle": {
			while: func(t *testing.T, m *machines) {
				if err := m.fleet.Abort(t.Context(), "web"); err != nil {
					t.Fatal(err)
				}
			},
			want: orchestrate.Result{Outcome: orchestrate.RolloutFailed, Reason: orchestrate.ReasonAborted},
			says: "by a call", goesOn: orchestrate.RolloutCompleted,
		},
		"rollback fails": {
			spec:  func(s *orchestrate.Service) { s.Update.Order = orchestrate.StopFirst },
			image: runtimememory.Image{Program: runtimememory.Program{StartErr: errors.New("no such program"), StartErrPermanent: true}},
			while: func(t *testing.T, m *machines) {
				// What was there is not any more.
				m.image("img:1", runtimememory.Image{Program: runtimememory.Program{StartErr: errors.New("its data is of version 2"), StartErrPermanent: true}})
			},
			want: orchestrate.Result{Outcome: orchestrate.RolloutFailed, Reason: orchestrate.ReasonFailures, Failure: &orchestrate.Failure{Kind: orchestrate.FailedStart}},
			says: "no such program", goesOn: orchestrate.RolloutFailed,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachines(t, 2, cmp.Or(story.memory, room))
				mustApply(t, m.fleet, tried(1, orchestrate.RollingUpdate, 2))
				mustEnd(t, m.fleet, "web", orchestrate.RolloutCompleted)
				m.image("img:2", story.image)
				next := tried(2, orchestrate.RollingUpdate, 2)
				if story.spec != nil {
					story.spec(&next)
				}
				mustApply(t, m.fleet, next)
				waiter, err := orchestrate.New(m.store) // outlives the leader
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { waiter.Close() })
				results := make(chan orchestrate.Result, 1)
				go func() {
					r, err := waiter.Wait(t.Context(), "web")
					if err != nil {
						t.Error(err)
					}
					results <- r
				}()
				synctest.Wait()
				if story.while != nil {
					story.while(t, m)
				}
				r := <-results
				if r.Outcome != story.want.Outcome || r.Reason != story.want.Reason || r.Updated < story.want.Updated || r.Ready < story.want.Ready {
					t.Errorf("%v; want %s (%s)", r, story.want.Outcome, story.want.Reason)
				}
				if !strings.Contains(r.String(), story.says) {
					t.Errorf("%v; want that it says %q", r, story.says)
				}
				if f := story.want.Failure; f != nil && (r.Failure == nil || r.Failure.Kind != f.Kind || r.Failure.Permanent != f.Permanent && f.Permanent || r.Failure.ExitCode != f.ExitCode) {
					t.Errorf("failure %+v, want %+v", r.Failure, f)
				}
				switch {
				case story.goesOn == "" && r.Rollback != nil, story.goesOn != "" && (r.Rollback == nil || r.Rollback.Outcome != story.goesOn):
					t.Errorf("%v; want a rollback that is %q", r, story.goesOn)
				}
				if (r.Err() == nil) != (story.want.Outcome == orchestrate.RolloutCompleted) {
					t.Errorf("the result's error is %v", r.Err())
				}
			})
		})
	}
}
