package node_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
	runmem "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/volume"
)

// late is a store that takes its time to list one prefix.
type late struct {
	store.Store
	prefix string
	delay  time.Duration
}

func (l late) List(ctx context.Context, prefix string) (store.Snapshot, error) {
	if strings.HasPrefix(prefix, l.prefix) {
		time.Sleep(l.delay)
	}
	return l.Store.List(ctx, prefix)
}

// An agent that starts leaves the balancer as its predecessor programmed it until
// it knows all that the predecessor knew, in whichever order it learns.
func TestStartingAgentCutsNothingOff(t *testing.T) {
	for _, prefix := range []string{record.Endpoints, record.Frontends, record.Key(record.Statuses, "n1", "")} {
		t.Run(prefix, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				y := newYard(t, 2)
				kill := y.all[0].agent()
				y.all[1].agent()
				s := one(orchestrate.Template{Containers: []orchestrate.Container{{Image: "img"}}, Ports: []orchestrate.Port{{Port: 80}}})
				s.Replicas = 4
				y.apply(s)
				y.wait("one", orchestrate.RolloutCompleted)
				synctest.Wait()
				endpoints := func() int {
					least := 1 << 30
					for _, r := range y.all[0].network.Rules() {
						least = min(least, len(r.Endpoints))
					}
					return least
				}
				want := endpoints()
				kill()
				y.all[0].agentStore = late{y.store, prefix, 3 * time.Second}
				y.all[0].agent()
				for range 50 {
					if got := endpoints(); got != want {
						t.Fatalf("while the agent has yet to read %s the balancer has %d endpoints, want the %d of before", prefix, got, want)
					}
					time.Sleep(100 * time.Millisecond)
				}
			})
		})
	}
}

// blind is a store that grants no lease for a while, and tells a node nothing of
// its tasks after what it had to say first.
type blind struct {
	store.Store
	until time.Time
}

func (b blind) Lease(ctx context.Context, ttl time.Duration) (store.Lease, error) {
	if time.Now().Before(b.until) {
		return nil, errCut
	}
	return b.Store.Lease(ctx, ttl)
}

func (b blind) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	if !strings.HasPrefix(prefix, record.Tasks) {
		return b.Store.Watch(ctx, prefix, after)
	}
	silence := make(chan store.Batch)
	context.AfterFunc(ctx, func() { close(silence) })
	return silence, nil
}

// An agent that knows of a slot from before it was registered starts nothing of it
// until it has read the slot's record since: it was given to another meanwhile.
func TestSlotIsReadBeforeItIsStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 2, orchestrate.WithLostAfter(time.Millisecond))
		kill := y.all[0].agent()
		y.apply(db(1))
		y.wait("db", orchestrate.RolloutCompleted)
		y.all[1].agent()
		kill()
		y.all[0].agentStore = blind{y.store, time.Now().Add(time.Minute)}
		y.all[0].agent()
		y.passes(2*time.Minute, "db.0")
		if at := y.runs("db.0"); len(at) != 1 || at[0] != "n2" {
			t.Errorf("the slot runs on %v, want n2, which it was given to", at)
		}
	})
}

// A task is sent its stop signal when its own node's balancer has let it go, and
// its drain delay is over, not sooner.
func TestStopWaitsForItsOwnBalancer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 1)
		own := &slowly{Balancer: y.all[0].balancer}
		y.all[0].balancer = own
		signals := y.all[0].signals()
		y.all[0].agent()
		y.apply(one(orchestrate.Template{
			Containers: []orchestrate.Container{{Image: "img"}}, Ports: []orchestrate.Port{{Port: 80}}, DrainDelay: 300 * time.Millisecond,
		}))
		y.wait("one", orchestrate.RolloutCompleted)
		own.be(2*time.Second, nil)
		own.mu.Lock()
		own.gone = time.Time{}
		own.mu.Unlock()
		if err := y.fleet.Remove(t.Context(), "one"); err != nil {
			t.Fatal(err)
		}
		y.wait("one", orchestrate.RolloutRemoved)
		time.Sleep(time.Minute)
		own.mu.Lock()
		defer own.mu.Unlock()
		if at := signals(); len(at) != 1 || own.gone.IsZero() || at[0].Before(own.gone.Add(300*time.Millisecond)) {
			t.Errorf("the signals were sent at %v, want one 300 ms after the balancer sent the task nothing any more, at %v", at, own.gone)
		}
	})
}

// What an agent adopts runs on although what it was started with cannot be had any
// more, such as its network's record, which a newer version has written; and is
// restarted as ever once it can.
func TestAdoptedTaskRunsOnWithoutItsNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		kill := m.agent()
		m.runtime.SetImage("img", runmem.Image{Program: runmem.Program{Life: 3 * time.Hour, Code: 1}})
		m.apply(one(orchestrate.Template{Containers: []orchestrate.Container{{Image: "img"}}}))
		m.wait("one", orchestrate.RolloutCompleted)
		before := m.task("one")
		key := record.Key(record.Networks, "default")
		was, _, err := store.Get(t.Context(), m.store, key)
		if err != nil {
			t.Fatal(err)
		}
		put := func(value []byte) {
			if _, err := m.store.Commit(t.Context(), store.Txn{Writes: []store.Write{store.Put(key, value)}}); err != nil {
				t.Fatal(err)
			}
		}
		kill()
		put([]byte(`{"subnets": "of another version"}`))
		m.agent()
		time.Sleep(2 * time.Hour)
		if list := m.containers(); len(list) != 1 || list[0].ID != before.Containers[0].ID || list[0].State != runtime.Running {
			t.Errorf("two hours later the containers are %v, want the one from before running", list)
		}
		put(was.Value)
		time.Sleep(2 * time.Hour) // it ends meanwhile
		after := m.task("one")
		if after.ID != before.ID || after.State != orchestrate.Ready || after.Restarts != 1 {
			t.Errorf("%+v; want the same task, ready, restarted once", after)
		}
	})
}

// A task that was told to stop while no agent ran leaves nothing behind: what the
// agent before had made for it is found and released.
func TestStopWithoutAnAgentLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		kill := m.agent()
		m.apply(one(orchestrate.Template{
			Containers: []orchestrate.Container{{Image: "img", Mounts: []orchestrate.Mount{{Volume: "data", Target: "/data"}}}},
			Volumes:    []volume.Volume{{Name: "data"}},
		}))
		m.wait("one", orchestrate.RolloutCompleted)
		users := func() (tasks []string) {
			list, err := m.volumes.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range list {
				tasks = append(tasks, v.Tasks...)
			}
			return tasks
		}
		if len(users()) != 1 {
			t.Fatalf("its volume is used by %v, want one task", users())
		}
		kill()
		if err := m.fleet.Remove(t.Context(), "one"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it is told to stop
		m.agent()
		m.wait("one", orchestrate.RolloutRemoved)
		namespaces, err := m.network.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(users())+len(m.containers())+len(namespaces) != 0 {
			t.Errorf("left are the uses of its volume by %v, containers %v and namespaces %v", users(), m.containers(), namespaces)
		}
	})
}
