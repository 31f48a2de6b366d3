package orchestrate

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
	storememory "github.com/orchestrate-go/orchestrate/store/memory"
)

// BenchmarkPlan plans a new revision of one service of three replicas, with
// others around that nothing happens to: in the fleet that leads, in one that does
// not and has planned before, and in one that has yet to read the store.
func BenchmarkPlan(b *testing.B) {
	for _, services := range []int{1, 100, 10_000} {
		f, s := atRest(b, services)
		next := benchService(0)
		next.Containers[0].Image = "img:2"
		labelled := benchService(0)
		labelled.Labels = map[string]string{"a": "b"}
		ask := map[string]func(*Fleet) error{
			"plan":     func(f *Fleet) error { _, err := f.Plan(b.Context(), next); return err },
			"in place": func(f *Fleet) error { _, err := f.Plan(b.Context(), labelled); return err },
			"what if a node dies": func(f *Fleet) error {
				_, err := f.WhatIf(b.Context(), NodesDie("n7"))
				return err
			},
		}
		lead, follow := context.WithCancel(b.Context())
		ended := make(chan error, 1)
		go func() { ended <- f.Run(lead) }()
		for f.loop.Load() == nil || f.loop.Load().Fork(b.Context(), 0) == nil {
			time.Sleep(time.Millisecond)
		}
		for _, role := range []string{"leader", "follower", "first"} {
			for _, what := range []string{"plan", "in place", "what if a node dies"} {
				if role == "first" && what != "plan" {
					continue
				}
				b.Run(fmt.Sprintf("services=%d/%s/%s", services, role, what), func(b *testing.B) {
					b.ReportAllocs()
					asked := f
					if role != "leader" {
						var err error
						if asked, err = New(s); err != nil {
							b.Fatal(err)
						}
						defer func() { asked.Close() }()
					}
					if role == "follower" {
						if err := ask[what](asked); err != nil {
							b.Fatal(err)
						}
					}
					for b.Loop() {
						if role == "first" {
							asked.mirror.Close()
						}
						if err := ask[what](asked); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
		follow()
		if err := <-ended; err != nil {
			b.Fatal(err)
		}
	}
}

func benchService(i int) Service {
	return Service{Name: fmt.Sprintf("s%d", i), Replicas: 3, Template: Template{
		Containers: []Container{{Image: "img:1", Env: map[string]string{"A": "b", "C": "d"}, Resources: Resources{CPU: 10, Memory: 1 << 20}}},
	}}
}

// atRest is a fleet of so many services on 100 nodes, all as they should be.
func atRest(b *testing.B, services int) (*Fleet, store.Store) {
	return atRestOn(b, 100, services, 3)
}

// atRestOn is one of so many nodes, and services of so many replicas.
func atRestOn(b *testing.B, nodes, services, replicas int) (*Fleet, store.Store) {
	ctx := context.Background()
	s := storememory.New(storememory.Options{})
	f, err := New(s)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close(); s.Close() })
	commit := func(writes []store.Write) {
		for len(writes) > 0 {
			n := min(len(writes), store.MaxTxnOps)
			if _, err := s.Commit(ctx, store.Txn{Writes: writes[:n]}); err != nil {
				b.Fatal(err)
			}
			writes = writes[n:]
		}
	}
	var writes []store.Write
	for i := range nodes {
		id := fmt.Sprintf("n%d", i)
		data, err := json.Marshal(record.Node{Node: scheduler.Node{ID: id, Ready: true, Capacity: scheduler.Resources{CPU: 64_000, Memory: 256 << 30}}})
		if err != nil {
			b.Fatal(err)
		}
		writes = append(writes, store.Put(record.Key(record.Nodes, id), data), store.Put(record.Key(record.Alive, id), nil))
	}
	commit(writes)
	for first := 0; first < services; first += 25 {
		var objects []Object
		for i := first; i < min(first+25, services); i++ {
			s := benchService(i)
			s.Replicas = replicas
			objects = append(objects, s)
		}
		if err := f.Apply(ctx, objects...); err != nil {
			b.Fatal(err)
		}
	}
	// A leader and its agents, at once.
	snapshot, err := s.List(ctx, "")
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now().Add(-time.Hour).UTC()
	state := control.NewState(f.plannerConfig())
	state.Load(snapshot, now)
	revision := snapshot.Revision
	apply := func(writes []store.Write) {
		commit(writes)
		revision++
		batch := store.Batch{Revision: revision}
		for _, w := range writes {
			batch.Changes = append(batch.Changes, store.Change{Item: store.Item{Key: w.Key, Value: w.Value, Revision: revision}, Deleted: w.Delete})
		}
		state.Apply(batch, now)
	}
	for range 4 {
		p := state.Plan(now)
		apply(p.Writes)
		var answers []store.Write
		for _, w := range p.Writes {
			var t record.Task
			if parts := record.Split(w.Key, record.Tasks, 2); parts != nil {
				if err := json.Unmarshal(w.Value, &t); err != nil {
					b.Fatal(err)
				}
				data, err := json.Marshal(record.Status{Task: t.ID, Namespace: t.Namespace, Service: t.Service, Node: t.Node, State: record.Ready, Since: now, Ready: now})
				if err != nil {
					b.Fatal(err)
				}
				answers = append(answers, store.Put(record.Key(record.Statuses, parts...), data))
			}
		}
		apply(answers)
		now = now.Add(time.Minute)
	}
	if st, err := f.Get(ctx, "s0"); err != nil || st.Rollout == nil || st.Rollout.Outcome != RolloutCompleted {
		b.Fatalf("the services are not at rest: %+v, %v", st.Rollout, err)
	}
	return f, s
}
