package scheduler_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/orchestrate-go/orchestrate/scheduler"
)

// packed places all requests with binpack on nodes of 16 cores, 64 GiB and
// 500 GiB, and returns how many nodes got something.
func packed(t *testing.T, nodes int, reqs []scheduler.Request) int {
	t.Helper()
	c := scheduler.NewCluster()
	for i := range nodes {
		if err := c.SetNode(scheduler.Node{ID: fmt.Sprintf("n%04d", i), Ready: true, Capacity: binSize}); err != nil {
			t.Fatal(err)
		}
	}
	s, err := scheduler.New(scheduler.Options{Default: scheduler.BinPack})
	if err != nil {
		t.Fatal(err)
	}
	ds, err := s.Place(c, reqs)
	if err != nil {
		t.Fatal(err)
	}
	for i := range ds {
		if err := ds[i].Err(); err != nil {
			t.Fatal(err)
		}
	}
	used := 0
	for n := range c.Nodes() {
		if n.Tasks() > 0 {
			used++
		}
	}
	return used
}

var binSize = scheduler.Resources{CPU: 16_000, Memory: 64 << 30, Disk: 500 << 30}

// volumeBound is the least number of nodes by the sum of each resource.
func volumeBound(reqs []scheduler.Request) int {
	var cpu, memory, disk float64
	for _, r := range reqs {
		cpu += float64(r.Count) * float64(r.Resources.CPU) / float64(binSize.CPU)
		memory += float64(r.Count) * float64(r.Resources.Memory) / float64(binSize.Memory)
		disk += float64(r.Count) * float64(r.Resources.Disk) / float64(binSize.Disk)
	}
	return int(math.Ceil(max(cpu, memory, disk) - 1e-9))
}

// TestBinPackLarge: on random loads of several resources, no more than 5 %
// above what the sum of the scarcest resource alone would need.
func TestBinPackLarge(t *testing.T) {
	share := func(rng *rand.Rand, lo, hi float64, of int64) int64 {
		return int64((lo + (hi-lo)*rng.Float64()) * float64(of))
	}
	loads := map[string]func(*rand.Rand) scheduler.Resources{
		"independent": func(rng *rand.Rand) scheduler.Resources {
			return scheduler.Resources{CPU: share(rng, 0.01, 0.25, binSize.CPU), Memory: share(rng, 0.01, 0.25, binSize.Memory)}
		},
		"three": func(rng *rand.Rand) scheduler.Resources {
			return scheduler.Resources{CPU: share(rng, 0.01, 0.15, binSize.CPU), Memory: share(rng, 0.01, 0.15, binSize.Memory), Disk: share(rng, 0.01, 0.15, binSize.Disk)}
		},
		"cpu-heavy": func(rng *rand.Rand) scheduler.Resources {
			return scheduler.Resources{CPU: share(rng, 0.05, 0.4, binSize.CPU), Memory: share(rng, 0.01, 0.2, binSize.Memory)}
		},
		"either": func(rng *rand.Rand) scheduler.Resources {
			if rng.IntN(2) == 0 {
				return scheduler.Resources{CPU: share(rng, 0.1, 0.3, binSize.CPU), Memory: share(rng, 0.01, 0.05, binSize.Memory)}
			}
			return scheduler.Resources{CPU: share(rng, 0.01, 0.05, binSize.CPU), Memory: share(rng, 0.1, 0.3, binSize.Memory)}
		},
	}
	for name, load := range loads {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(5) {
				rng := rand.New(rand.NewPCG(seed, 1))
				var reqs []scheduler.Request
				for i := range 1000 {
					reqs = append(reqs, scheduler.Request{Service: fmt.Sprint("s", i), Count: 1 + rng.IntN(4), Resources: load(rng)})
				}
				bound := volumeBound(reqs)
				used := packed(t, 2*bound+10, reqs)
				t.Logf("seed %d: %d nodes, at least %d: %.1f %% above", seed, used, bound, 100*float64(used-bound)/float64(bound))
				if float64(used) > 1.05*float64(bound) {
					t.Errorf("seed %d: %d nodes, want at most 5 %% above %d", seed, used, bound)
				}
			}
		})
	}
}

// fewestBins is the exact least number of bins for two-dimensional items, by
// branch and bound: each item goes into each open bin or a new one.
func fewestBins(items [][2]int64, size [2]int64) int {
	best := len(items)
	var bins [][2]int64
	var place func(i int)
	place = func(i int) {
		if len(bins) >= best {
			return
		}
		if i == len(items) {
			best = len(bins)
			return
		}
		tried := map[[2]int64]bool{}
		for b := range bins {
			was := bins[b]
			if tried[was] || was[0]+items[i][0] > size[0] || was[1]+items[i][1] > size[1] {
				continue
			}
			tried[was] = true
			bins[b] = [2]int64{was[0] + items[i][0], was[1] + items[i][1]}
			place(i + 1)
			bins[b] = was
		}
		bins = append(bins, items[i])
		place(i + 1)
		bins = bins[:len(bins)-1]
	}
	place(0)
	return best
}

// TestBinPackSmall: against the exact optimum of small cases never more than
// one node above, and within 5 % over all of them.
func TestBinPackSmall(t *testing.T) {
	used, optimum := 0, 0
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 2))
		var reqs []scheduler.Request
		var items [][2]int64
		for i := range 5 {
			r := scheduler.Request{Service: fmt.Sprint("s", i), Count: 1 + rng.IntN(3), Resources: scheduler.Resources{
				CPU: 1000 * int64(1+rng.IntN(9)), Memory: int64(2+rng.IntN(38)) << 30}}
			for range r.Count {
				items = append(items, [2]int64{r.Resources.CPU, r.Resources.Memory})
			}
			reqs = append(reqs, r)
		}
		least := fewestBins(items, [2]int64{binSize.CPU, binSize.Memory})
		got := packed(t, len(items), reqs)
		if got > least+1 || got < least {
			t.Errorf("seed %d: %d nodes for %v, the optimum is %d", seed, got, items, least)
		}
		used, optimum = used+got, optimum+least
	}
	t.Logf("%d nodes, optimum %d: %.1f %% above", used, optimum, 100*float64(used-optimum)/float64(optimum))
	if float64(used) > 1.05*float64(optimum) {
		t.Errorf("%d nodes in all, want at most 5 %% above the optimum %d", used, optimum)
	}
}

// leastSkew is the exact least difference between the fullest and the emptiest
// domain when n replicas are added to those there, by trying everything.
func leastSkew(there, room []int, n int) int {
	best := math.MaxInt
	var put func(d, left, lo, hi int)
	put = func(d, left, lo, hi int) {
		if hi-lo >= best && lo <= hi {
			return
		}
		if d == len(there) {
			if left == 0 {
				best = min(best, hi-lo)
			}
			return
		}
		for k := 0; k <= min(left, room[d]); k++ {
			x := there[d] + k
			put(d+1, left-k, min(lo, x), max(hi, x))
		}
	}
	put(0, n, math.MaxInt, math.MinInt)
	return best
}

// TestSpreadSkew: over zones of uneven size, with some replicas there already,
// the skew is the best that the sizes allow, or 1 more.
func TestSpreadSkew(t *testing.T) {
	s, err := scheduler.New(scheduler.Options{})
	if err != nil {
		t.Fatal(err)
	}
	exact := 0
	const runs = 300
	for seed := range uint64(runs) {
		rng := rand.New(rand.NewPCG(seed, 3))
		c := scheduler.NewCluster()
		zones := 2 + rng.IntN(3)
		room, there := make([]int, zones), make([]int, zones)
		unit := scheduler.Request{Service: "web", Resources: scheduler.Resources{CPU: 1000}}
		for z := range zones {
			for i := range 1 + rng.IntN(4) {
				k := 1 + rng.IntN(4)
				id := fmt.Sprintf("z%d-%d", z, i)
				if err := c.SetNode(scheduler.Node{ID: id, Ready: true, Labels: map[string]string{"zone": fmt.Sprint(z)},
					Capacity: scheduler.Resources{CPU: int64(1000 * k)}}); err != nil {
					t.Fatal(err)
				}
				room[z] += k
				if rng.IntN(3) == 0 {
					if err := c.Bind("old-"+id, id, &unit); err != nil {
						t.Fatal(err)
					}
					there[z]++
					room[z]--
				}
			}
		}
		total := 0
		for _, k := range room {
			total += k
		}
		n := rng.IntN(min(total, 12) + 1)
		want := leastSkew(there, room, n)
		r := unit
		r.Count, r.Spread = n, []scheduler.SpreadKey{{Key: "node.labels.zone"}}
		ds, err := s.Place(c, []scheduler.Request{r})
		if err != nil || ds[0].Unplaced > 0 {
			t.Fatal(err, ds[0].String())
		}
		for _, id := range ds[0].Nodes {
			there[int(id[1]-'0')]++
		}
		lo, hi := math.MaxInt, 0
		for _, k := range there {
			lo, hi = min(lo, k), max(hi, k)
		}
		if hi-lo > want+1 {
			t.Errorf("seed %d: skew %d (%v), the optimum is %d", seed, hi-lo, there, want)
		}
		if hi-lo == want {
			exact++
		}
	}
	t.Logf("the optimum itself in %d of %d", exact, runs)
}
