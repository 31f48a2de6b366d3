package main

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// TestQuick runs the command at its smallest. Each run in it fails when a task
// has no node, or one where it may not be; times are not judged.
func TestQuick(t *testing.T) {
	p := quickPlan(time.Now().Add(time.Hour))
	p.alone = []load{{sized, 1000, 10_000}, {mixed, 1000, 10_000}}
	p.memory = load{mixed, 1000, 10_000}
	p.curve = []int{100, 1000}
	p.full = 100
	var out strings.Builder
	if err := p.report(&out, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, c := range append([]contender{ours}, p.peers...) {
		if !strings.Contains(out.String(), c.name) {
			t.Errorf("the report says nothing of %s, want a row for each:\n%s", c.name, &out)
		}
	}
}

// TestChecks holds the checks to finding what is wrong with a placement.
func TestChecks(t *testing.T) {
	l := load{mixed, 12, 4}
	good := []placement{{0, 0}, {1, 1}, {2, 2}, {3, 4}}
	if err := l.check(good); err != nil {
		t.Errorf("check of a good placement: got %v, want nil", err)
	}
	crowd := load{sized, 3, 641} // 640 tasks of 100 millicores fill a node
	packed := make([]placement, crowd.tasks)
	for _, c := range []struct {
		name   string
		load   load
		places []placement
		spread bool
		want   string
	}{
		{"one missing", l, good[:3], false, "3 tasks placed, want 4"},
		{"on a disk it does not want", l, []placement{{0, 3}, {1, 1}, {2, 2}, {3, 4}}, false, "wants an ssd"},
		{"without the driver", load{constrained, 6, 1}, []placement{{0, 1}}, false, "has no network driver"},
		{"overcommitted", crowd, packed, false, "overcommitted"},
		{"all in one zone", load{mixed, 12, 2000}, make([]placement, 2000), true, "replicas by zone"},
		{"all on one node", load{identical, 3, 3}, make([]placement, 3), true, "from 0 to 3 tasks"},
	} {
		err := c.load.check(c.places)
		if c.spread {
			err = c.load.checkSpread(c.places)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want an error with %q", c.name, err, c.want)
		}
	}
}

func TestReplicas(t *testing.T) {
	for _, l := range []load{{identical, 1, 7}, {mixed, 1, 7}, {mixed, 1, 12345}} {
		sum := 0
		for i := range l.services() {
			sum += l.replicas(i)
		}
		if sum != l.tasks {
			t.Errorf("%s: services have %d replicas together, want %d", l, sum, l.tasks)
		}
	}
}

// BenchmarkLoads places every load with every scheduler, one run an operation.
func BenchmarkLoads(b *testing.B) {
	for _, l := range []load{
		{identical, 1e3, 1e3}, {identical, 1e3, 1e4}, {constrained, 1e3, 1e4}, {mixed, 1e3, 1e4},
		{sized, 1e4, 1e5}, {mixed, 1e4, 1e5}, {sized, 1e5, 1e6}, {mixed, 1e5, 1e6},
	} {
		for _, c := range append([]contender{ours}, peers()...) {
			if c.name != ours.name && (l.tasks > 1e4 || c.cannot != nil && c.cannot(l)) {
				continue
			}
			b.Run(fmt.Sprintf("%s/%dx%d/%s", strings.ReplaceAll(l.kind.String(), ", ", "-"), l.nodes, l.tasks, strings.ReplaceAll(c.name, ", ", "-")), func(b *testing.B) {
				var whole time.Duration
				var bytes, allocs uint64
				for range b.N {
					s, err := c.run(l)
					if err != nil {
						b.Fatal(err)
					}
					whole += s.whole
					bytes += s.bytes
					allocs += s.allocs
				}
				n := float64(b.N) * float64(l.tasks)
				b.ReportMetric(float64(whole.Nanoseconds())/n, "ns/placement")
				b.ReportMetric(n/whole.Seconds(), "placements/s")
				b.ReportMetric(float64(bytes)/n, "B/placement")
				b.ReportMetric(float64(allocs)/n, "allocs/placement")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// BenchmarkOneIntoFull places one task in a full cluster of 10,000 nodes.
func BenchmarkOneIntoFull(b *testing.B) {
	s, c, err := full(10_000)
	if err != nil {
		b.Fatal(err)
	}
	for _, k := range oneIntoFull {
		b.Run(strings.ReplaceAll(k.name, " ", "-"), func(b *testing.B) { benchOne(b, s, c, k.reqs(), k.fits) })
	}
}

// BenchmarkCurve places one replica by the number of nodes.
func BenchmarkCurve(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(short(n), func(b *testing.B) { benchOneSpread(b, n) })
	}
}
