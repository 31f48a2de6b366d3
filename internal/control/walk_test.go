package control_test

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
)

// With 2, TestWalk visits 126,000 states in place of 12,000, in a minute or two on a
// machine with nothing else to do.
var troubles = flag.Int("troubles", 1, "how often on one way of TestWalk a task may fail or get unready")

// TestWalk takes a rolling update through every order in which its tasks can
// get ready, lose that, fail, and stop, and time can pass, and in some walks a
// third revision be applied at any moment. In each state that can be reached it
// checks the promises, that a new leader finds nothing to do, and that the
// rollout ends if nothing more happens. States that differ only in what can not
// matter are visited once.
func TestWalk(t *testing.T) {
	for _, w := range []walk{
		{replicas: 1, parallelism: 1},
		{replicas: 1, parallelism: 1, stopFirst: true, third: true},
		{replicas: 2, parallelism: 1, third: true},
		{replicas: 2, parallelism: 1, stopFirst: true, third: true},
		{replicas: 3, parallelism: 1},
		{replicas: 3, parallelism: 1, stopFirst: true},
		{replicas: 3, parallelism: 2},
		{replicas: 3, parallelism: 2, surge: 1, unavailable: 1},
		{replicas: 3, parallelism: 2, stopFirst: true},
		{replicas: 1, parallelism: 1, onFailure: control.RollBack},
		{replicas: 1, parallelism: 1, stopFirst: true, third: true, onFailure: control.RollBack},
		{replicas: 2, parallelism: 1, onFailure: control.RollBack},
		{replicas: 2, parallelism: 1, third: true, onFailure: control.RollBack, calm: true},
		{replicas: 2, parallelism: 1, stopFirst: true, onFailure: control.RollBack},
		{replicas: 2, parallelism: 2, stopFirst: true, onFailure: control.Continue},
		{replicas: 3, parallelism: 2, onFailure: control.RollBack, calm: true},
		{replicas: 3, parallelism: 2, stopFirst: true, onFailure: control.RollBack, calm: true},
	} {
		t.Run(fmt.Sprintf("%dby%d,stopfirst=%v,third=%v,%s", w.replicas, w.parallelism, w.stopFirst, w.third, w.onFailure), func(t *testing.T) {
			t.Parallel()
			w.troubles = *troubles
			if w.replicas == 1 {
				w.troubles += 2
			}
			if w.calm {
				w.troubles--
			}
			w.run(t)
		})
	}
}

type walk struct {
	replicas           int
	parallelism        control.Amount
	surge, unavailable control.Amount
	stopFirst, third   bool
	onFailure          control.Action
	troubles           int
	calm               bool // one trouble less, for what is large without it

	seen map[string]bool
	ends map[string]int
}

const (
	walkMonitor  = time.Second
	walkDeadline = 3 * time.Second
)

func (w *walk) spec(image string) spec {
	return spec{Replicas: w.replicas, Image: image, Update: control.Update{
		Parallelism: w.parallelism, MaxSurge: w.surge, MaxUnavailable: w.unavailable, StopFirst: w.stopFirst, Monitor: walkMonitor, ProgressDeadline: walkDeadline, MaxFailures: 2,
		OnFailure: w.onFailure,
	}}
}

func (w *walk) run(t *testing.T) {
	w.seen, w.ends = map[string]bool{}, map[string]int{}
	s := newSim(t)
	s.node("n1", 1000)
	s.node("n2", 1000)
	s.apply("web", w.spec("v1"))
	s.plan()
	for _, task := range s.tasks("web") {
		s.report(task, record.Ready, nil)
	}
	s.pass(walkMonitor)
	if r := s.rollout("web"); r.State != record.RolloutCompleted {
		t.Fatalf("v1 is %s before the walk begins", r.State)
	}
	s.apply("web", w.spec("v2"))
	s.plan()
	w.visit(t, s, nil, 0)
	t.Logf("%d states, %v", len(w.seen), w.ends)
	want := []string{"completed", "failed"}
	if w.onFailure == control.RollBack {
		want = []string{"completed", "rollback completed", "rollback failed"}
	}
	if got := slices.Sorted(maps.Keys(w.ends)); !slices.Equal(got, want) {
		t.Errorf("the walk came to the ends %v, want %v", w.ends, want)
	}
}

// action is something that can happen.
type action struct {
	name    string
	trouble int
	do      func(*sim)
}

func (w *walk) visit(t *testing.T, s *sim, path []string, troubles int) {
	key := fmt.Sprint(fingerprint(s), troubles)
	if w.seen[key] {
		return
	}
	w.seen[key] = true
	if len(w.seen) > 200_000 {
		t.Fatal("more than 200,000 states: something that cannot matter is told apart")
	}
	r := s.rollout("web")
	last := r.Current().State != record.Progressing && (!w.third || r.Hash == "v3")
	if last && r.Rollback != nil {
		w.ends["rollback "+string(r.Rollback.State)]++
	} else if last {
		w.ends[string(r.State)]++
	}
	check := func(f *sim, p *promises, what string) bool {
		if p.broken != "" {
			t.Errorf("%s\n%s\nafter %s\n%s", what, p.broken, strings.Join(path, ", "), strings.Join(f.log, "\n"))
		}
		return p.broken == ""
	}
	f := fork(s)
	p := watch(f)
	f.planned = func(plan control.Plan) {
		p.check(plan)
		if len(plan.Writes) > 0 {
			p.breaks("a new leader makes %d writes, want none: the old one was at rest", len(plan.Writes))
		}
	}
	f.lead()
	if !check(f, p, "leader") {
		return
	}
	f.planned = p.check
	p.ends("web", time.Minute)
	if !check(f, p, "end") || last {
		return
	}
	for _, a := range w.actions(s) {
		if troubles+a.trouble > w.troubles {
			continue
		}
		f := fork(s)
		p := watch(f)
		f.lead()
		a.do(f)
		f.plan()
		step := append(slices.Clone(path), a.name)
		if p.broken != "" {
			t.Errorf("%s\nafter %s\n%s", p.broken, strings.Join(step, ", "), strings.Join(f.log, "\n"))
			return
		}
		if w.visit(t, f, step, troubles+a.trouble); t.Failed() {
			return
		}
	}
}

// actions are what can happen in a state.
func (w *walk) actions(s *sim) []action {
	var out []action
	for _, task := range s.tasks("web") {
		st, _ := s.status(task)
		name := s.alias(task.ID)
		say := func(state record.State, trouble int, f *record.Failure) {
			out = append(out, action{fmt.Sprintf("%s %s", name, state), trouble, func(s *sim) { s.report(task, state, f) }})
		}
		if st.State.Final() {
			continue
		}
		if task.Stop != nil {
			say(record.Stopped, 0, nil)
			continue
		}
		if st.State == record.Ready {
			say(record.Running, 1, nil)
		} else {
			say(record.Ready, 0, nil)
		}
		say(record.Failed, 1, &record.Failure{Kind: record.FailedExit, Message: "exit 1"})
	}
	if !s.wake.IsZero() {
		out = append(out, action{"time", 0, func(s *sim) { s.pass(s.wake.Sub(s.now)) }})
	}
	if w.third && s.specs["web"].Image == "v2" {
		out = append(out, action{"apply v3", 0, func(s *sim) { s.apply("web", w.spec("v3")) }})
	}
	return out
}

// fork returns a copy without a planner; lead gives it one.
func fork(s *sim) *sim {
	f := newSim(s.t)
	f.kv, f.rev, f.now, f.wake = maps.Clone(s.kv), s.rev, s.now, s.wake
	f.specs, f.revs, f.history = maps.Clone(s.specs), maps.Clone(s.revs), maps.Clone(s.history)
	f.aliases, f.counts = maps.Clone(s.aliases), maps.Clone(s.counts)
	f.log = slices.Clone(s.log)
	return f
}

// fingerprint is what of a state can matter for what comes.
func fingerprint(s *sim) string {
	var b strings.Builder
	r := s.rollout("web")
	a := r.Current()
	fmt.Fprintf(&b, "%s %s %s %s %s %s %d %d %d %v", s.specs["web"].Image, r.State, r.Reason, a.Hash, a.State, a.Reason, a.Failures, a.Best, a.Settled, s.now.Sub(a.Progressed))
	for _, c := range r.Completed {
		fmt.Fprintf(&b, " %s", c.Hash)
	}
	for _, n := range slices.Sorted(maps.Keys(r.Slots)) {
		sl := r.Slots[n]
		_, kept := s.kv[record.Key(record.Tasks, sl.Node, sl.Task)]
		fmt.Fprintf(&b, " [%d %d %v %v]", n, sl.Failures, min(s.now.Sub(sl.Last), 2*time.Second), kept)
	}
	for _, t := range s.tasks("web") {
		st, _ := s.status(t)
		age := time.Duration(-1)
		if st.State == record.Ready {
			age = min(s.now.Sub(st.Ready), walkMonitor)
		}
		fmt.Fprintf(&b, " %d %s %v %s %v %v", t.Slot, t.Hash, t.Stop != nil, st.State, age, st.Ready.IsZero())
	}
	return b.String()
}
