package control_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// TestRandomSlots lets anything happen to a stateful and a global service, and
// checks that no task of a slot is started while another may run, that none of a
// global service is where it does not belong, and that both come true in the
// end.
func TestRandomSlots(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newSim(t)
		s.place = newScheduler(t)
		s.lead()
		broken := ""
		s.planned = func(p control.Plan) { broken = firstOf(broken, s.misplaced(p)) }
		h := &history{rt: rt, s: s, nodes: []string{"n1", "n2", "n3"}}
		for i, n := range h.nodes {
			h.zoned(n, []string{"eu", "eu", "us"}[i])
		}
		s.apply("s", spec{Replicas: 2, Image: "v1", Stateful: &control.Stateful{}})
		s.apply("g", spec{Global: true, Image: "v1"})
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			h.slotStep()
			s.plan()
			s.forgetStatuses()
			if broken != "" {
				rt.Fatalf("%s\n%s", broken, strings.Join(s.log, "\n"))
			}
		}
		h.calm()
		if broken != "" {
			rt.Fatalf("%s\n%s", broken, strings.Join(s.log, "\n"))
		}
	})
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// zoned is a node that joins or changes its zone.
func (h *history) zoned(id, zone string) {
	h.s.commit(store.Put(record.Key(record.Nodes, id), marshal(h.s.t, record.Node{Node: scheduler.Node{
		ID: id, Ready: true, Capacity: scheduler.Resources{Memory: 10_000}, Labels: map[string]string{"zone": zone},
	}})), store.Put(record.Key(record.Alive, id), nil))
}

func (h *history) slotStep() {
	s, rt := h.s, h.rt
	tasks := s.tasks("")
	kinds := []string{"apply s", "apply g", "time", "time", "node", "zone", "leader"}
	if len(tasks) > 0 {
		kinds = append(kinds, "task", "task", "task", "task", "all ready")
	}
	update := control.Update{Monitor: time.Second, ProgressDeadline: time.Minute, StopFirst: rapid.Bool().Draw(rt, "stop first"),
		OnFailure: rapid.SampledFrom([]control.Action{control.Pause, control.RollBack, control.Continue}).Draw(rt, "on failure")}
	image := rapid.SampledFrom([]string{"v1", "v2", "v3"}).Draw(rt, "image")
	switch kind := rapid.SampledFrom(kinds).Draw(rt, "what"); kind {
	case "apply s":
		sp := spec{Replicas: rapid.IntRange(0, 4).Draw(rt, "replicas"), Image: image, Update: update, Stateful: &control.Stateful{
			Parallel: rapid.Bool().Draw(rt, "parallel"), Partition: rapid.IntRange(0, 2).Draw(rt, "partition"),
		}, LostAfter: rapid.SampledFrom(patiences).Draw(rt, "lost after"), KeepOriginal: rapid.Bool().Draw(rt, "keep original")}
		s.printf("> apply s %+v %+v", sp, *sp.Stateful)
		s.apply("s", sp)
	case "apply g":
		sp := spec{Global: true, Image: image, Update: update, Constraint: rapid.SampledFrom([]string{"", "node.labels.zone == eu"}).Draw(rt, "constraint")}
		s.printf("> apply g %+v", sp)
		s.apply("g", sp)
	case "time":
		d := time.Duration(rapid.SampledFrom([]int{1, 2, 10, 40}).Draw(rt, "seconds")) * time.Second
		s.printf("> wait %v", d)
		s.pass(d)
	case "leader":
		s.printf("> leader")
		s.lead()
	case "node":
		h.node(rapid.SampledFrom(h.nodes).Draw(rt, "node"))
	case "zone":
		id, zone := rapid.SampledFrom(h.nodes).Draw(rt, "node"), rapid.SampledFrom([]string{"eu", "us"}).Draw(rt, "zone")
		s.printf("> %s is in %s", id, zone)
		h.zoned(id, zone)
	case "all ready":
		for _, t := range tasks {
			if st, _ := s.status(t); !st.State.Final() && t.Stop == nil && st.State != record.Ready {
				s.report(t, record.Ready, nil)
			}
		}
	case "task":
		h.task(rapid.SampledFrom(tasks).Draw(rt, "task"))
	}
}

// misplaced says what is wrong with the tasks that a plan starts.
func (s *sim) misplaced(p control.Plan) string {
	for _, w := range p.Writes {
		if _, had := s.kv[w.Key]; had || w.Delete || !strings.HasPrefix(w.Key, record.Tasks) {
			continue
		}
		var t record.Task
		unmarshal(s.t, w.Value, &t)
		if t.Service == "g" {
			var n record.Node
			unmarshal(s.t, s.kv[record.Key(record.Nodes, t.Node)].Value, &n)
			if c := s.specs["g"].Constraint; t.Hash == s.specs["g"].Image && c != "" && n.Labels["zone"] != "eu" {
				return fmt.Sprintf("%s is started on %s, which is in %s", s.alias(t.ID), t.Node, n.Labels["zone"])
			}
			continue
		}
		if t.Slot >= s.specs["s"].Replicas || t.Epoch == 0 {
			return fmt.Sprintf("%s is started, of %d slots, with epoch %d", s.alias(t.ID), s.specs["s"].Replicas, t.Epoch)
		}
		for _, o := range s.tasks("s") {
			st, _ := s.status(o)
			_, known := s.kv[record.Key(record.Nodes, o.Node)]
			if o.Slot == t.Slot && known && !st.State.Final() {
				return fmt.Sprintf("%s is started while %s on %s has not stopped", s.alias(t.ID), s.alias(o.ID), o.Node)
			}
			if o.Slot == t.Slot && o.Epoch >= t.Epoch {
				return fmt.Sprintf("%s has epoch %d, not above %d of %s", s.alias(t.ID), t.Epoch, o.Epoch, s.alias(o.ID))
			}
		}
	}
	return ""
}

// calm checks that both services come true in a kind world.
func (h *history) calm() {
	s, rt := h.s, h.rt
	s.printf("> calm")
	for _, id := range h.nodes {
		h.zoned(id, "eu")
		s.commit(store.Delete(record.Key(record.NodeSpecs, id)))
	}
	last := s.specs["s"]
	st := *last.Stateful
	st.Partition = 0
	last.Stateful = &st
	s.apply("s", last)
	s.apply("g", s.specs["g"])
	for range 300 {
		for _, t := range s.tasks("") {
			state, _ := s.status(t)
			switch {
			case state.State.Final():
			case t.Stop != nil:
				s.report(t, record.Stopped, nil)
			case state.State != record.Ready:
				s.report(t, record.Ready, nil)
			}
		}
		s.pass(time.Second)
		s.forgetStatuses()
	}
	for name, want := range map[string]int{"s": last.Replicas, "g": len(h.nodes)} {
		if r := s.rollout(name); r.State != record.RolloutCompleted || r.Ready != want || r.Updated != want {
			rt.Fatalf("in a kind world the rollout of %s is %+v, want completed with %d\n%s", name, r, want, strings.Join(s.log, "\n"))
		}
		var at []string
		for _, t := range s.tasks(name) {
			if !s.serves(t) || t.Hash != s.specs[name].Image {
				rt.Fatalf("in a kind world %s of %s is left\n%s", s.alias(t.ID), t.Hash, strings.Join(s.log, "\n"))
			}
			if name == "g" {
				at = append(at, t.Node)
			} else {
				at = append(at, fmt.Sprint(t.Slot))
			}
		}
		slices.Sort(at)
		if len(slices.Compact(at)) != want {
			rt.Fatalf("in a kind world the tasks of %s are at %v, want each of %d once", name, at, want)
		}
	}
}
