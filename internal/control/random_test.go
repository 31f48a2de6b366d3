package control_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// TestRandomHistories lets anything happen to a few services on a few nodes, in
// any order, and checks that every plan keeps its promises, that rollouts end,
// and that in the end, when the world is kind again, all specs are true.
func TestRandomHistories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newSim(t)
		s.place = newScheduler(t)
		s.lead()
		p := watch(s)
		nodes := []string{"n1", "n2", "n3"}
		for _, n := range nodes {
			s.node(n, 600)
		}
		h := &history{rt: rt, s: s, nodes: nodes}
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			h.step()
			s.plan()
			s.forgetStatuses()
			if p.broken != "" {
				rt.Fatalf("%s\n%s", p.broken, strings.Join(s.log, "\n"))
			}
		}
		h.kindness()
		s.forgetStatuses()
		if p.broken != "" {
			rt.Fatalf("%s\n%s", p.broken, strings.Join(s.log, "\n"))
		}
	})
}

type history struct {
	rt    *rapid.T
	s     *sim
	nodes []string
}

var services = []string{"a", "b"}

// step lets one thing happen.
func (h *history) step() {
	s, rt := h.s, h.rt
	tasks := s.tasks("")
	kinds := []string{"apply", "time", "time", "node", "leader", "remove", "directive", "directive"}
	if len(tasks) > 0 {
		kinds = append(kinds, "task", "task", "task", "task", "all ready")
	}
	switch kind := rapid.SampledFrom(kinds).Draw(rt, "what"); kind {
	case "apply":
		name := rapid.SampledFrom(services).Draw(rt, "service")
		sp := spec{
			Replicas: rapid.IntRange(0, 6).Draw(rt, "replicas"),
			Image:    rapid.SampledFrom([]string{"v1", "v2", "v3"}).Draw(rt, "image"),
			Memory:   100,
			Update: control.Update{
				Parallelism:    rapid.SampledFrom([]control.Amount{0, 1, 2, 3, -50}).Draw(rt, "parallelism"),
				MaxSurge:       rapid.SampledFrom([]control.Amount{0, 0, 1, 2, -100}).Draw(rt, "surge"),
				MaxUnavailable: rapid.SampledFrom([]control.Amount{0, 0, 1, -30}).Draw(rt, "unavailable"),
				StopFirst:      rapid.Bool().Draw(rt, "stop first"),
				Strategy:       rapid.SampledFrom([]record.Strategy{record.Rolling, record.Canary, record.BlueGreen}).Draw(rt, "strategy"),
				Canaries:       rapid.SampledFrom([]control.Amount{0, 2, -50}).Draw(rt, "canaries"),
				Manual:         rapid.Bool().Draw(rt, "manual"),
				Bake:           rapid.SampledFrom([]time.Duration{0, 3 * time.Second}).Draw(rt, "bake"),
				Monitor:        time.Second, ProgressDeadline: 20 * time.Second,
				MaxFailures: rapid.IntRange(1, 4).Draw(rt, "failures"),
				OnFailure:   rapid.SampledFrom([]control.Action{control.Pause, control.RollBack, control.Continue}).Draw(rt, "on failure"),
			},
			LostAfter:    rapid.SampledFrom(patiences).Draw(rt, "lost after"),
			KeepOriginal: rapid.Bool().Draw(rt, "keep original"),
		}
		s.printf("> apply %s %+v", name, sp)
		s.apply(name, sp)
	case "time":
		d := time.Duration(rapid.SampledFrom([]int{1, 2, 10, 40}).Draw(rt, "seconds")) * time.Second
		s.printf("> wait %v", d)
		s.pass(d)
	case "directive":
		name := rapid.SampledFrom(services).Draw(rt, "service")
		action := rapid.SampledFrom([]record.DirectiveAction{record.Promote, record.Promote, record.Abort}).Draw(rt, "action")
		s.printf("> %s %s", action, name)
		s.direct(name, action)
	case "remove":
		name := rapid.SampledFrom(services).Draw(rt, "service")
		s.printf("> remove %s", name)
		s.commit(store.Delete(record.Key(record.Services, "default", name)))
		delete(s.specs, name)
	case "leader":
		s.printf("> leader")
		s.lead()
	case "node":
		h.node(rapid.SampledFrom(h.nodes).Draw(rt, "node"))
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

func (h *history) node(id string) {
	s := h.s
	alive, known := record.Key(record.Alive, id), record.Key(record.Nodes, id)
	what := rapid.SampledFrom([]string{"silent", "returns", "drain", "cordon", "use", "deleted"}).Draw(h.rt, "change")
	s.printf("> %s %s", what, id)
	switch what {
	case "silent":
		s.commit(store.Delete(alive))
	case "returns":
		if s.kv[known].Key == "" {
			s.node(id, 600)
			return
		}
		s.commit(store.Put(alive, nil))
	case "deleted": // an administrator's act, on a machine that is gone
		s.commit(store.Delete(alive), store.Delete(known))
		for _, t := range s.tasks("") {
			if t.Node == id {
				s.commit(store.Delete(record.Key(record.Statuses, id, t.ID)))
			}
		}
	default:
		s.commit(store.Put(record.Key(record.NodeSpecs, id), marshal(s.t, record.NodeSpec{
			Drain: what == "drain", Cordoned: what != "use",
		})))
	}
}

// task has an agent say something that can be true.
func (h *history) task(t record.Task) {
	s := h.s
	st, _ := s.status(t)
	if _, alive := s.kv[record.Key(record.Alive, t.Node)]; !alive || st.State.Final() {
		return
	}
	states := []record.State{record.Starting, record.Running, record.Ready, record.Failed, record.Completed}
	if t.Stop != nil {
		states = []record.State{record.Stopping, record.Stopped, record.Failed}
	}
	state := rapid.SampledFrom(states).Draw(h.rt, "state")
	s.printf("> %s %s", s.alias(t.ID), state)
	var f *record.Failure
	if state == record.Failed {
		f = &record.Failure{Kind: record.FailedExit, Message: "exit 1", Permanent: rapid.Bool().Draw(h.rt, "permanent")}
	}
	s.report(t, state, f)
}

// kindness checks that all rollouts end when nothing more happens, and that all
// specs become true when they are applied again and nothing goes wrong.
func (h *history) kindness() {
	s, rt := h.s, h.rt
	s.printf("> nothing")
	s.pass(30 * time.Minute)
	for name := range s.specs {
		r := s.rollout(name)
		if r.Current().State == record.Progressing && r.Phase != record.PhaseWaiting || r.Spec != s.kv[record.Key(record.Services, "default", name)].Revision {
			rt.Fatalf("after 30 minutes in which nothing happened the rollout of %s is %+v", name, r)
		}
	}
	for _, id := range h.nodes {
		s.node(id, 10_000)
		s.commit(store.Delete(record.Key(record.NodeSpecs, id)))
	}
	for _, name := range services {
		if sp, ok := s.specs[name]; ok {
			s.apply(name, sp)
		}
	}
	for range 200 {
		for _, t := range s.tasks("") {
			st, _ := s.status(t)
			switch {
			case st.State.Final():
			case t.Stop != nil:
				s.report(t, record.Stopped, nil)
			case st.State != record.Ready:
				s.report(t, record.Ready, nil)
			}
		}
		for name := range s.specs {
			if s.rollout(name).Phase == record.PhaseWaiting {
				s.direct(name, record.Promote)
			}
		}
		s.pass(time.Second)
		s.forgetStatuses()
	}
	for _, name := range services {
		sp, applied := s.specs[name]
		r := s.rollout(name)
		if applied && r.State != record.RolloutCompleted {
			rt.Fatalf("in a kind world the rollout of %s is %+v, want completed\n%s", name, r, strings.Join(s.log, "\n"))
		}
		if len(r.Held) > 0 {
			rt.Fatalf("in a kind world %v of %s take no traffic", r.Held, name)
		}
		running := map[string]int{}
		for _, t := range s.tasks(name) {
			running[t.Hash]++
			if !s.serves(t) {
				rt.Fatalf("in a kind world %s is left, and does not serve", s.alias(t.ID))
			}
		}
		want := map[string]int{}
		if applied && sp.Replicas > 0 {
			want[sp.Image] = sp.Replicas
		}
		if fmt.Sprint(running) != fmt.Sprint(want) {
			rt.Fatalf("in a kind world the tasks of %s are %v, want %v", name, running, want)
		}
	}
}

// forgetStatuses is what agents do once the record of a task is gone.
func (s *sim) forgetStatuses() {
	s.t.Helper()
	for key := range s.kv {
		if task, ok := strings.CutPrefix(key, record.Statuses); ok && s.kv[record.Tasks+task].Key == "" {
			s.commit(store.Delete(key))
		}
	}
	s.plan()
}
