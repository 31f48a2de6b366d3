package node_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/record"
	runmem "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// crowd makes a fleet's records those of n nodes more, of which none is alive.
func (m *machine) crowd(n int) {
	m.t.Helper()
	ctx := context.Background()
	there, err := m.store.List(ctx, record.Nodes+"x")
	if err != nil {
		m.t.Fatal(err)
	}
	var txn store.Txn
	for _, item := range there.Items {
		txn.Writes = append(txn.Writes, store.Delete(item.Key))
	}
	for i := range n {
		data, err := json.Marshal(record.Node{Node: scheduler.Node{ID: fmt.Sprint("x", i)}})
		if err != nil {
			m.t.Fatal(err)
		}
		txn.Writes = slices.DeleteFunc(txn.Writes, func(w store.Write) bool { return w.Key == fmt.Sprint(record.Nodes, "x", i) })
		txn.Writes = append(txn.Writes, store.Put(fmt.Sprint(record.Nodes, "x", i), data))
	}
	if _, err := m.store.Commit(ctx, txn); err != nil {
		m.t.Fatal(err)
	}
}

// nodeRecord is what the node says of itself.
func (m *machine) nodeRecord() (rec record.Node) {
	m.t.Helper()
	item, _, err := store.Get(context.Background(), m.store, record.Nodes+"n1")
	if err == nil {
		err = json.Unmarshal(item.Value, &rec)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return rec
}

// granter notes what leases there are.
type granter struct {
	store.Store
	mu     sync.Mutex
	leases map[store.LeaseID]*granted
}

type granted struct {
	store.Lease
	of       *granter
	renewals int
	revoked  bool
}

func (g *granter) Lease(ctx context.Context, ttl time.Duration) (store.Lease, error) {
	l, err := g.Store.Lease(ctx, ttl)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	own := &granted{Lease: l, of: g}
	g.leases[l.ID()] = own
	return own, nil
}

func (l *granted) KeepAlive(ctx context.Context) error {
	l.of.mu.Lock()
	l.renewals++
	l.of.mu.Unlock()
	return l.Lease.KeepAlive(ctx)
}

func (l *granted) count() int {
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	return l.renewals
}

func (l *granted) Revoke(ctx context.Context) error {
	l.of.mu.Lock()
	l.revoked = true
	l.of.mu.Unlock()
	return l.Lease.Revoke(ctx)
}

// of is the lease that a key is under, and how many there are that nobody has
// revoked.
func (g *granter) of(t *testing.T, key string) (l *granted, kept int) {
	t.Helper()
	item, found, err := store.Get(t.Context(), g.Store, key)
	if err != nil || !found {
		t.Fatalf("%s: %v, %v; want it there", key, found, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.leases {
		if !l.revoked {
			kept++
		}
	}
	return g.leases[item.Lease], kept
}

// TestLeaseFollowsTheFleetsSize has a fleet grow and shrink, and checks that a
// node's lease and its promise follow, that the node and its endpoints are there
// all the while, and that no lease is left over.
func TestLeaseFollowsTheFleetsSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, orchestrate.WithRenewalLimit(2))
		g := &granter{Store: m.store, leases: map[store.LeaseID]*granted{}}
		m.agentStore = g
		kill := m.agent()
		m.apply(orchestrate.Service{Name: "web", Template: orchestrate.Template{
			Containers: []orchestrate.Container{{Image: "web:1"}}, Ports: []orchestrate.Port{{Port: 80}},
		}, Update: orchestrate.UpdatePolicy{Monitor: time.Second}})
		m.wait("web", orchestrate.RolloutCompleted)

		var gone []string
		watch, stop := context.WithCancel(t.Context())
		defer stop()
		snapshot, err := m.store.List(watch, "")
		if err != nil {
			t.Fatal(err)
		}
		endpoint := ""
		for _, item := range snapshot.Items {
			if strings.HasPrefix(item.Key, record.Endpoints) {
				endpoint = item.Key
			}
		}
		batches, err := m.store.Watch(watch, "", snapshot.Revision)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for b := range batches {
				for _, c := range b.Changes {
					if c.Deleted && (strings.HasPrefix(c.Item.Key, record.Alive) || c.Item.Key == endpoint) {
						gone = append(gone, c.Item.Key)
					}
				}
			}
		}()

		first := m.nodeRecord()
		for _, step := range []struct {
			others int
			ttl    time.Duration // of 3.75 renewals in a TTL, two a second, for a quarter more nodes
		}{{0, 5 * time.Second}, {19, 47 * time.Second}, {17, 47 * time.Second}, {39, 94 * time.Second}, {1, 6 * time.Second}} {
			m.crowd(step.others)
			time.Sleep(10 * time.Minute) // more than it takes until each node has had its turn
			l, kept := g.of(t, record.Alive+"n1")
			if l.TTL() != step.ttl || kept != 1 {
				t.Errorf("with %d other nodes the lease lasts %v, and %d are kept; want %v, and one", step.others, l.TTL(), kept, step.ttl)
			}
			if under, _ := g.of(t, endpoint); under != l {
				t.Errorf("with %d other nodes the endpoint is under another lease than the node", step.others)
			}
			before := l.count()
			time.Sleep(time.Hour)
			if n, most := l.count()-before, 3.75*float64(time.Hour)/float64(step.ttl)+1; float64(n) > most || float64(n) < most*0.75 {
				t.Errorf("a lease of %v is renewed %d times an hour, want up to %.0f and not less than three quarters", step.ttl, n, most)
			}
			rec := m.nodeRecord()
			if rec.Registration != first.Registration {
				t.Errorf("with %d other nodes the node has registered anew, want it to change its lease alone", step.others)
			}
			if want := time.Duration(float64(step.ttl+12*time.Second) * 1.05 / 0.95); rec.Fence < want || rec.Fence > want+time.Millisecond {
				t.Errorf("under a lease of %v it promises %v, want %v", step.ttl, rec.Fence, want)
			}
		}
		synctest.Wait()
		if len(gone) > 0 {
			t.Errorf("%v have vanished meanwhile", gone)
		}
		kill()
		stop()
		synctest.Wait()
	})
}

const atOnce = -1 // as soon as the lease is another one

// TestSlotRunsAtMostOnceWhateverItsLease cuts a node off about when its lease is
// to be another, longer or shorter: the promise of the moment holds.
func TestSlotRunsAtMostOnceWhateverItsLease(t *testing.T) {
	for _, grows := range []bool{true, false} {
		for _, late := range []time.Duration{atOnce, 0, 10 * time.Second, time.Minute, 3 * time.Minute} {
			t.Run(fmt.Sprintf("grows=%v,%v", grows, late), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					y := newYard(t, 2, orchestrate.WithLostAfter(time.Millisecond), orchestrate.WithRenewalLimit(2), orchestrate.WithLossLimit("100%"))
					for _, m := range y.all {
						m.runtime.SetImage("db:1", runmem.Image{Program: runmem.Program{StopTime: -1}})
					}
					if !grows {
						y.crowd(29)
					}
					y.all[0].agent()
					y.apply(db(1))
					y.wait("db", orchestrate.RolloutCompleted)
					y.all[1].agent()
					time.Sleep(10 * time.Minute)
					if grows {
						y.crowd(29)
					} else {
						y.crowd(0)
					}
					for promised := y.nodeRecord().Fence; late == atOnce && y.nodeRecord().Fence == promised; {
						y.passes(20*time.Millisecond, "db.0")
					}
					y.passes(late, "db.0")
					y.cables["n1"].set(true)
					y.passes(4*time.Minute, "db.0")
					if at := y.runs("db.0"); !slices.Equal(at, []string{"n2"}) {
						t.Errorf("it runs on %v four minutes after n1 was cut off, want n2", at)
					}
					y.cables["n1"].set(false)
					y.passes(time.Minute, "db.0")
				})
			})
		}
	}
}
