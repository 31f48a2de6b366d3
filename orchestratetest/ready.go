package orchestratetest

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// Ready returns all invariants of this package that hold of every fleet.
func Ready() []Invariant {
	return []Invariant{
		KeepsAvailable(), AtMostOnce(), NoOvercommit(), NoDeadEndpoints(), EveryApplyEnds(time.Hour), NothingLeaked(), UniqueAddresses(),
	}
}

// KeepsAvailable holds when no task that serves is told to stop, for an update,
// a rollback or a drain, while fewer others serve than its service is promised:
// its replicas less MaxUnavailable, or what its Budget says while it is drained.
// What fails by itself breaks no promise.
func KeepsAvailable() Invariant {
	return Invariant{Name: "never below minimum available", source: "orchestratetest.KeepsAvailable()", Check: func(v *View) error {
		for _, st := range v.stopped {
			s := v.services[st.Service]
			if s == nil || s.Mode == orchestrate.Global {
				continue
			}
			drained := st.Stopping == record.ReasonDrained
			if !drained && st.Stopping != record.ReasonUpdated && st.Stopping != record.ReasonRolled {
				continue
			}
			if serve, floor := v.serving(s), s.floor(drained); serve < floor {
				return fmt.Errorf("task %s was told to stop (%s) with %d of %s's %d replicas serving beside it, want %d", st.ID, st.Stopping, serve, s.Key, s.Desired, floor)
			}
		}
		return nil
	}}
}

// serving is how many replicas serve, or did until a moment ago: whoever decided
// may not have heard of it.
func (v *View) serving(s *Service) int {
	late := v.world.weather.storeSlow + v.world.scenario.Delays.Store + time.Millisecond
	slots := map[int]bool{}
	for _, t := range s.Tasks {
		if t.Stopping == "" && (t.Serves() || t.served && v.Since()-t.until <= late) {
			slots[t.Slot] = true
		}
	}
	return len(slots)
}

// floor is how many replicas are to serve while one is replaced.
func (s *Service) floor(drained bool) int {
	spec := s.Service.WithDefaults()
	n := s.Desired
	if drained && spec.Budget.MinAvailable != "" {
		return min(n, spec.Budget.MinAvailable.Of(n, true))
	}
	if drained && spec.Budget.MaxUnavailable != "" {
		return max(0, n-spec.Budget.MaxUnavailable.Of(n, false))
	}
	u := spec.Update
	missing := max(0, u.MaxUnavailable.Of(n, false))
	first := u.Order == orchestrate.StopFirst || spec.Stateful != nil || u.MaxSurge.Of(n, true) == 0
	for _, vol := range spec.Volumes {
		first = first || vol.Exclusive
	}
	if first || spec.HostNetwork && len(spec.Ports) > 0 {
		if missing == 0 {
			width := orchestrate.Amount(cmp.Or(string(u.Parallelism), "25%"))
			missing = max(1, width.Of(n, true))
		}
		missing = max(1, missing)
	}
	return max(0, n-missing)
}

// AtMostOnce holds when no slot of a stateful service runs on two machines at a
// time: really runs, whatever the records say.
func AtMostOnce() Invariant {
	return Invariant{Name: "at most once", source: "orchestratetest.AtMostOnce()", Check: func(v *View) error { return v.twice }}
}

// began is where and when a task was started last.
type began struct {
	machine *machine
	at      time.Duration
}

// starting is told of a container that is about to start. mu is held.
func (w *world) starting(m *machine, labels map[string]string) {
	t := w.view.Task(labels[runtime.LabelTask])
	if t == nil {
		return
	}
	s := w.view.services[t.Service]
	if s == nil || s.Stateful == nil {
		return
	}
	key := fmt.Sprintf("%s.%d", t.Service, t.Slot)
	for _, other := range sortedKeys(w.slots[key]) {
		begun := w.slots[key][other]
		at := begun.machine
		// One that was let in at this moment may not have begun yet.
		if other == t.ID || at.off || begun.at != w.since() && len(at.runtime.running(other)) == 0 {
			continue
		}
		if w.view.twice == nil {
			w.view.twice = fmt.Errorf("slot %s starts as %s on %s while %s runs on %s", key, t.ID, m.id, other, at.id)
		}
		w.view.touchedTasks[t.ID] = true
	}
	if w.slots[key] == nil {
		w.slots[key] = map[string]began{}
	}
	w.slots[key][t.ID] = began{m, w.since()}
}

// NoOvercommit holds when the tasks of no node were promised more than it has.
// Those that make room for what is more important do not count.
func NoOvercommit() Invariant {
	return Invariant{Name: "no overcommit", source: "orchestratetest.NoOvercommit()", Check: func(v *View) error {
		_, _, nodes := v.Touched()
		for _, n := range nodes {
			var cpu, memory int64
			for _, t := range n.Tasks {
				if t.Known && !t.Over() && t.Stopping != record.ReasonPreempted {
					cpu, memory = cpu+t.Request.CPU, memory+t.Request.Memory
				}
			}
			if cpu > n.Capacity.CPU || memory > n.Capacity.Memory {
				return fmt.Errorf("the %d tasks of node %s were promised %d CPU and %d bytes; it has %d and %d", len(n.Tasks), n.ID, cpu, memory, n.Capacity.CPU, n.Capacity.Memory)
			}
		}
		return nil
	}}
}

// NoDeadEndpoints holds when no endpoint is published of a task that has ended,
// or, for longer than the lease of its node lasts, of a machine that is off.
func NoDeadEndpoints() Invariant {
	return Invariant{Name: "no endpoint to a dead task", source: "orchestratetest.NoDeadEndpoints()", Check: func(v *View) error {
		for _, id := range sortedKeys(v.touchedTasks) {
			for _, e := range v.published[id] {
				if t := v.tasks[id]; t == nil || t.Over() {
					return fmt.Errorf("task %s has ended, and its endpoint %v on %s is published", id, e.Addresses, e.Node)
				}
			}
		}
		for _, id := range sortedKeys(v.touchedNodes) {
			m := v.world.byID[id]
			if m == nil || !m.off || v.Since()-m.since <= v.world.scenario.NodeTTL {
				continue
			}
			for _, key := range sortedKeys(v.endpoints) {
				if e := v.endpoints[key]; e.Node == id {
					return fmt.Errorf("node %s has been off for %v, and the endpoint %v of %s is published", id, v.Since()-m.since, e.Addresses, e.Task)
				}
			}
		}
		return nil
	}}
}

// EveryApplyEnds holds when each version of a service that is not superseded or
// removed comes to a result within a time. It is not for services whose updates
// wait for a call.
func EveryApplyEnds(within time.Duration) Invariant {
	const name = "every Apply ends in a result"
	return Invariant{Name: name, source: fmt.Sprintf("orchestratetest.EveryApplyEnds(%s)", goDuration(within)), state: func() func(*View) error {
		seen := map[string]int64{}
		return func(v *View) error {
			_, services, _ := v.Touched()
			for _, s := range services {
				spec := s.spec
				if s.Ended || seen[s.Key] == spec {
					continue
				}
				seen[s.Key] = spec
				v.world.after(within, -1, "applied "+s.Key, func() {
					if now := v.services[s.Key]; now == s && now.spec == spec && !now.Ended {
						v.world.violated(name, fmt.Errorf("service %s was applied %v ago, and its rollout goes on", s.Key, within))
					}
				})
			}
			return nil
		}
	}}
}

// NothingLeaked holds when, at the end, no machine that is well has a container,
// an attachment or a namespace of a task that it was not given, and the store has
// no endpoint without its task.
func NothingLeaked() Invariant {
	return Invariant{Name: "nothing leaked", source: "orchestratetest.NothingLeaked()", Check: func(*View) error { return nil }, end: func(v *View) error {
		for _, m := range v.world.machines {
			if m.off || m.dead || m.hung || m.cut {
				continue
			}
			owned := func(task string) bool { t := v.tasks[task]; return t != nil && t.Node == m.id }
			for _, c := range m.runtime.all(nil) {
				if task := c.Labels[runtime.LabelTask]; !owned(task) {
					return fmt.Errorf("node %s has container %s of task %q, which is none of its tasks", m.id, c.ID, task)
				}
			}
			for _, key := range sortedKeys(m.port.attached) {
				if a := m.port.attached[key]; !owned(a.Task) || v.tasks[a.Task].Over() {
					return fmt.Errorf("node %s has an interface on network %s for task %q, which has ended or is none of its tasks", m.id, a.Network, a.Task)
				}
			}
			for _, task := range sortedKeys(m.port.namespaces) {
				if !owned(task) || v.tasks[task].Over() {
					return fmt.Errorf("node %s has the network namespace of task %q, which has ended or is none of its tasks", m.id, task)
				}
			}
		}
		for _, key := range sortedKeys(v.endpoints) {
			if e := v.endpoints[key]; v.tasks[e.Task] == nil {
				return fmt.Errorf("the store has the endpoint %s, and no task of it", key)
			}
		}
		return nil
	}}
}

// UniqueAddresses holds when no two tasks that are ready, on nodes that are alive,
// have an address in common.
func UniqueAddresses() Invariant {
	return Invariant{Name: "every address unique", source: "orchestratetest.UniqueAddresses()", Check: func(v *View) error {
		tasks, _, _ := v.Touched()
		for _, t := range tasks {
			for _, network := range sortedKeys(t.Addresses) {
				for _, a := range t.Addresses[network] {
					for _, id := range sortedKeys(v.addresses[a]) {
						o := v.tasks[id]
						if id != t.ID && o != nil && v.stands(t) && v.stands(o) {
							return fmt.Errorf("tasks %s and %s have the address %v", t.ID, id, a)
						}
					}
				}
			}
		}
		return nil
	}}
}

// stands reports whether a task's status is of this life of its machine.
func (v *View) stands(t *Task) bool {
	n, m := v.nodes[t.Node], v.world.byID[t.Node]
	return t.State == orchestrate.Ready && n != nil && n.Alive && m != nil && !m.off && t.stated >= m.since
}

// AtLeast holds when a service, NAME or NAMESPACE/NAME, has had n tasks that serve
// at some time, and from then on.
func AtLeast(service string, n int) Invariant {
	name := fmt.Sprintf("%s has at least %d tasks that serve", service, n)
	inv := Invariant{Name: name, source: fmt.Sprintf("orchestratetest.AtLeast(%q, %d)", service, n)}
	inv.state = func() func(*View) error {
		return func(v *View) error {
			s := v.Service(service)
			if s == nil || !v.touchedServices[s.Key] && !v.world.reached[name] {
				return nil
			}
			serve := 0
			for _, t := range s.Tasks {
				if node := v.nodes[t.Node]; t.Serves() && node != nil && node.Alive {
					serve++
				}
			}
			if serve >= n {
				v.world.reached[name] = true
			} else if v.world.reached[name] {
				return fmt.Errorf("%d of %d", serve, n)
			}
			return nil
		}
	}
	inv.end = func(v *View) error {
		if !v.world.reached[name] {
			return errors.New("it never had them")
		}
		return nil
	}
	return inv
}
