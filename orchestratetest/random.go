package orchestratetest

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/orchestrate-go/orchestrate"
	orchestratenode "github.com/orchestrate-go/orchestrate/node"
)

// Random adds faults at random.
type Random struct {
	// Every is the mean time between two faults; 0 adds none. Regular has one at
	// each multiple of it.
	Every   time.Duration
	Regular bool
	// Mix is how often each kind comes in proportion; the zero value is
	// [DefaultMix].
	Mix Mix
	// Lasts is how long faults last on average; default 5 minutes.
	Lasts time.Duration
	// Quiet is for how long before the end there are no more; default a tenth of
	// all, at most an hour.
	Quiet time.Duration
}

// Mix is how often each kind of fault comes, in proportion to the others.
type Mix struct {
	NodeDies, NodeHangs, NodeSlow, AgentRestarts, Partition, ClockSkew           int
	StoreSlow, StoreConflicts, StoreUnsure, WatchLost, LeaderDies, LeaderCut     int
	PullSlow, PullFails, ContainerCrashes, ContainerLeaks, NeverReady, DrainNode int
}

// DefaultMix has containers fail most, then nodes, then what all share.
func DefaultMix() Mix {
	return Mix{
		NodeDies: 120, NodeHangs: 60, NodeSlow: 60, AgentRestarts: 60, Partition: 40, ClockSkew: 30,
		StoreSlow: 10, StoreConflicts: 1, StoreUnsure: 1, WatchLost: 30, LeaderDies: 1, LeaderCut: 1,
		PullSlow: 30, PullFails: 20, ContainerCrashes: 400, ContainerLeaks: 120, NeverReady: 30,
	}
}

// draw is a number from 0 to 1 that follows from the seed and a name.
func draw(seed uint64, of ...any) float64 {
	return float64(dice(seed, of...).Uint64()>>11) / (1 << 53)
}

// dice are of one purpose alone: what one draws changes nothing for another.
func dice(seed uint64, of ...any) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprint(h, of...) // never fails
	return rand.New(rand.NewPCG(seed, h.Sum64()))
}

// steps are all that is to happen, in order: the script, random faults, and those
// of machines that fail at a rate.
func (s *Scenario) steps() []Step {
	all := slices.Clone(s.Script)
	for g := range s.Nodes {
		group := &s.Nodes[g]
		if group.FailsEvery <= 0 {
			continue
		}
		for i := range group.Count {
			id := fmt.Sprintf("%s%d", group.Name, i+1)
			rng := dice(s.Seed, "fails", id)
			for at := after(rng, group.FailsEvery); at < s.For; at += group.RepairIn + after(rng, group.FailsEvery) {
				all = append(all, Step{at, NodeDies{Node: id, For: group.RepairIn}})
			}
		}
	}
	if s.Random.Every > 0 {
		all = append(all, s.random()...)
	}
	slices.SortStableFunc(all, func(a, b Step) int { return cmp.Compare(a.At, b.At) })
	return all
}

// after is an exponentially distributed time, in whole milliseconds.
func after(rng *rand.Rand, mean time.Duration) time.Duration {
	d := time.Duration(-float64(mean) * math.Log(1-rng.Float64()))
	return max(d.Truncate(time.Millisecond), time.Millisecond)
}

func (s *Scenario) random() (steps []Step) {
	r := s.Random
	mix := r.Mix
	if mix == (Mix{}) {
		mix = DefaultMix()
	}
	lasts := cmp.Or(r.Lasts, 5*time.Minute)
	quiet := cmp.Or(r.Quiet, min(s.For/10, time.Hour))
	rng := dice(s.Seed, "random")
	var nodes []string
	for _, g := range s.Nodes {
		for i := range g.Count {
			nodes = append(nodes, fmt.Sprintf("%s%d", g.Name, i+1))
		}
	}
	type slots struct {
		name string
		n    int
	}
	var services []slots
	for _, o := range s.Objects {
		if svc, ok := o.(orchestrate.Service); ok {
			d := svc.WithDefaults()
			services = append(services, slots{d.Namespace + "/" + d.Name, max(d.Replicas, 1)})
		}
	}
	node := func() string { return nodes[rng.IntN(len(nodes))] }
	long := func() time.Duration { return after(rng, lasts).Truncate(time.Second) + time.Second }
	slot := func() (string, int) {
		if len(services) == 0 {
			return "none", 0
		}
		all := 0
		for _, svc := range services {
			all += svc.n
		}
		i := rng.IntN(all)
		for _, svc := range services {
			if i < svc.n {
				return svc.name, i
			}
			i -= svc.n
		}
		return "none", 0
	}
	kinds := []struct {
		weight int
		make   func() Action
	}{
		{mix.NodeDies, func() Action { return NodeDies{node(), long()} }},
		{mix.NodeHangs, func() Action { return NodeHangs{node(), long()} }},
		{mix.NodeSlow, func() Action { return NodeSlow{node(), after(rng, time.Second), long()} }},
		{mix.AgentRestarts, func() Action { return AgentRestarts{node(), long() / 20} }},
		{mix.Partition, func() Action {
			p := Partition{For: long()}
			for range 1 + rng.IntN(max(1, min(3, len(nodes)/3))) {
				if id := node(); !slices.Contains(p.Nodes, id) {
					p.Nodes = append(p.Nodes, id)
				}
			}
			return p
		}},
		{mix.ClockSkew, func() Action {
			f := ClockSkew{Node: node(), By: (after(rng, 10*time.Minute) - 10*time.Minute).Truncate(time.Second), For: long()}
			f.PPM = int((2*draw(s.Seed, "rate", len(steps)) - 1) * orchestratenode.ClockDrift * million) // as much as is to be borne
			return f
		}},
		{mix.StoreSlow, func() Action { return StoreSlow{after(rng, 200*time.Millisecond), long() / 10} }},
		{mix.StoreConflicts, func() Action { return StoreConflicts{0.1 + rng.Float64()/2, long() / 10} }},
		{mix.StoreUnsure, func() Action { return StoreUnsure{0.1 + rng.Float64()/2, long() / 10} }},
		{mix.WatchLost, func() Action { return WatchLost{node()} }},
		{mix.LeaderDies, func() Action { return LeaderDies{long() / 10} }},
		{mix.LeaderCut, func() Action { return LeaderCut{long() / 5} }},
		{mix.PullSlow, func() Action { return PullSlow{By: after(rng, time.Minute), For: long()} }},
		{mix.PullFails, func() Action { return PullFails{For: long() / 2} }},
		{mix.ContainerCrashes, func() Action { name, i := slot(); return ContainerCrashes{name, i} }},
		{mix.ContainerLeaks, func() Action { name, i := slot(); return ContainerLeaks{name, i, long()} }},
		{mix.NeverReady, func() Action { name, i := slot(); return NeverReady{name, i, long()} }},
		{mix.DrainNode, func() Action { return Drain{node()} }},
	}
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	next := func(at time.Duration) time.Duration {
		if r.Regular {
			return at + r.Every
		}
		return at + after(rng, r.Every)
	}
	for at := next(0); at < s.For-quiet && total > 0; at = next(at) {
		pick := rng.IntN(total)
		for _, k := range kinds {
			if pick < k.weight {
				a := k.make()
				steps = append(steps, Step{at, a})
				if d, ok := a.(Drain); ok {
					steps = append(steps, Step{at + long(), Uncordon{d.Node}})
				}
				break
			}
			pick -= k.weight
		}
	}
	return steps
}
