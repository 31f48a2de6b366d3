package node

import (
	"bytes"
	"context"
	"net/netip"
	"strings"

	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// The checks of a container, as they are named in the monitor behind the
// container's ID.
const (
	startup   = "/startup"
	readiness = "/readiness"
	liveness  = "/liveness"
)

// probe begins the checks of a container that runs. task.mu is held.
func (m *member) probe(id string, started bool) {
	m.started = started || m.spec.Startup == nil
	// One that takes traffic already, having been adopted, goes on until a
	// check says otherwise.
	m.ready = m.ready || m.started && m.spec.Readiness == nil
	if !m.started {
		m.addCheck(id, startup, m.spec.Startup)
	} else {
		m.addCheck(id, readiness, m.spec.Readiness)
		m.addCheck(id, liveness, m.spec.Liveness)
	}
	m.noteReady()
}

func (m *member) addCheck(id, kind string, check *health.Check) {
	if check == nil {
		return
	}
	a := m.task.agent
	target := health.Target{ID: id + kind, Address: m.address()}
	if exec, ok := a.opts.Runtime.(runtime.Execer); ok {
		target.Exec = func(ctx context.Context, command []string) (int, []byte, error) {
			var out bytes.Buffer
			code, err := exec.Exec(ctx, id, runtime.Exec{Args: command, Stdout: &out, Stderr: &out})
			return code, out.Bytes(), err
		}
	}
	a.probed.Store(target.ID, m)
	if err := a.monitor.Add(target, *check); err != nil {
		a.probed.Delete(target.ID)
		m.sicken(illness{id, record.FailedStartup, err.Error()})
	}
}

// unprobe ends the checks of a container. task.mu is not held: a result that
// is being reported may wait for it.
func (m *member) unprobe(id string) {
	for _, kind := range []string{startup, readiness, liveness} {
		m.task.agent.monitor.Remove(id + kind)
		m.task.agent.probed.Delete(id + kind)
	}
}

// address is where the task's checks are directed at.
func (m *member) address() netip.Addr {
	for _, n := range m.task.tmpl.Networks {
		for _, a := range m.task.status.Addresses[n] {
			return a
		}
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1}) // host network
}

func (m *member) noteReady() {
	if m.ready {
		m.once.Do(func() { close(m.wasReady) })
	}
}

// sicken asks the container's loop to restart it. A word about an earlier
// container that nobody has heard gives way. task.mu is held.
func (m *member) sicken(i illness) {
	select {
	case <-m.ill:
	default:
	}
	m.ill <- i
}

// checked is told of every change of a check's status.
func (a *Agent) checked(r health.Result) {
	v, ok := a.probed.Load(r.Target)
	if !ok {
		return
	}
	m := v.(*member)
	id, kind, _ := strings.Cut(r.Target, "/")
	kind = "/" + kind
	t := m.task
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.id != id || !m.running {
		return
	}
	reason := ""
	if r.Reason != nil {
		reason = r.Reason.Error()
	}
	switch {
	case kind == startup && r.Status == health.Healthy && !m.started:
		// It has done its work. It cannot be removed from within its report.
		t.agent.wg.Go(func() { t.agent.monitor.Remove(r.Target) })
		m.probe(id, true)
	case kind == startup && r.Status == health.Unhealthy && !m.started:
		m.sicken(illness{id, record.FailedStartup, "startup check: " + reason})
	case kind == liveness && r.Status == health.Unhealthy:
		m.sicken(illness{id, record.FailedLiveness, "liveness check: " + reason})
	case kind == readiness:
		m.ready = r.Status == health.Healthy
		m.noteReady()
		if !m.ready {
			t.status.Failure = &record.Failure{Kind: record.FailedReadiness, Container: m.spec.Name,
				Message: "container \"" + m.spec.Name + "\": readiness check: " + reason, At: r.At}
		}
	default:
		return
	}
	t.evaluate()
}
