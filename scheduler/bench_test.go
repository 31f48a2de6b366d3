package scheduler

import (
	"fmt"
	"testing"
)

func benchCluster(tb testing.TB, nodes int) *Cluster {
	tb.Helper()
	c := NewCluster()
	for i := range nodes {
		if err := c.SetNode(Node{
			ID: fmt.Sprintf("node-%06d", i), Hostname: fmt.Sprintf("host%d", i), Ready: true,
			Platform: Platform{OS: "linux", Arch: "amd64"},
			Labels:   map[string]string{"zone": fmt.Sprint("z", i%3), "disk": []string{"ssd", "hdd"}[i/3%2], "rack": fmt.Sprint("r", i/3%50)},
			Capacity: Resources{CPU: 64_000, Memory: 256 << 30},
		}); err != nil {
			tb.Fatal(err)
		}
	}
	return c
}

func benchScheduler(tb testing.TB) *Scheduler {
	tb.Helper()
	s, err := New(Options{})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

var benchSizes = []struct{ nodes, tasks int }{{1_000, 100_000}, {10_000, 100_000}, {100_000, 1_000_000}}

func perPlacement(b *testing.B, tasks int) {
	b.ReportMetric(float64(b.N)*float64(tasks)/b.Elapsed().Seconds(), "placements/s")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkIdentical places one group of identical replicas in an empty
// cluster.
func BenchmarkIdentical(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(fmt.Sprintf("%dx%d", size.nodes, size.tasks), func(b *testing.B) {
			empty, s := benchCluster(b, size.nodes), benchScheduler(b)
			reqs := []Request{{Service: "web", Count: size.tasks, Resources: Resources{CPU: 100, Memory: 64 << 20}}}
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				c := empty.Clone()
				b.StartTimer()
				if d, err := s.Place(c, reqs); err != nil || d[0].Unplaced > 0 {
					b.Fatal(err, d[0].String())
				}
			}
			perPlacement(b, size.tasks)
		})
	}
}

func mixedLoad(tasks int) []Request {
	reqs := make([]Request, 1000)
	for i := range reqs {
		r := Request{Service: fmt.Sprintf("svc-%d", i), Count: tasks / len(reqs),
			Resources: Resources{CPU: int64(50 + 10*(i%10)), Memory: int64(32+8*(i%7)) << 20},
			Spread:    []SpreadKey{{Key: "node.labels.zone"}}}
		if i%2 == 0 {
			r.Constraints = []Constraint{MustConstraint("node.labels.disk == ssd")}
		}
		reqs[i] = r
	}
	return reqs
}

// BenchmarkMixed places 1,000 services, half of them with a constraint, spread
// over zones.
func BenchmarkMixed(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(fmt.Sprintf("%dx%d", size.nodes, size.tasks), func(b *testing.B) {
			empty, s := benchCluster(b, size.nodes), benchScheduler(b)
			reqs := mixedLoad(size.tasks)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				c := empty.Clone()
				b.StartTimer()
				ds, err := s.Place(c, reqs)
				if err != nil {
					b.Fatal(err)
				}
				for i := range ds {
					if ds[i].Unplaced > 0 {
						b.Fatal(ds[i].String())
					}
				}
			}
			perPlacement(b, size.tasks)
		})
	}
}
