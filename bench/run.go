package main

import (
	"fmt"
	"io"
	"testing"
	"time"
)

// plan is what one run of the command measures.
type plan struct {
	peers  []contender
	loads  []load // placed by everyone
	alone  []load // placed by us only
	curve  []int  // nodes
	full   int    // nodes of the full cluster
	memory load
	rounds int
	until  time.Time // what is not likely to be over by then is left out
}

func fullPlan(until time.Time) plan {
	return plan{
		peers: peers(),
		loads: []load{
			{identical, 1e3, 1e3}, {identical, 1e3, 1e4}, {constrained, 1e3, 1e4}, {mixed, 1e3, 1e4},
			{identical, 1e3, 1e5}, {constrained, 1e3, 1e5}, {mixed, 1e3, 1e5},
		},
		alone:  []load{{sized, 1e4, 1e5}, {mixed, 1e4, 1e5}, {sized, 1e5, 1e6}, {mixed, 1e5, 1e6}},
		curve:  []int{1e3, 1e4, 1e5},
		full:   1e4,
		memory: load{mixed, 1e5, 1e6},
		rounds: 3,
		until:  until,
	}
}

func quickPlan(until time.Time) plan {
	return plan{
		peers:  peers(),
		loads:  []load{{identical, 1e3, 1e3}, {constrained, 1e3, 1e3}, {mixed, 1e3, 1e3}},
		alone:  []load{{sized, 1e4, 1e5}, {mixed, 1e4, 1e5}},
		curve:  []int{1e3, 1e4},
		full:   1e3,
		memory: load{mixed, 1e4, 1e5},
		rounds: 1,
		until:  until,
	}
}

// peers are those that this binary was built with.
func peers() []contender { return append([]contender{swarmGrouped, swarmSingle}, otherPeers...) }

// results are the medians by load and contender, and what was left out.
type results struct {
	of      map[load]map[string][]sample
	skipped []string
}

func (r *results) get(l load, name string) (sample, bool) {
	all := r.of[l][name]
	if len(all) == 0 {
		return sample{}, false
	}
	return middle(all), true
}

func (r *results) add(l load, name string, s sample) {
	if r.of[l] == nil {
		r.of[l] = map[string][]sample{}
	}
	r.of[l][name] = append(r.of[l][name], s)
}

// compare lets everyone place every load, in rounds in which we and each peer
// take turns. progress gets a line a run.
func (p *plan) compare(progress io.Writer) (*results, error) {
	res := &results{of: map[load]map[string][]sample{}}
	ourTurns := 2                         // in front of each peer: ours are short, so more of them cost nothing
	perTask := map[string]time.Duration{} // of each contender's last run, all included
	run := func(c contender, l load) error {
		start := time.Now()
		s, err := c.run(l)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		perTask[c.name] = time.Since(start) / time.Duration(l.tasks)
		res.add(l, c.name, s)
		fmt.Fprintf(progress, "%-60s %-32s %s\n", l, c.name, span(s.whole))
		return nil
	}
	for _, l := range p.loads {
		rounds := p.rounds
		if l.tasks >= 1e5 {
			rounds = 1 // tens of seconds each
		}
		for round := range rounds {
			for _, c := range p.peers {
				if c.cannot != nil && c.cannot(l) || c.once && round > 0 {
					continue
				}
				for range ourTurns {
					if err := run(ours, l); err != nil {
						return nil, err
					}
				}
				need := perTask[c.name] * time.Duration(l.tasks)
				if time.Now().Add(need).After(p.until) {
					res.skipped = append(res.skipped, fmt.Sprintf("%s with %s: about %s, more than was left of the time", l, c.name, span(need)))
					continue
				}
				if err := run(c, l); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, l := range p.alone {
		for range p.rounds {
			if err := run(ours, l); err != nil {
				return nil, err
			}
		}
	}
	return res, nil
}

// perOp is what one operation of a Go benchmark costs.
type perOp struct {
	time, cpu     time.Duration
	bytes, allocs int64
}

func benchmark(f func(*testing.B)) (perOp, error) {
	r := testing.Benchmark(f)
	if r.N == 0 {
		return perOp{}, fmt.Errorf("a benchmark failed")
	}
	return perOp{time.Duration(r.T.Nanoseconds() / int64(r.N)), time.Duration(r.Extra[cpuPerOp]), r.AllocedBytesPerOp(), r.AllocsPerOp()}, nil
}
