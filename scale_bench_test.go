package orchestrate

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// BenchmarkScale is a fleet of 5,000 nodes and 1,000 services of 100 tasks each,
// all ready: what it takes a leader to begin, and to plan for a node that is lost.
// The planner, the scheduler and the store in memory are the real ones.
func BenchmarkScale(b *testing.B) {
	const nodes, services, replicas = 5000, 1000, 100
	f, s := atRestOn(b, nodes, services, replicas)
	load := func(b *testing.B, now time.Time) *control.State {
		snapshot, err := s.List(b.Context(), "")
		if err != nil {
			b.Fatal(err)
		}
		state := control.NewState(f.plannerConfig())
		state.Load(snapshot, now)
		return state
	}
	// The cold start of a leader is from when it was elected to when it has
	// planned and has nothing to do.
	b.Run("cold start", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			now := time.Now().UTC()
			if p := load(b, now).Plan(now); len(p.Writes) > 1 { // the fleet's size
				b.Fatalf("a new leader writes %d records of a fleet at rest, the first %s", len(p.Writes), p.Writes[0].Key)
			}
		}
	})
	// What a leader holds, beside what is in the store.
	b.Run("memory", func(b *testing.B) {
		snapshot, err := s.List(b.Context(), "")
		if err != nil {
			b.Fatal(err)
		}
		bytes := 0
		for _, item := range snapshot.Items {
			bytes += len(item.Key) + len(item.Value)
		}
		for b.Loop() {
			before := heap()
			now := time.Now().UTC()
			state := load(b, now)
			state.Plan(now)
			b.ReportMetric(float64(heap()-before)/(1<<20), "MiB")
			b.ReportMetric(float64(bytes)/(1<<20), "MiB-in-store")
			runtime.KeepAlive(state)
		}
	})
	// A node's loss is that it falls silent, and then that it is given up: its
	// twenty tasks are told to stop and replaced.
	b.Run("loss", func(b *testing.B) {
		b.ReportAllocs()
		now := time.Now().UTC()
		state := load(b, now)
		revision := state.Revision()
		apply := func(writes ...store.Write) {
			revision++
			batch := store.Batch{Revision: revision}
			for _, w := range writes {
				batch.Changes = append(batch.Changes, store.Change{Item: store.Item{Key: w.Key, Value: w.Value, Revision: revision}, Deleted: w.Delete})
			}
			state.Apply(batch, now)
		}
		state.Plan(now)
		alive, err := s.List(b.Context(), record.Alive)
		if err != nil {
			b.Fatal(err)
		}
		for i := 0; b.Loop(); i++ {
			if i == len(alive.Items)/2 {
				b.Fatal("half of all nodes are lost")
			}
			now = now.Add(time.Second)
			apply(store.Delete(alive.Items[i].Key))
			apply(state.Plan(now).Writes...)
			now = now.Add(control.DefaultLostAfter)
			tasks := 0
			for range 2 { // the successors, and then that the lost are to stop
				p := state.Plan(now)
				for _, w := range p.Writes {
					if strings.HasPrefix(w.Key, record.Tasks) {
						tasks++
					}
				}
				apply(p.Writes...)
			}
			if tasks < 40 {
				b.Fatalf("%d writes about tasks, want 20 that stop and 20 that start", tasks)
			}
		}
	})
}

// heap is how much is in use after a collection of garbage.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
