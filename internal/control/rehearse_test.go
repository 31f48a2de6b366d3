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

// A state that leaves services at rest alone decides as one that looks at them
// all, and so does a copy of it, at any moment of any history: also when another
// copy has been played with.
func TestCopiesDecideTheSame(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newSim(t)
		s.place = newScheduler(t)
		s.lead()
		nodes := []string{"n1", "n2", "n3"}
		for _, n := range nodes {
			s.node(n, 600)
		}
		h := &history{rt: rt, s: s, nodes: nodes}
		decides := func(state *control.State) string {
			var b strings.Builder
			for _, w := range state.Plan(s.now).Writes {
				fmt.Fprintf(&b, "%s %s\n", w.Key, w.Value)
			}
			return b.String()
		}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			h.step()
			if rapid.Bool().Draw(rt, "planned") {
				s.plan()
			}
			loaded := func() *control.State {
				state := control.NewState(control.Config{Decode: decode, DecodeJob: decodeStoryJob, Place: s.place})
				state.Load(store.Snapshot{Revision: s.rev, Items: s.items()}, s.now)
				return state
			}
			all, rested := decides(loaded()), loaded()
			rested.Rest()
			if got := decides(rested); got != all {
				rt.Fatalf("with services at rest it decides\n%s\nwant\n%s\nafter\n%s", got, all, strings.Join(s.log, "\n"))
			}
			copied := s.state.Clone()
			s.state.Clone().Rehearse(nil, s.now, control.RehearseOptions{})
			wake := copied.Clone().Plan(s.now).Wake
			got := decides(copied)
			p := s.state.Clone().Plan(s.now)
			if !p.Wake.Equal(wake) {
				rt.Fatalf("a copy of a copy wakes at %v, want %v", wake, p.Wake)
			}
			s.planned = func(p control.Plan) {
				s.planned = nil
				var b strings.Builder
				for _, w := range p.Writes {
					fmt.Fprintf(&b, "%s %s\n", w.Key, w.Value)
				}
				if got != b.String() {
					rt.Fatalf("a copy decides\n%s\nwant\n%s\nafter\n%s", got, b.String(), strings.Join(s.log, "\n"))
				}
			}
			if rapid.Bool().Draw(rt, "compared") {
				s.plan()
			}
			s.planned = nil
		}
	})
}

// A rehearsal of what is going on already says how it will end, and leaves the
// store alone.
func TestRehearsalOfARolloutUnderWay(t *testing.T) {
	s := newSim(t)
	s.place = newScheduler(t)
	s.lead()
	for _, n := range []string{"n1", "n2"} {
		s.node(n, 1000)
	}
	update := control.Update{Parallelism: 1, Monitor: 10 * time.Second, ProgressDeadline: time.Minute}
	s.apply("web", spec{Replicas: 3, Image: "v1", Memory: 100, Update: update})
	s.plan()
	for _, task := range s.tasks("web") {
		s.report(task, record.Ready, nil)
	}
	s.pass(time.Minute)
	s.apply("web", spec{Replicas: 3, Image: "v2", Memory: 100, Update: update})
	s.plan()
	before := fmt.Sprint(s.items())

	state := control.NewState(control.Config{Decode: decode, Place: s.place})
	state.Load(store.Snapshot{Revision: s.rev, Items: s.items()}, s.now)
	r := state.Rehearse(nil, s.now, control.RehearseOptions{})
	if len(r.Services) != 1 || r.Services[0].Rollout.State != record.RolloutCompleted || r.Open {
		t.Fatalf("the rehearsal ends with %+v, want that web is completed", r.Services)
	}
	// One new task has a place already: its step was decided before.
	if n := len(r.Services[0].Steps); n < 2 || r.Took != 30*time.Second {
		t.Errorf("%d steps in %v, want at least two more, in three monitor windows of 10 s", n, r.Took)
	}
	if after := fmt.Sprint(s.items()); after != before {
		t.Error("the rehearsal changed the store")
	}
}
