package scheduler

import (
	"fmt"
	"runtime"
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

// BenchmarkOneIntoFull places and releases one task in a loaded cluster of
// 10,000 nodes: where it just fits on some nodes, where it fits on none, and
// where it takes turns with 20 other shapes.
func BenchmarkOneIntoFull(b *testing.B) {
	s := benchScheduler(b)
	c := benchCluster(b, 10_000)
	fill := []Request{{Service: "fill", Count: 99_990, Resources: Resources{CPU: 6400, Memory: 25 << 30}}}
	if ds, err := s.Place(c, fill); err != nil || ds[0].Unplaced > 0 {
		b.Fatal(err, ds[0].String())
	}
	place := func(b *testing.B, r *[1]Request, want int) {
		ds, err := s.Place(c, r[:])
		if err != nil || ds[0].Placed() != want {
			b.Fatal(err, ds[0].String())
		}
		if want == 1 {
			if err := c.Release(ds[0].Tasks[0]); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("fits", func(b *testing.B) {
		b.ReportAllocs()
		r := [1]Request{{Service: "fill", Count: 1, Resources: Resources{CPU: 6400, Memory: 25 << 30}}}
		for b.Loop() {
			place(b, &r, 1)
		}
	})
	b.Run("fits-none", func(b *testing.B) {
		b.ReportAllocs()
		r := [1]Request{{Service: "big", Count: 1, Resources: Resources{CPU: 9600, Memory: 26 << 30}}}
		for b.Loop() {
			place(b, &r, 0)
		}
	})
	b.Run("fits-in-turn", func(b *testing.B) {
		b.ReportAllocs()
		var rs [20][1]Request
		for i := range rs {
			rs[i] = [1]Request{{Service: fmt.Sprint("turn", i), Count: 1, Resources: Resources{CPU: 6300 - int64(i%12), Memory: 24 << 30}}}
		}
		for i := 0; b.Loop(); i++ {
			place(b, &rs[i%len(rs)], 1)
		}
	})
}

// BenchmarkScale places one replica of a known shape at a time: the curve over
// nodes.
func BenchmarkScale(b *testing.B) {
	for _, nodes := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(nodes), func(b *testing.B) {
			c, s := benchCluster(b, nodes), benchScheduler(b)
			r := []Request{{Service: "web", Count: 1, Resources: Resources{CPU: 100, Memory: 64 << 20}, Spread: []SpreadKey{{Key: "node.labels.zone"}}}}
			last := ""
			b.ReportAllocs()
			for b.Loop() {
				ds, err := s.Place(c, r)
				if err != nil || ds[0].Unplaced > 0 {
					b.Fatal(err, ds[0].String())
				}
				if last != "" {
					if err := c.Release(last); err != nil {
						b.Fatal(err)
					}
				}
				last = ds[0].Tasks[0]
			}
		})
	}
}

// BenchmarkMemory reports what a loaded cluster keeps per node and per task,
// its indexes included.
func BenchmarkMemory(b *testing.B) {
	s := benchScheduler(b)
	for b.Loop() {
		empty := heapInUse()
		c := benchCluster(b, 100_000)
		nodes := heapInUse() - empty
		if _, err := s.Place(c, mixedLoad(1_000_000)); err != nil {
			b.Fatal(err)
		}
		loaded := heapInUse() - empty
		c.indexes, c.statics, c.picks, c.touched, c.tally = nil, nil, nil, nil, nil
		bare := heapInUse() - empty
		b.ReportMetric(float64(nodes+loaded-bare)/100_000, "B/node")
		b.ReportMetric(float64(bare-nodes)/1_000_000, "B/task")
		runtime.KeepAlive(c)
	}
	b.ReportMetric(0, "ns/op")
}

func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkClone copies a loaded cluster.
func BenchmarkClone(b *testing.B) {
	s, c := benchScheduler(b), benchCluster(b, 10_000)
	if _, err := s.Place(c, mixedLoad(100_000)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		c.Clone()
	}
}

// BenchmarkBind binds and releases tasks one by one, as a store's watch does.
func BenchmarkBind(b *testing.B) {
	c := benchCluster(b, 10_000)
	r := Request{Service: "web", Resources: Resources{CPU: 1}}
	ids, nodes := make([]string, 4096), make([]string, 4096)
	for i := range ids {
		ids[i], nodes[i] = fmt.Sprint("web.", i), fmt.Sprintf("node-%06d", i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		k := i % len(ids)
		if err := c.Bind(ids[k], nodes[k], &r); err != nil {
			b.Fatal(err)
		}
		if err := c.Release(ids[k]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOther places 1,000 replicas on 10,000 loaded nodes under rules that
// need more than the shared indexes.
func BenchmarkOther(b *testing.B) {
	loaded := benchCluster(b, 10_000)
	if _, err := benchScheduler(b).Place(loaded, []Request{{Service: "fill", Count: 100_000, Resources: Resources{CPU: 6300, Memory: 24 << 30}}}); err != nil {
		b.Fatal(err)
	}
	distinct := make([]Request, 1000)
	for i := range distinct {
		distinct[i] = Request{Service: fmt.Sprint("d", i), Count: 1, Strategy: BinPack, Resources: Resources{CPU: 10 + int64(i%37), Memory: int64(1+i%11) << 20}}
	}
	small := Resources{CPU: 100, Memory: 64 << 20}
	for _, x := range []struct {
		name string
		opts Options
		reqs []Request
	}{
		{"own-anti-affinity", Options{}, []Request{{Service: "x", Count: 1000, Resources: small, AntiAffinity: []Affinity{{Service: "x"}}}}},
		{"affinity-by-zone", Options{}, []Request{{Service: "x", Count: 1000, Resources: small, Affinity: []Affinity{{Service: "fill", Topology: "node.labels.zone"}}}}},
		{"max-skew", Options{}, []Request{{Service: "x", Count: 1000, Resources: small, Spread: []SpreadKey{{Key: "node.labels.zone", MaxSkew: 1}, {Key: "node.labels.rack"}}}}},
		{"random", Options{}, []Request{{Service: "x", Count: 1000, Resources: small, Strategy: Random}}},
		{"host-port", Options{}, []Request{{Service: "x", Count: 1000, Resources: small, Ports: []HostPort{{Port: 80}}}}},
		{"preempt", Options{Preempt: true}, []Request{{Service: "x", Count: 1000, Priority: 1, Resources: Resources{CPU: 6300, Memory: 30 << 30}}}},
		{"binpack-distinct", Options{}, distinct},
	} {
		b.Run(x.name, func(b *testing.B) {
			s, err := New(x.opts)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				b.StopTimer()
				c := loaded.Clone()
				b.StartTimer()
				ds, err := s.Place(c, x.reqs)
				if err != nil {
					b.Fatal(err)
				}
				for i := range ds {
					if ds[i].Unplaced > 0 {
						b.Fatal(ds[i].String())
					}
				}
			}
			perPlacement(b, 1000)
		})
	}
}

// BenchmarkRebalance plans ten moves in a cluster that has grown.
func BenchmarkRebalance(b *testing.B) {
	c, s := benchCluster(b, 1000), benchScheduler(b)
	if _, err := s.Place(c, mixedLoad(10_000)); err != nil {
		b.Fatal(err)
	}
	for i := range 10 {
		if err := c.SetNode(Node{ID: fmt.Sprint("new", i), Ready: true, Labels: map[string]string{"zone": "z1", "disk": "ssd"}, Capacity: Resources{CPU: 64_000, Memory: 256 << 30}}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := s.Rebalance(c, RebalanceOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
