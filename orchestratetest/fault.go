package orchestratetest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// The faults of machines. One that lasts For is over after that; For 0 is for
// ever.

// NodeDies switches a machine off, and on again after For: its containers are
// gone, and its disk is not.
type NodeDies struct {
	Node string
	For  time.Duration
}

// NodeHangs has a node's agent do nothing for a while, nor renew its lease. Its
// containers run on.
type NodeHangs struct {
	Node string
	For  time.Duration
}

// NodeSlow has everything that a node's agent does take longer, by By.
type NodeSlow struct {
	Node string
	By   time.Duration
	For  time.Duration
}

// AgentRestarts kills a node's agent and starts it again after For, by default
// at once. Its containers run on.
type AgentRestarts struct {
	Node string
	For  time.Duration
}

// Partition cuts nodes off from the store.
type Partition struct {
	Nodes []string
	For   time.Duration
}

// ClockSkew sets the clock of a node, or of a control plane such as "control1", ahead
// by By, or back, and has it run faster by PPM parts per million, or slower: one of
// 10,000 gains 36 s an hour, and less than half of 1,000,000 is possible. That shows in
// the times of all that its owner writes and reads; and, of a node, in how long its
// agent believes in a lease that is not renewed, and its machine holds what must not
// run twice. Other timers go by the clock that all have.
type ClockSkew struct {
	Node string
	By   time.Duration
	For  time.Duration
	PPM  int
}

// The faults of the store and of who leads.

// StoreSlow has each call into the store take longer, by By.
type StoreSlow struct{ By, For time.Duration }

// StoreConflicts has someone else be faster than a share, from 0 to 1, of the
// commits that have conditions. A moment before, the first key that such a commit
// wants unchanged is written again as it is, or, where that is the leader's, deleted:
// so the leader is deposed. The commit conflicts because of that, and not without a
// reason, as no store does. One that wants keys absent, or what its node alone
// writes unchanged, goes through.
type StoreConflicts struct {
	Share float64
	For   time.Duration
}

// StoreUnsure loses the answers to a share of the commits, from 0 to 1: they
// happen, and whoever made them does not know.
type StoreUnsure struct {
	Share float64
	For   time.Duration
}

// WatchLost has all watches of a node or of a control plane, such as "control1",
// fall behind what history the store keeps. Empty is whoever leads.
type WatchLost struct{ Of string }

// LeaderDies kills the control plane that leads, and starts it again after For,
// by default 10 s.
type LeaderDies struct{ For time.Duration }

// LeaderCut cuts the control plane that leads off from the store.
type LeaderCut struct{ For time.Duration }

// The faults of images and containers.

// PullSlow has each pull of an image that a node does not have take longer, by
// By; on one node, or on all when Node is empty.
type PullSlow struct {
	Node string
	By   time.Duration
	For  time.Duration
}

// PullFails has each pull of an image that a node does not have fail; of those
// that have Image in their reference, or of all.
type PullFails struct {
	Image string
	For   time.Duration
}

// ContainerCrashes ends the containers of one task of a service, NAME or
// NAMESPACE/NAME, with exit code 1.
type ContainerCrashes struct {
	Service string
	Slot    int
}

// ContainerLeaks has the containers of one task of a service use more and more
// memory, until the kernel kills them after After.
type ContainerLeaks struct {
	Service string
	Slot    int
	After   time.Duration
}

// NeverReady has all checks of a service's tasks fail: of one slot, or of all
// when Slot is less than 0. A service without checks does not notice.
type NeverReady struct {
	Service string
	Slot    int
	For     time.Duration
}

// weather is what faults make of the world. Guarded by world.mu.
type weather struct {
	storeSlow     time.Duration
	conflict      []share
	unsureAnswers []share
	pullSlow      map[string]time.Duration // by node; "" is all
	pullFails     map[string]int           // by what is in the reference
	neverReady    map[string]int           // by NS/NAME and slot
}

// share is one fault that concerns a share of calls; a pointer names it.
type share struct {
	of    *StoreConflicts
	or    *StoreUnsure
	share float64
}

func newWeather() weather {
	return weather{pullSlow: map[string]time.Duration{}, pullFails: map[string]int{}, neverReady: map[string]int{}}
}

func lasting(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return " for " + d.String()
}

// String is the fault in words.
func (f NodeDies) String() string { return f.Node + " dies" + lasting(f.For) }
func (f NodeDies) do(w *world) {
	m := w.byID[f.Node]
	w.fault(f, f.For, func() bool {
		if m == nil || m.off {
			return false
		}
		m.die()
		return true
	}, func() { w.must(m.boot()) })
}

// must notes a process that could not be started. mu is held.
func (w *world) must(err error) {
	if err != nil {
		w.broken = append(w.broken, err)
	}
}

// String is the fault in words.
func (f NodeHangs) String() string { return f.Node + " hangs" + lasting(f.For) }
func (f NodeHangs) do(w *world) {
	m := w.byID[f.Node]
	var done chan struct{}
	w.fault(f, f.For, func() bool {
		if m == nil || m.dead || m.hung {
			return false
		}
		done = m.done
		w.hang(m.actor)
		w.connect(m.actor)
		return true
	}, func() {
		if m.done == done && m.hung {
			w.unhang(m.actor)
			w.connect(m.actor)
		}
	})
}

// String is the fault in words.
func (f NodeSlow) String() string {
	return fmt.Sprintf("%s is slow by %v%s", f.Node, f.By, lasting(f.For))
}
func (f NodeSlow) do(w *world) {
	m := w.byID[f.Node]
	w.fault(f, f.For, func() bool {
		if m == nil {
			return false
		}
		m.lag += f.By
		return true
	}, func() { m.lag -= f.By })
}

// String is the fault in words.
func (f AgentRestarts) String() string {
	return "the agent of " + f.Node + " restarts" + lasting(f.For)
}
func (f AgentRestarts) do(w *world) {
	m := w.byID[f.Node]
	w.fault(f, max(f.For, 1), func() bool {
		if m == nil || m.dead {
			return false
		}
		m.kill()
		return true
	}, func() {
		if m.dead && !m.off {
			w.must(m.run())
		}
	})
}

// String is the fault in words.
func (f Partition) String() string {
	return strings.Join(f.Nodes, ", ") + " cannot reach the store" + lasting(f.For)
}
func (f Partition) do(w *world) {
	cut := map[*machine]chan struct{}{}
	w.fault(f, f.For, func() bool {
		for _, id := range f.Nodes {
			if m := w.byID[id]; m != nil && !m.dead && !m.cut {
				cut[m] = m.done
				m.cut = true
				w.connect(m.actor)
			}
		}
		return len(cut) > 0
	}, func() {
		for _, id := range f.Nodes {
			if m := w.byID[id]; m != nil && cut[m] != nil && m.done == cut[m] {
				w.heal(m.actor)
			}
		}
	})
}

// heal ends the partition of an actor. mu is held.
func (w *world) heal(a *actor) {
	a.cut = false
	w.connect(a)
	w.ring()
}

// String is the fault in words.
func (f ClockSkew) String() string {
	var wrong []string
	if f.By != 0 || f.PPM == 0 {
		wrong = append(wrong, fmt.Sprintf("is off by %v", f.By))
	}
	if f.PPM != 0 {
		wrong = append(wrong, fmt.Sprintf("runs faster by %d millionths", f.PPM))
	}
	return fmt.Sprintf("the clock of %s %s%s", f.Node, strings.Join(wrong, " and "), lasting(f.For))
}
func (f ClockSkew) do(w *world) {
	a := w.actorOf(f.Node)
	d := &drift{by: f.By, ppm: int64(f.PPM), since: time.Now()}
	w.fault(f, f.For, func() bool {
		if a == nil {
			return false
		}
		if rate := a.clock.rate() + d.ppm; rate <= -maxRate || rate >= maxRate {
			return false
		}
		a.clock = append(slices.Clone(a.clock), d)
		return true
	}, func() {
		a.clock = slices.DeleteFunc(slices.Clone(a.clock), func(o *drift) bool { return o == d })
		if len(a.clock) == 0 {
			a.clock = nil
		}
	})
}

// String is the fault in words.
func (f StoreSlow) String() string {
	return fmt.Sprintf("the store is slow by %v%s", f.By, lasting(f.For))
}
func (f StoreSlow) do(w *world) {
	w.fault(f, f.For, func() bool { w.weather.storeSlow += f.By; return true }, func() { w.weather.storeSlow -= f.By })
}

// String is the fault in words.
func (f StoreConflicts) String() string {
	return fmt.Sprintf("%.0f %% of conditional commits conflict%s", 100*f.Share, lasting(f.For))
}
func (f StoreConflicts) do(w *world) {
	w.fault(f, f.For, func() bool {
		w.weather.conflict = append(w.weather.conflict, share{of: &f, share: f.Share})
		return true
	},
		func() {
			w.weather.conflict = slices.DeleteFunc(w.weather.conflict, func(s share) bool { return s.of == &f })
		})
}

// String is the fault in words.
func (f StoreUnsure) String() string {
	return fmt.Sprintf("the answers to %.0f %% of commits get lost%s", 100*f.Share, lasting(f.For))
}
func (f StoreUnsure) do(w *world) {
	w.fault(f, f.For, func() bool {
		w.weather.unsureAnswers = append(w.weather.unsureAnswers, share{or: &f, share: f.Share})
		return true
	}, func() {
		w.weather.unsureAnswers = slices.DeleteFunc(w.weather.unsureAnswers, func(s share) bool { return s.or == &f })
	})
}

// String is the fault in words.
func (f WatchLost) String() string {
	return "watches of " + cmp.Or(f.Of, "the leader") + " fall behind"
}
func (f WatchLost) do(w *world) {
	w.fault(f, 0, func() bool {
		a := w.actorOf(cmp.Or(f.Of, w.view.leader))
		return a != nil && w.shared.loseWatches(a) > 0
	}, nil)
}

// actorOf is a node or a control plane by its ID, or nil. mu is held.
func (w *world) actorOf(id string) *actor {
	if m := w.byID[id]; m != nil {
		return m.actor
	}
	if p := w.plane(id); p != nil {
		return p.actor
	}
	return nil
}

func (w *world) plane(id string) *plane {
	for _, p := range w.planes {
		if p.id == id {
			return p
		}
	}
	return nil
}

// String is the fault in words.
func (f LeaderDies) String() string { return "the leader dies" + lasting(f.For) }
func (f LeaderDies) do(w *world) {
	p := w.plane(w.view.leader)
	w.fault(f, cmp.Or(f.For, 10*time.Second), func() bool {
		if p == nil || p.dead {
			return false
		}
		p.kill()
		return true
	}, func() { w.must(p.boot()) })
}

// String is the fault in words.
func (f LeaderCut) String() string { return "the leader cannot reach the store" + lasting(f.For) }
func (f LeaderCut) do(w *world) {
	p := w.plane(w.view.leader)
	w.fault(f, f.For, func() bool {
		if p == nil || p.dead || p.cut {
			return false
		}
		p.cut = true
		w.connect(p.actor)
		return true
	}, func() { w.heal(p.actor) })
}

// String is the fault in words.
func (f PullSlow) String() string {
	return fmt.Sprintf("pulls on %s take %v longer%s", cmp.Or(f.Node, "all nodes"), f.By, lasting(f.For))
}
func (f PullSlow) do(w *world) {
	w.fault(f, f.For, func() bool { w.weather.pullSlow[f.Node] += f.By; return true }, func() { w.weather.pullSlow[f.Node] -= f.By })
}

// String is the fault in words.
func (f PullFails) String() string {
	return "pulls of " + cmp.Or(f.Image, "all images") + " fail" + lasting(f.For)
}
func (f PullFails) do(w *world) {
	w.fault(f, f.For, func() bool { w.weather.pullFails[f.Image]++; return true }, func() { w.weather.pullFails[f.Image]-- })
}

// pullTime is how long a pull of an image takes that is not there. mu is held.
func (w *world) pullTime(m *machine) time.Duration {
	return w.scenario.Delays.Pull + w.weather.pullSlow[""] + w.weather.pullSlow[m.id]
}

var errRegistry = errors.New("orchestratetest: the registry does not answer")

// pullFails is how a pull fails, or nil. mu is held.
func (w *world) pullFails(_ *machine, ref string, missing bool) error {
	for _, part := range sortedKeys(w.weather.pullFails) {
		if missing && w.weather.pullFails[part] > 0 && strings.Contains(ref, part) {
			return errRegistry
		}
	}
	return nil
}

// victims are the running containers of one task of a service, and where. mu is
// held.
func (w *world) victims(service string, slot int) (*machine, []string) {
	s := w.view.Service(service)
	if s == nil {
		return nil, nil
	}
	var ids []string
	for _, t := range s.slots[slot] {
		if !t.Over() {
			ids = append(ids, t.ID)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		m := w.byID[s.Tasks[id].Node]
		if m == nil || m.off {
			continue
		}
		if running := m.runtime.running(id); len(running) > 0 {
			return m, running
		}
	}
	return nil, nil
}

// String is the fault in words.
func (f ContainerCrashes) String() string {
	return fmt.Sprintf("a container of %s.%d crashes", f.Service, f.Slot)
}
func (f ContainerCrashes) do(w *world) {
	w.fault(f, 0, func() bool {
		m, ids := w.victims(f.Service, f.Slot)
		for _, id := range ids {
			m.runtime.Crash(id, 1)
		}
		return len(ids) > 0
	}, nil)
}

// String is the fault in words.
func (f ContainerLeaks) String() string {
	return fmt.Sprintf("a container of %s.%d leaks memory until it is killed after %v", f.Service, f.Slot, f.After)
}
func (f ContainerLeaks) do(w *world) {
	var m *machine
	var ids []string
	w.fault(f, max(f.After, 1), func() bool {
		m, ids = w.victims(f.Service, f.Slot)
		return len(ids) > 0
	}, func() {
		for _, id := range ids {
			m.runtime.OOM(id)
		}
	})
}

// String is the fault in words.
func (f NeverReady) String() string {
	who := f.Service
	if f.Slot >= 0 {
		who = fmt.Sprintf("%s.%d", f.Service, f.Slot)
	}
	return "checks of " + who + " fail" + lasting(f.For)
}

var errNotReady = errors.New("orchestratetest: it is not ready")

func (f NeverReady) do(w *world) {
	key := qualified(f.Service)
	if f.Slot >= 0 {
		key = fmt.Sprintf("%s.%d", key, f.Slot)
	}
	set := func(by int) {
		w.weather.neverReady[key] += by
		for _, m := range w.machines {
			if !m.off {
				m.runtime.reconsider(qualified(f.Service))
			}
		}
	}
	w.fault(f, f.For, func() bool { set(1); return true }, func() { set(-1) })
}

// sick is what the checks of a task find. mu is held.
func (w *world) sick(service string, slot int) error {
	if w.weather.neverReady[service] > 0 || w.weather.neverReady[fmt.Sprintf("%s.%d", service, slot)] > 0 {
		return errNotReady
	}
	return nil
}

// running are the running containers of a task, sorted.
func (c *containers) running(task string) (ids []string) {
	for _, r := range c.all(map[string]string{runtime.LabelTask: task}) {
		if r.State == runtime.Running {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// conflicts and unsure say whether a call of an actor is one of the share that a
// fault concerns. It follows from the seed, the moment and who calls. mu is held.
func (w *world) conflicts(a *actor) bool { return w.hits(a, w.weather.conflict, "conflict") }
func (w *world) unsure(a *actor) bool    { return w.hits(a, w.weather.unsureAnswers, "unsure") }

func (w *world) hits(a *actor, shares []share, what string) bool {
	if a == w.app.actor && what == "unsure" {
		return false // an application that does not know whether it has applied is a test of that application
	}
	for _, s := range shares {
		a.calls++
		if draw(w.scenario.Seed, what, a.id, a.calls) < s.share {
			return true
		}
	}
	return false
}
