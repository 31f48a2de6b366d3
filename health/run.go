package health

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"
)

// StuckError are targets whose checkers had not returned when [Monitor.Run]
// ended, although their context had. Each still holds one goroutine.
type StuckError struct {
	Targets []string // sorted
}

func (e *StuckError) Error() string {
	return fmt.Sprintf("the probes of %q did not return when their context ended; their checkers leak", e.Targets)
}

// Run probes until ctx ends, then cancels the probes that run, waits for them
// and returns nil, or a [*StuckError] when some do not return. No result is
// reported after it. It can be called once; a second call is [ErrStopped].
func (m *Monitor) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.mu.Lock()
	if m.phase != before {
		m.mu.Unlock()
		return fmt.Errorf("run the monitor a second time: %w", ErrStopped)
	}
	m.phase, m.ctx = running, ctx
	m.mu.Unlock()

	timer := time.NewTimer(math.MaxInt64)
	defer timer.Stop()
	for {
		timer.Reset(m.advance())
		select {
		case <-ctx.Done():
			return m.stop()
		case <-m.wake:
		case <-timer.C:
		}
	}
}

// advance does what is due and returns the time until the next.
func (m *Monitor) advance() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	for len(m.heap) > 0 {
		e := m.heap[0]
		if e.due > now {
			return e.due - now
		}
		m.heap.remove(e)
		switch {
		case e.probe == nil:
			m.ready.push(e)
			m.startReady()
		default: // it overran, now or long ago
			m.abandon(e.probe)
			m.startReady()
			m.active++
			go m.overrun(e, e.probe)
		}
	}
	return math.MaxInt64
}

// startReady starts the probes that wait, while there are places. m.mu is
// held.
func (m *Monitor) startReady() {
	for m.phase == running && m.places < m.concurrency {
		e := m.ready.pop()
		if e == nil {
			return
		}
		if e.removed {
			continue
		}
		m.places++
		ctx, cancel := context.WithTimeout(m.ctx, e.check.Timeout)
		now := m.now()
		e.probe = &probe{id: e.ID, began: now, cancel: cancel}
		e.due = now + e.check.Timeout + grace
		m.schedule(e)
		m.active++
		go m.run(ctx, e, e.probe)
	}
}

// abandon leaves p, which has not returned, to itself. m.mu is held.
func (m *Monitor) abandon(p *probe) {
	m.giveUp(p)
	m.hung[p] = struct{}{}
}

// giveUp gives up p's place. m.mu is held.
func (m *Monitor) giveUp(p *probe) {
	if !p.abandoned {
		p.abandoned = true
		m.places--
	}
}

// leave is the end of a goroutine of m. m.mu is held.
func (m *Monitor) leave() {
	if m.active--; m.active == 0 && m.phase == stopped {
		close(m.idle)
	}
}

// run is the goroutine of one probe.
func (m *Monitor) run(ctx context.Context, e *target, p *probe) {
	reason := e.checker.Check(ctx, e.Target, e.check)
	p.cancel()

	m.mu.Lock()
	delete(m.hung, p)
	if p.abandoned || m.phase == stopped {
		e.probe = nil
		m.leave()
		m.mu.Unlock()
		return
	}
	m.heap.remove(e)
	result, report := m.conclude(e, reason)
	m.mu.Unlock()

	if report {
		m.send(e, result)
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	e.probe = nil
	m.giveUp(p)
	delete(m.hung, p) // a Remove during the report put it there
	m.leave()
	if !e.removed {
		m.again(e)
	}
	m.startReady()
}

// again plans the next probe of e, whose last has just ended. m.mu is held.
func (m *Monitor) again(e *target) {
	e.asked = m.now()
	f, ok := e.checker.(Foreteller)
	if !ok || !e.settled() {
		e.due = e.asked + e.check.Interval
		m.schedule(e)
		return
	}
	e.stop = f.Await(e.Target, e.check, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if e.removed || e.stop == nil || m.phase == stopped {
			return
		}
		e.stop = nil
		missed := (m.now() - e.asked) / e.check.Interval
		e.due = e.asked + (missed+1)*e.check.Interval
		m.schedule(e)
	})
}

// overrun counts a probe that is due while p still hangs, or has just been
// abandoned, as failed.
func (m *Monitor) overrun(e *target, p *probe) {
	m.mu.Lock()
	if e.removed || m.phase == stopped {
		m.leave()
		m.mu.Unlock()
		return
	}
	result, report := m.conclude(e, fmt.Errorf("%w of %v; it began %v ago",
		ErrOverrun, e.check.Timeout, (m.now()-p.began).Round(time.Millisecond)))
	m.mu.Unlock()

	if report {
		m.send(e, result)
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	m.leave()
	if !e.removed {
		e.due = m.now() + e.check.Interval
		m.schedule(e)
	}
}

// conclude takes the outcome of one probe. m.mu is held.
func (m *Monitor) conclude(e *target, reason error) (r Result, changed bool) {
	e.probed++
	changed = e.observe(reason == nil, e.check.Failures, e.check.Successes)
	if changed {
		e.last = Result{Target: e.ID, Status: e.current(), At: time.Now(), Reason: reason, Probes: e.probed}
	}
	return e.last, changed
}

// send reports r unless the target was removed or the monitor stopped. Only
// one report of a target is made at a time, since a target has one probe.
func (m *Monitor) send(e *target, r Result) {
	m.mu.Lock()
	silent := e.removed || m.phase == stopped
	if !silent {
		e.reporting = true
		m.reports++
	}
	m.mu.Unlock()
	if silent {
		return
	}
	defer func() {
		m.mu.Lock()
		e.reporting = false
		m.reports--
		m.mu.Unlock()
		m.reported.Broadcast()
	}()
	if m.report != nil {
		m.report(r)
	}
	if e.report != nil {
		e.report(r)
	}
}

// stop waits for what runs. The probes' contexts have ended.
func (m *Monitor) stop() error {
	m.mu.Lock()
	m.phase = stopped
	if m.active == 0 {
		close(m.idle)
	}
	for m.reports > 0 { // from here on none begins
		m.reported.Wait()
	}
	m.mu.Unlock()

	patience := time.NewTimer(grace)
	defer patience.Stop()
	select {
	case <-m.idle:
		return nil
	case <-patience.C:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.active == 0 {
		return nil
	}
	var stuck []string
	for p := range m.hung {
		stuck = append(stuck, p.id)
	}
	for id, e := range m.targets {
		if e.probe != nil && !e.probe.abandoned {
			stuck = append(stuck, id)
		}
	}
	slices.Sort(stuck)
	return &StuckError{Targets: slices.Compact(stuck)}
}
