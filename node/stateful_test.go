package node_test

import (
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
	netmem "github.com/orchestrate-go/orchestrate/network/memory"
	"github.com/orchestrate-go/orchestrate/node"
	"github.com/orchestrate-go/orchestrate/runtime"
	runmem "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/volume"
)

// cable is a store as one node reaches it: until it is cut.
type cable struct {
	store.Store
	mu      sync.Mutex
	cut     bool
	watches map[context.Context]context.CancelFunc
}

func newCable(s store.Store) *cable {
	return &cable{Store: s, watches: map[context.Context]context.CancelFunc{}}
}

var errCut = errors.New("the cable is cut")

func (c *cable) set(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	if cut {
		for _, cancel := range c.watches {
			cancel()
		}
		clear(c.watches)
	}
}

func (c *cable) err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		return errCut
	}
	return nil
}

func (c *cable) List(ctx context.Context, prefix string) (store.Snapshot, error) {
	if err := c.err(); err != nil {
		return store.Snapshot{}, err
	}
	return c.Store.List(ctx, prefix)
}

func (c *cable) Get(ctx context.Context, key string) (store.Item, bool, error) {
	if err := c.err(); err != nil {
		return store.Item{}, false, err
	}
	return store.Get(ctx, c.Store, key)
}

func (c *cable) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if err := c.err(); err != nil {
		return 0, err
	}
	return c.Store.Commit(ctx, txn)
}

func (c *cable) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	if err := c.err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	c.mu.Lock()
	c.watches[ctx] = cancel
	c.mu.Unlock()
	return c.Store.Watch(ctx, prefix, after)
}

func (c *cable) Lease(ctx context.Context, ttl time.Duration) (store.Lease, error) {
	if err := c.err(); err != nil {
		return nil, err
	}
	l, err := c.Store.Lease(ctx, ttl)
	return cabled{l, c}, err
}

type cabled struct {
	store.Lease
	cable *cable
}

func (l cabled) KeepAlive(ctx context.Context) error {
	if err := l.cable.err(); err != nil {
		return err
	}
	return l.Lease.KeepAlive(ctx)
}

// yard is machines over one store, whose volumes all of them reach.
type yard struct {
	*machine // the first, n1
	all      []*machine
	cables   map[string]*cable
}

func newYard(t *testing.T, nodes int, opts ...orchestrate.Option) *yard {
	t.Helper()
	y := &yard{machine: newMachine(t, opts...), cables: map[string]*cable{}}
	y.volumes.Segments = map[string]string{"yard": "1"}
	for i := range nodes {
		m := y.machine
		if i > 0 {
			other := *y.machine
			m = &other
			m.runtime, m.network, m.dir = runmem.New(runmem.Options{}), netmem.New(netmem.Options{}), t.TempDir()
			m.balancer = m.network
			t.Cleanup(func() { m.runtime.Close() })
		}
		m.id = fmt.Sprintf("n%d", i+1)
		y.cables[m.id] = newCable(m.store)
		m.agentStore = y.cables[m.id]
		y.all = append(y.all, m)
	}
	return y
}

// runs lists which nodes run a container of a slot now.
func (y *yard) runs(slot string) (nodes []string) {
	y.t.Helper()
	for _, m := range y.all {
		for _, c := range m.containers() {
			if c.State == runtime.Running && strings.HasPrefix(c.ID, slot+".") {
				nodes = append(nodes, m.id)
			}
		}
	}
	return nodes
}

// passes lets time pass and fails the test if a slot is ever run twice, or the
// store knows it to be ready twice.
func (y *yard) passes(d time.Duration, slot string) {
	y.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if at := y.runs(slot); len(at) > 1 {
			y.t.Fatalf("%s runs on %v at once, want at most one", slot, at)
		}
	}
}

func db(replicas int) orchestrate.Service {
	return orchestrate.Service{
		Name: "db", Replicas: replicas, Stateful: &orchestrate.Stateful{},
		Template: orchestrate.Template{
			Containers:  []orchestrate.Container{{Image: "db:1", Mounts: []orchestrate.Mount{{Target: "/data", Volume: "data"}}}},
			SlotVolumes: []volume.Volume{{Name: "data", Labels: map[string]string{"team": "a"}}},
			Ports:       []orchestrate.Port{{Port: 5432}},
			StopGrace:   3 * time.Second, DrainDelay: -1,
		},
		Update: orchestrate.UpdatePolicy{Monitor: time.Second},
	}
}

func (y *yard) tasks() []orchestrate.Task {
	y.t.Helper()
	tasks, err := y.fleet.Tasks(y.t.Context(), "db")
	if err != nil {
		y.t.Fatal(err)
	}
	return tasks
}

// A node that is cut off stops its slot in time, another takes it over, and
// never do two run it: whether the agent lives or is dead, whatever the time at
// which the node is back. The leader waits for nothing but the node's promise.
func TestSlotRunsAtMostOnce(t *testing.T) {
	for _, dead := range []bool{false, true} {
		for _, away := range []time.Duration{3 * time.Second, 6 * time.Second, 12 * time.Second, 20 * time.Second, 24 * time.Second, 30 * time.Second, 2 * time.Minute} {
			t.Run(fmt.Sprintf("dead=%v,%v", dead, away), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					y := newYard(t, 2, orchestrate.WithLostAfter(time.Millisecond))
					// It takes its whole grace to stop.
					for _, m := range y.all {
						m.runtime.SetImage("db:1", runmem.Image{Program: runmem.Program{StopTime: -1}})
					}
					kill := y.all[0].agent()
					y.apply(db(1))
					y.wait("db", orchestrate.RolloutCompleted)
					first := y.tasks()[0]
					if first.Node != "n1" {
						t.Fatalf("it runs on %s, want n1, the only one", first.Node)
					}
					y.all[1].agent()
					time.Sleep(1700 * time.Millisecond)
					if dead {
						kill()
					} else {
						y.cables["n1"].set(true)
					}
					y.passes(away, "db.0")
					if dead {
						y.all[0].agent()
					} else {
						y.cables["n1"].set(false)
					}
					y.passes(2*time.Minute, "db.0")
					tasks := y.tasks()
					if len(tasks) != 1 || tasks[0].State != orchestrate.Ready {
						t.Fatalf("tasks %+v, want one that is ready", tasks)
					}
					// The promise is 18.8 s from when the lease ended, 3 to 5 s after
					// the cut. An agent that lives has stopped the task before, and
					// then it may be placed anywhere; one that is dead left it to be
					// adopted.
					switch same := tasks[0].ID == first.ID; {
					case away >= 24*time.Second && tasks[0].Node != "n2":
						t.Errorf("it is on %s after %v, want n2: n1 was lost", tasks[0].Node, away)
					case away < 5*time.Second && !same, dead && away <= 20*time.Second && !same:
						t.Errorf("a cut of %v has ended the task for good, want it back where it was", away)
					}
				})
			})
		}
	}
}

// What nobody stops by itself is replaced only when someone vouches for it.
func TestSlotWaitsForFence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 2)
		for _, m := range y.all {
			m.holdless = true
		}
		kill := y.all[0].agent()
		y.apply(db(1))
		y.wait("db", orchestrate.RolloutCompleted)
		y.all[1].agent()
		if err := y.fleet.Fence(t.Context(), "n1"); !errors.Is(err, orchestrate.ErrAlive) {
			t.Errorf("Fence of a node that is alive = %v, want ErrAlive", err)
		}
		if err := y.fleet.Fence(t.Context(), "n9"); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("Fence of a node that is not there = %v, want not found", err)
		}
		kill()
		y.passes(10*time.Minute, "db.0")
		if at := y.runs("db.0"); !slices.Equal(at, []string{"n1"}) {
			t.Fatalf("it runs on %v, want n1 still, since nobody stopped it", at)
		}
		st, err := y.fleet.Get(t.Context(), "db")
		if err != nil || !strings.Contains(st.Rollout.Unplaced, "Fence it") {
			t.Errorf("nobody says why it waits: %+v, %v", st.Rollout, err)
		}
		// The machine is switched off.
		for _, c := range y.all[0].containers() {
			y.all[0].runtime.Crash(c.ID, 137)
		}
		if err := y.fleet.Fence(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		y.passes(10*time.Second, "db.0")
		if at := y.runs("db.0"); !slices.Equal(at, []string{"n2"}) {
			t.Fatalf("it runs on %v, want n2 after Fence", at)
		}
		// The volume is the newer task's alone, whatever the other may try.
		tasks := y.tasks() // the older first
		old, new := tasks[0].ID, tasks[1].ID
		list, err := y.volumes.List(t.Context())
		if err != nil || len(list) != 1 || !slices.Equal(list[0].Tasks, []string{new}) {
			t.Errorf("volumes %+v, %v; want the one of the slot, mounted by its newest task", list, err)
		}
		if _, err := y.volumes.Mount(t.Context(), volume.Mount{Volume: "default.db-0.data", Task: old}); !errors.Is(err, volume.ErrFenced) {
			t.Errorf("Mount by the task that was given up = %v, want ErrFenced", err)
		}
		if err := y.fleet.RemoveNode(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if tasks := y.tasks(); len(tasks) != 1 || tasks[0].Node != "n2" {
			t.Errorf("tasks %+v after the node was removed, want the one on n2", tasks)
		}
		for _, prefix := range []string{"/nodes/n1", "/nodespecs/n1", "/volumes/n1/", "/status/n1/"} {
			if s, err := y.store.List(t.Context(), prefix); err != nil || len(s.Items) > 0 {
				t.Errorf("left under %s: %v, %v", prefix, s.Items, err)
			}
		}
	})
}

// A slot has a name and a volume that outlive its tasks.
func TestSlotKeepsNameAndVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 1)
		var mu sync.Mutex
		hosts := map[string]bool{}
		y.runtime.SetImage("db:1", runmem.Image{Program: runmem.Program{Run: func(ctx context.Context, p *runmem.Process) int {
			mu.Lock()
			hosts[p.Spec.Hostname] = true
			mu.Unlock()
			for _, m := range p.Spec.Mounts {
				if m.Target == "/data" {
					old, _ := y.volumes.ReadFile(m.Source, "log")
					if err := y.volumes.WriteFile(m.Source, "log", append(old, 'x')); err != nil {
						return 1
					}
				}
			}
			select {
			case <-ctx.Done():
			case <-p.Signals:
			}
			return 0
		}}})
		y.agent()
		content := func(slot int, want string) {
			t.Helper()
			name := fmt.Sprintf("default.db-%d.data", slot)
			if err := y.volumes.Create(t.Context(), volume.Volume{Name: "probe"}); err != nil {
				t.Fatal(err)
			}
			got, err := y.volumes.ReadFile("/memory/rw/"+name, "log")
			if string(got) != want || err != nil {
				t.Errorf("the volume of slot %d holds %q, %v; want %q", slot, got, err, want)
			}
		}
		s := db(2)
		y.apply(s)
		y.wait("db", orchestrate.RolloutCompleted)
		mu.Lock()
		if !hosts["db-0"] || !hosts["db-1"] || len(hosts) != 2 {
			t.Errorf("hostnames %v, want db-0 and db-1", hosts)
		}
		mu.Unlock()
		content(0, "x")

		// It is killed, and restarts in place.
		for _, c := range y.containers() {
			y.runtime.Crash(c.ID, 1)
		}
		time.Sleep(5 * time.Second)
		content(0, "xx")
		// It is updated.
		s.Containers[0].Env = map[string]string{"V": "2"}
		y.apply(s)
		y.wait("db", orchestrate.RolloutCompleted)
		content(1, "xxx")
		// It is scaled down and up.
		for _, n := range []int{1, 2} {
			if err := y.fleet.Scale(t.Context(), "db", n); err != nil {
				t.Fatal(err)
			}
			y.wait("db", orchestrate.RolloutCompleted)
		}
		content(1, "xxxx")
		// It is removed, and applied again.
		if err := y.fleet.Remove(t.Context(), "db"); err != nil {
			t.Fatal(err)
		}
		y.wait("db", orchestrate.RolloutRemoved)
		s.Stateful = &orchestrate.Stateful{WhenScaled: orchestrate.DeleteVolumes, WhenRemoved: orchestrate.DeleteVolumes, Order: orchestrate.ParallelSlots}
		y.apply(s)
		y.wait("db", orchestrate.RolloutCompleted)
		content(0, "xxxx")
		content(1, "xxxxx")
		volumes := func(want ...string) {
			t.Helper()
			list, err := y.volumes.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, v := range list {
				if v.Name != "probe" {
					got = append(got, v.Name)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("volumes %q, want %q", got, want)
			}
			synctest.Wait()
			records, err := y.store.List(t.Context(), "/volumes/n1/")
			if err != nil || len(records.Items) != len(want) {
				t.Errorf("%d records of volumes, %v; want %d", len(records.Items), err, len(want))
			}
		}
		volumes("default.db-0.data", "default.db-1.data")
		// Now fewer replicas take their volumes with them.
		if err := y.fleet.Scale(t.Context(), "db", 1); err != nil {
			t.Fatal(err)
		}
		y.wait("db", orchestrate.RolloutCompleted)
		volumes("default.db-0.data")
		if err := y.fleet.Scale(t.Context(), "db", 2); err != nil {
			t.Fatal(err)
		}
		y.wait("db", orchestrate.RolloutCompleted)
		content(1, "x")
		if err := y.fleet.Remove(t.Context(), "db"); err != nil {
			t.Fatal(err)
		}
		y.wait("db", orchestrate.RolloutRemoved)
		volumes()
		y.empty()
	})
}

// zonesOf keeps what an agent would have answered about names.
type zonesOf struct {
	mu    sync.Mutex
	zones []node.Zone
}

func (z *zonesOf) Set(zones []node.Zone) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.zones = zones
	return nil
}

// names are what slots are called, with a mark for those that are not ready.
func (z *zonesOf) names() (names []string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, zone := range z.zones {
		for _, s := range zone.Services {
			for _, k := range s.Tasks {
				name := k.Name + "@" + k.Addresses[0].String()
				if k.Unready {
					name += "?"
				}
				names = append(names, name)
			}
		}
	}
	return names
}

// The name of a slot stands for its address from when it has one to its end, and
// through restarts.
func TestSlotNameThroughRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 1)
		z := &zonesOf{}
		y.resolve = z
		sw := &switches{bad: map[string]bool{"ready": true}}
		y.checkers = sw.checkers("ready")
		y.agent()
		s := db(1)
		s.Containers[0].Readiness = custom("ready")
		s.Restart = orchestrate.RestartPolicy{Backoff: 30 * time.Second}
		y.apply(s)
		names := func(mark string) {
			t.Helper()
			synctest.Wait()
			task := y.tasks()[0]
			want := "db-0@" + task.Addresses["default"][0].String() + mark
			if got := z.names(); !slices.Equal(got, []string{want}) {
				t.Errorf("names %q, want %q", got, want)
			}
			n := 0
			for _, r := range y.network.Rules() {
				n += len(r.Endpoints)
			}
			if (n > 0) != (mark == "") {
				t.Errorf("%d endpoints of a task whose name is %s", n, want)
			}
		}
		time.Sleep(10 * time.Second)
		names("?")
		sw.set("ready", false)
		y.wait("db", orchestrate.RolloutCompleted)
		names("")
		y.runtime.Crash(y.containers()[0].ID, 1) // the first restart is at once
		time.Sleep(3 * time.Second)
		y.runtime.Crash(y.containers()[0].ID, 1)
		time.Sleep(time.Second)
		names("?")
		time.Sleep(time.Minute)
		names("")
		if err := y.fleet.Remove(t.Context(), "db"); err != nil {
			t.Fatal(err)
		}
		y.wait("db", orchestrate.RolloutRemoved)
		if got := z.names(); len(got) > 0 {
			t.Errorf("names %q of a service that was removed", got)
		}
	})
}
