package orchestrate

import (
	"cmp"
	"fmt"
	"math"
	"time"
)

// Replayed is what came of deciding again by a log of [WithRecorder].
type Replayed struct {
	From, To time.Time
	Plans    int // how often it was decided what to do
	// Placements are the tasks that were placed, and Same those of them that are
	// placed on the same node again. Differences are the others, in order.
	Placements, Same int
	Differences      []Difference
	// CronSteps are the decisions about cron jobs, and SameCronSteps those of them
	// that are made again. CronDifferences are the others.
	CronSteps, SameCronSteps int
	CronDifferences          []CronDifference
	// Was and Would are what it cost, as it was and as it would have been.
	Was, Would Cost
}

// Difference is one decision that would have been another.
type Difference struct {
	At      time.Time
	Service string // or job, NAMESPACE/NAME
	Slot    int    // or index of the job
	// Was and Would are the nodes; empty where the task was, or would be, not
	// placed then.
	Was, Would string
}

// String is the difference in words.
func (d Difference) String() string {
	return fmt.Sprintf("%s: %s.%d was placed on %s, and would be on %s", d.At.Format(time.RFC3339), d.Service, d.Slot, cmp.Or(d.Was, "no node"), cmp.Or(d.Would, "no node"))
}

// CronDifference is one decision about a cron job that would have been another.
type CronDifference struct {
	At         time.Time
	CronJob    string // NAMESPACE/NAME
	Was, Would CronDecision
}

// String is the difference in words.
func (d CronDifference) String() string {
	return fmt.Sprintf("%s: cron job %s: it was to %v, and would be to %v", d.At.Format(time.RFC3339), d.CronJob, d.Was, d.Would)
}

// Cost is what decisions about places led to.
type Cost struct {
	// Moved is how many tasks were on nodes that were lost or left.
	Moved int
	// Imbalance is the standard deviation of the share of their CPU that nodes
	// which are alive had promised, from 0 to 1, on average over the time.
	Imbalance float64
	// Unplaced is for how long services and jobs had tasks without a place, all added up.
	Unplaced time.Duration
}

// side is one of the two that are compared.
type side struct {
	load      map[string]int64 // CPU promised, by node
	unplaced  map[string]bool  // services
	imbalance float64          // times its duration
}

func newSide() side { return side{load: map[string]int64{}, unplaced: map[string]bool{}} }

// pass lets time go by.
func (p *replay) pass(at time.Time) {
	d := at.Sub(p.now)
	if p.state != nil && d > 0 {
		p.was.imbalance += p.imbalance(&p.was) * float64(d)
		p.wouldB.imbalance += p.imbalance(&p.wouldB) * float64(d)
		p.weight += d
		p.out.Was.Unplaced += time.Duration(len(p.was.unplaced)) * d
		p.out.Would.Unplaced += time.Duration(len(p.wouldB.unplaced)) * d
	}
	p.now = at
}

func (p *replay) imbalance(s *side) float64 {
	var n, sum, squares float64
	for _, id := range p.nodes {
		if capacity := p.cpu[id]; p.alive[id] && capacity > 0 {
			x := float64(s.load[id]) / float64(capacity)
			n, sum, squares = n+1, sum+x, squares+x*x
		}
	}
	if n == 0 {
		return 0
	}
	return math.Sqrt(max(0, squares/n-(sum/n)*(sum/n)))
}

// leave has a task need its place no more.
func (p *replay) leave(t *replayed) {
	if t.over {
		return
	}
	t.over = true
	p.was.load[t.node] -= t.cpu
	p.wouldB.load[t.also] -= t.cpu
}

// compare says whether a task that was placed would be placed there again.
func (p *replay) compare(t *replayed) {
	slot := slotOf(t.service, t.slot)
	node := p.would[slot]
	delete(p.would, slot)
	delete(p.asked, slot)
	p.out.Placements++
	if node == t.node {
		p.out.Same++
		return
	}
	p.out.Differences = append(p.out.Differences, Difference{At: p.now, Service: t.service, Slot: t.slot, Was: t.node, Would: node})
	if node != "" {
		t.also = node
	}
}

// moved counts a task that had to leave its node, and, once for each node that
// was left, those that would have been there.
func (p *replay) moved(t *replayed) {
	p.out.Was.Moved++
	if t.also == t.node {
		p.out.Would.Moved++
	}
	// Of those that would have been elsewhere, the ones that would have been here
	// have to leave instead.
	for _, o := range p.tasks {
		if o != t && !o.stopped && !o.over && o.also == t.node && o.node != t.node {
			p.out.Would.Moved++
			p.wouldB.load[o.also] -= o.cpu
			o.also = o.node // and are from then on where they were
			p.wouldB.load[o.also] += o.cpu
		}
	}
}
