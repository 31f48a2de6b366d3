package control

// Amount is a number of tasks or, when negative, a share of the replicas in
// percent: -25 is a quarter of them.
type Amount int

// of is what a means for n replicas. A share is rounded up or down.
func (a Amount) of(n int, up bool) int {
	switch {
	case a >= 0:
		return int(a)
	case up:
		return (n*int(-a) + 99) / 100
	}
	return n * int(-a) / 100
}

// defaultParallelism is a quarter of the replicas.
const defaultParallelism Amount = -25

// pace bounds how fast replicas change.
type pace struct {
	parallel    int // replicas that are being changed at a time
	surge       int // tasks beside others in their slots
	unavailable int // replicas that need not serve meanwhile
}

// pace resolves the amounts of u for n replicas. It always lets a rollout get
// on: where nothing may be too much, one may be missing.
func (u *Update) pace(n int) pace {
	p := pace{parallel: u.Parallelism.of(n, true), surge: u.MaxSurge.of(n, true), unavailable: u.MaxUnavailable.of(n, false)}
	width := p.parallel
	if u.Parallelism == 0 {
		width = defaultParallelism.of(n, true)
	}
	width = max(1, width)
	if u.StopFirst {
		p.surge = 0
		if u.MaxUnavailable == 0 {
			p.unavailable = width
		}
		p.unavailable = max(1, p.unavailable)
	} else {
		if u.MaxSurge == 0 {
			p.surge = width
		}
		p.surge = max(1, p.surge)
	}
	if u.Parallelism == 0 {
		p.parallel = p.surge + p.unavailable
	}
	p.parallel = max(1, p.parallel)
	return p
}

// pace is that of the view's workload.
func (v *view) pace() pace { return v.work.Update.pace(v.work.Replicas) }
