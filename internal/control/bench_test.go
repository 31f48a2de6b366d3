package control_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// BenchmarkEvent is what it costs to plan for one changed status, with other
// services around that nothing has happened to.
func BenchmarkEvent(b *testing.B) {
	for _, services := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			s := bigSim(b, services, 3)
			benchmarkEvents(b, s)
		})
	}
}

// BenchmarkEventOfBigService is the same with one service of many replicas.
func BenchmarkEventOfBigService(b *testing.B) {
	for _, replicas := range []int{10, 100, 1000, 10_000} {
		b.Run(fmt.Sprintf("replicas=%d", replicas), func(b *testing.B) {
			benchmarkEvents(b, bigSim(b, 1, replicas))
		})
	}
}

// bigSim has so many services at rest.
func bigSim(b *testing.B, services, replicas int) *sim {
	s := newSim(b)
	s.place = newScheduler(b)
	s.lead()
	for i := range 10 {
		s.node(fmt.Sprintf("n%d", i), 1<<40)
	}
	for i := range services {
		s.apply(fmt.Sprintf("s%d", i), spec{Replicas: replicas, Image: "v1", Memory: 1})
	}
	drain := func() {
		for {
			p := s.state.Plan(s.now)
			if len(p.Writes) == 0 {
				return
			}
			s.commit(p.Writes...)
		}
	}
	drain()
	for _, t := range s.tasksUnsorted() {
		s.report(t, record.Ready, nil)
	}
	drain()
	s.now = s.now.Add(time.Minute)
	drain()
	if r := s.rollout("s0"); r.State != record.RolloutCompleted {
		b.Fatalf("the services are not at rest: %+v", r)
	}
	return s
}

func (s *sim) tasksUnsorted() []record.Task {
	var out []record.Task
	for key, i := range s.kv {
		if len(key) > len(record.Tasks) && key[:len(record.Tasks)] == record.Tasks {
			var t record.Task
			unmarshal(s.t, i.Value, &t)
			out = append(out, t)
		}
	}
	return out
}

func benchmarkEvents(b *testing.B, s *sim) {
	var task record.Task
	for _, t := range s.tasksUnsorted() {
		if t.Service == "s0" {
			task = t
			break
		}
	}
	key := record.Key(record.Statuses, task.Node, task.ID)
	var batches [2]store.Batch
	for i, state := range []record.State{record.Running, record.Ready} {
		status := record.Status{Task: task.ID, Namespace: task.Namespace, Service: task.Service, Node: task.Node, State: state, Since: s.now, Ready: s.now}
		batches[i] = store.Batch{Revision: s.rev + 1, Changes: []store.Change{{Item: store.Item{Key: key, Value: marshal(b, status), Revision: s.rev + 1}}}}
	}
	b.ReportAllocs()
	var p control.Plan
	for i := 0; b.Loop(); i++ {
		s.now = s.now.Add(time.Second)
		s.state.Apply(batches[i%2], s.now)
		p = s.state.Plan(s.now)
		for _, w := range p.Writes { // the rollout's count
			s.state.Apply(store.Batch{Revision: s.rev, Changes: []store.Change{{Item: store.Item{Key: w.Key, Value: w.Value, Revision: s.rev}}}}, s.now)
		}
	}
}

// BenchmarkDeploy is the planning of a whole service, its placement included.
func BenchmarkDeploy(b *testing.B) {
	for _, replicas := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("replicas=%d", replicas), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				s := newSim(b)
				s.place = newScheduler(b)
				s.lead()
				for i := range 100 {
					s.node(fmt.Sprintf("n%d", i), 1<<40)
				}
				s.apply("s", spec{Replicas: replicas, Image: "v1", Memory: 1})
				b.StartTimer()
				if p := s.state.Plan(s.now); len(p.Writes) != replicas+1 {
					b.Fatalf("%d writes, want %d tasks and a rollout", len(p.Writes), replicas)
				}
			}
		})
	}
}
