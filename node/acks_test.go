package node_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/network"
	runmem "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/store"
)

// slowly is a balancer that a test slows down or stops.
type slowly struct {
	network.Balancer
	mu    sync.Mutex // guards what follows
	delay time.Duration
	err   error
	gone  time.Time // when it was first programmed to send nothing anywhere
}

func (s *slowly) be(delay time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay, s.err = delay, err
}

func (s *slowly) Program(ctx context.Context, rules []network.Rule) error {
	s.mu.Lock()
	delay, err := s.delay, s.err
	s.mu.Unlock()
	if time.Sleep(delay); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone.IsZero() && !slices.ContainsFunc(rules, func(r network.Rule) bool { return len(r.Endpoints) > 0 }) {
		s.gone = time.Now()
	}
	return s.Balancer.Program(ctx, rules)
}

// signals notes when a machine's containers are sent their stop signal.
func (m *machine) signals() func() []time.Time {
	var mu sync.Mutex
	var times []time.Time
	m.runtime.SetFault(func(op runmem.Op) error {
		if op.Method == "Kill" && !op.Done {
			mu.Lock()
			defer mu.Unlock()
			times = append(times, time.Now())
		}
		return nil
	})
	return func() []time.Time {
		mu.Lock()
		defer mu.Unlock()
		return times
	}
}

// A task is sent its stop signal once the balancers of all nodes that are alive
// send it nothing any more, and after no more than the time in which a node
// without a sign of life counts as one.
func TestStopWaitsForOtherNodes(t *testing.T) {
	const drain = 300 * time.Millisecond
	for name, tc := range map[string]struct {
		before      func(y *yard, other *slowly, kill func())
		least, most time.Duration // from the removal to the signal
		heard       bool          // the other node was programmed before
	}{
		"at once": {func(*yard, *slowly, func()) {}, drain, drain + 50*time.Millisecond, true},
		"a slow balancer": {func(_ *yard, other *slowly, _ func()) { other.be(2*time.Second, nil) },
			drain + 2*time.Second, drain + 5*time.Second, true},
		"a balancer that cannot be programmed": {func(_ *yard, other *slowly, _ func()) { other.be(0, errors.New("no")) },
			drain + 5*time.Second, drain + 5100*time.Millisecond, false},
		"a node that has just died": {func(_ *yard, _ *slowly, kill func()) { kill() },
			drain + time.Second, drain + 5*time.Second, false},
		"a node that died some time ago": {func(_ *yard, _ *slowly, kill func()) { kill(); time.Sleep(6 * time.Second) },
			drain, drain + 50*time.Millisecond, false},
		"a fleet that is too large to ask": {func(y *yard, other *slowly, _ func()) {
			other.be(2*time.Second, nil)
			for i := range 64 {
				data, _ := json.Marshal(record.Ack{})
				if _, err := y.store.Commit(context.Background(), store.Txn{Writes: []store.Write{store.Put(record.Key(record.Acks, fmt.Sprint("m", i)), data)}}); err != nil {
					y.t.Fatal(err)
				}
			}
		}, drain, drain + 50*time.Millisecond, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				y := newYard(t, 2)
				other := &slowly{Balancer: y.all[1].balancer}
				y.all[1].balancer = other
				signals := y.all[0].signals()
				y.all[0].agent()
				s := one(orchestrate.Template{
					Containers: []orchestrate.Container{{Image: "img"}}, Ports: []orchestrate.Port{{Port: 80}}, DrainDelay: drain,
				})
				y.apply(s)
				y.wait("one", orchestrate.RolloutCompleted)
				kill := y.all[1].agent()
				synctest.Wait()
				if rules := y.all[1].network.Rules(); len(rules) == 0 || len(rules[0].Endpoints) != 1 {
					t.Fatalf("the other node is programmed with %v, want the endpoint", rules)
				}
				tc.before(y, other, kill)
				other.mu.Lock()
				other.gone = time.Time{}
				other.mu.Unlock()
				began := time.Now()
				if err := y.fleet.Remove(t.Context(), "one"); err != nil {
					t.Fatal(err)
				}
				y.wait("one", orchestrate.RolloutRemoved)
				at := signals()
				if len(at) != 1 {
					t.Fatalf("%d signals were sent, want one", len(at))
				}
				if took := at[0].Sub(began); took < tc.least || took > tc.most {
					t.Errorf("the signal was sent after %v, want from %v to %v", took, tc.least, tc.most)
				}
				other.mu.Lock()
				if heard := !other.gone.IsZero() && !other.gone.After(at[0].Add(-drain)); heard != tc.heard {
					t.Errorf("the other node sent nothing any more %v after the removal, and the signal came %v after it; want that it was before: %v", other.gone.Sub(began), at[0].Sub(began), tc.heard)
				}
				other.mu.Unlock()
				time.Sleep(10 * time.Second)
				if n := y.count(record.Endpoints); n != 0 {
					t.Errorf("%d endpoints are left", n)
				}
			})
		})
	}
}

func (m *machine) count(prefix string) int {
	m.t.Helper()
	snapshot, err := m.store.List(context.Background(), prefix)
	if err != nil {
		m.t.Fatal(err)
	}
	return len(snapshot.Items)
}

// An acknowledgement is a write for those who ask: a node alone asks nobody, and
// tasks that start or fail make none.
func TestAcksCostLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 3)
		batches, err := y.store.Watch(t.Context(), record.Acks, 0)
		if err != nil {
			t.Fatal(err)
		}
		writes := map[string]int{}
		count := func() {
			synctest.Wait()
			for {
				select {
				case b := <-batches:
					for _, c := range b.Changes {
						writes[strings.TrimPrefix(c.Item.Key, record.Acks)]++
					}
					synctest.Wait()
				default:
					return
				}
			}
		}
		y.all[0].agent()
		s := one(orchestrate.Template{Containers: []orchestrate.Container{{Image: "img"}}, Ports: []orchestrate.Port{{Port: 80}}})
		s.Replicas = 10
		y.apply(s)
		y.wait("one", orchestrate.RolloutCompleted)
		s.Containers[0].Env = map[string]string{"V": "2"}
		y.apply(s)
		y.wait("one", orchestrate.RolloutCompleted)
		if count(); writes["n1"] != 1 {
			t.Errorf("a node alone wrote %d acknowledgements, want the one that says it is there", writes["n1"])
		}
		y.all[1].agent()
		y.all[2].agent()
		synctest.Wait()
		s.Replicas = 20
		y.apply(s)
		y.wait("one", orchestrate.RolloutCompleted)
		if count(); writes["n1"]+writes["n2"]+writes["n3"] != 3 {
			t.Errorf("tasks that start had %v written, want one each", writes)
		}
		// Ten stop together, and each node says at most once for each of the others.
		s.Replicas = 10
		clear(writes)
		y.apply(s)
		time.Sleep(30 * time.Second)
		count()
		for _, n := range []string{"n1", "n2", "n3"} {
			if writes[n] == 0 || writes[n] > 10 {
				t.Errorf("%d acknowledgements of %s for ten stops, want from 1 to 10", writes[n], n)
			}
		}
	})
}
