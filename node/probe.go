package node

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// illness is a failed check that restarts a container.
type illness struct {
	kind   record.FailureKind
	reason string
}

// probe begins the checks of a container that runs. What they find is told by
// events, some of them before probe returns; task.mu must not be held. A
// container of an earlier agent that took traffic goes on doing so until a
// check says otherwise.
func (m *member) probe(id string, resume bool) {
	a, t := m.task.agent, m.task
	t.mu.Lock()
	target := health.Target{ID: id, Address: m.address()}
	t.mu.Unlock()
	if exec, ok := a.opts.Runtime.(runtime.Execer); ok {
		target.Exec = func(ctx context.Context, command []string) (int, []byte, error) {
			var out head
			code, err := exec.Exec(ctx, id, runtime.Exec{Args: command, Stdout: &out, Stderr: &out})
			return code, out.bytes(), err
		}
	}
	// Events of a container that has ended say nothing about its successor.
	update := func(change func()) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if m.id == id && m.running {
			change()
			t.evaluate()
		}
	}
	ill := make(chan illness, 1)
	m.ill = ill
	events := health.Events{
		Started: func() { update(func() { m.started = true }) },
		Ready: func(ready bool, reason error) {
			update(func() {
				m.ready = ready
				if ready {
					m.once.Do(func() { close(m.wasReady) })
				} else {
					t.status.Failure = &record.Failure{Kind: record.FailedReadiness, Container: m.spec.Name,
						Message: fmt.Sprintf("container %q: readiness check: %v", m.spec.Name, reason), At: time.Now().UTC()}
				}
			})
		},
		Dead: func(by health.Probe, reason error) {
			kind := record.FailedLiveness
			if by == health.Startup {
				kind = record.FailedStartup
			}
			ill <- illness{kind, fmt.Sprintf("%s check: %v", by, reason)}
		},
	}
	probes := health.Probes{Startup: m.spec.Startup, Readiness: m.spec.Readiness, Liveness: m.spec.Liveness}
	watch := a.monitor.Watch
	if resume {
		watch = a.monitor.Resume
	}
	w, err := watch(target, probes, events)
	if err != nil {
		// A checker is not registered, or the agent ends.
		ill <- illness{record.FailedStartup, err.Error()}
	}
	m.checks = w
	update(func() {}) // that it runs is news, also without an event
}

// head keeps the beginning of what a command writes: a reason, not a log. Both
// of its streams write to it.
type head struct {
	mu  sync.Mutex
	buf []byte
}

const headBytes = 4 << 10

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf = append(h.buf, p[:min(len(p), headBytes-len(h.buf))]...)
	return len(p), nil
}

func (h *head) bytes() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.buf
}

// unprobe ends the checks of the container. task.mu must not be held.
func (m *member) unprobe() {
	if m.checks != nil {
		m.checks.Stop()
		m.checks = nil
	}
}

// address is where the task's checks are directed at. task.mu is held.
func (m *member) address() netip.Addr {
	for _, n := range m.task.tmpl.Networks {
		for _, a := range m.task.status.Addresses[n] {
			return a
		}
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1}) // host network
}
