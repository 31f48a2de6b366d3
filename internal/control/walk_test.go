package control_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

var (
	troubles = flag.Int("troubles", 1, "how often on one way of TestWalk a task may fail or get unready")
	long     = os.Getenv("ORCHESTRATE_LONG") != ""
)

// TestWalk takes an update through every order in which its tasks can get ready,
// lose that, fail, and stop, and time can pass; in some walks a third revision is
// applied at any moment, or a canary or blue/green promoted or aborted. In each
// state that can be reached it checks the promises, and that a new leader finds
// nothing to do; and in the end, that from each state the rollout comes to an end
// or to a wait for a call if nothing more happens. States that differ only in
// what can not matter are visited once.
//
// With ORCHESTRATE_LONG set, the walks marked long are made too, and with
// -troubles=2 all go further: hours, for the largest.
func TestWalk(t *testing.T) {
	canary := walk{strategy: record.Canary, onFailure: control.RollBack}
	blueGreen := walk{strategy: record.BlueGreen, onFailure: control.RollBack}
	of := func(w walk, change func(*walk)) walk {
		change(&w)
		return w
	}
	for _, w := range []walk{
		{replicas: 1, parallelism: 1},
		{replicas: 1, parallelism: 1, stopFirst: true, third: true},
		{replicas: 2, parallelism: 1, third: true},
		{replicas: 2, parallelism: 1, stopFirst: true, third: true},
		{replicas: 3, parallelism: 1},
		{replicas: 3, parallelism: 1, stopFirst: true},
		{replicas: 3, parallelism: 2, long: true},
		{replicas: 2, surge: 1, unavailable: 1},
		{replicas: 3, surge: 1, unavailable: 1, long: true},
		{replicas: 3, parallelism: 2, stopFirst: true},
		{replicas: 4, parallelism: 1, calm: true},
		{replicas: 4, parallelism: 2, calm: true, long: true},
		{replicas: 4, parallelism: 2, stopFirst: true, calm: true},
		{replicas: 4, surge: 2, unavailable: 1, calm: true, long: true},
		{replicas: 4, parallelism: 2, long: true},
		{replicas: 1, parallelism: 1, onFailure: control.RollBack},
		{replicas: 1, parallelism: 1, stopFirst: true, third: true, onFailure: control.RollBack},
		{replicas: 2, parallelism: 1, onFailure: control.RollBack},
		{replicas: 2, parallelism: 1, abort: true, onFailure: control.RollBack, calm: true},
		{replicas: 2, parallelism: 1, third: true, onFailure: control.RollBack, calm: true},
		{replicas: 2, parallelism: 1, third: true, onFailure: control.RollBack, long: true},
		{replicas: 2, parallelism: 1, stopFirst: true, onFailure: control.RollBack},
		{replicas: 2, parallelism: 2, stopFirst: true, onFailure: control.Continue},
		{replicas: 3, parallelism: 2, onFailure: control.RollBack, calm: true},
		{replicas: 3, parallelism: 2, stopFirst: true, onFailure: control.RollBack, calm: true},

		{replicas: 1, parallelism: 1, resize: true, onFailure: control.RollBack},
		{replicas: 2, parallelism: 1, resize: true},
		{replicas: 2, parallelism: 1, resize: true, tight: true, onFailure: control.RollBack},
		{replicas: 2, parallelism: 1, resize: true, stopFirst: true, onFailure: control.RollBack},
		{replicas: 3, parallelism: 2, resize: true, onFailure: control.RollBack, calm: true},

		of(canary, func(w *walk) { w.replicas, w.promote, w.abort = 1, true, true }),
		of(canary, func(w *walk) { w.replicas, w.manual, w.promote, w.abort = 1, true, true, true }),
		of(canary, func(w *walk) { w.replicas = 2 }),
		of(canary, func(w *walk) { w.replicas, w.manual, w.promote, w.abort, w.calm = 2, true, true, true, true }),
		of(canary, func(w *walk) { w.replicas, w.third = 1, true }),
		of(canary, func(w *walk) { w.replicas, w.third, w.calm, w.long = 2, true, true, true }),
		of(canary, func(w *walk) { w.replicas, w.calm, w.promote = 3, true, true }),
		of(canary, func(w *walk) { w.replicas, w.onFailure, w.abort = 2, control.Pause, true }),
		of(canary, func(w *walk) { w.replicas, w.long = 3, true }),
		of(canary, func(w *walk) { w.replicas, w.long, w.calm, w.canaries = 4, true, true, 2 }),
		of(blueGreen, func(w *walk) { w.replicas, w.promote, w.abort = 1, true, true }),
		of(blueGreen, func(w *walk) { w.replicas, w.manual, w.promote, w.abort = 1, true, true, true }),
		of(blueGreen, func(w *walk) { w.replicas = 2 }),
		of(blueGreen, func(w *walk) { w.replicas, w.manual, w.promote, w.abort, w.calm = 2, true, true, true, true }),
		of(blueGreen, func(w *walk) { w.replicas, w.third, w.calm = 2, true, true }),
		of(blueGreen, func(w *walk) { w.replicas, w.onFailure, w.calm = 2, control.Pause, true }),
		of(blueGreen, func(w *walk) { w.replicas, w.calm, w.long = 3, true, true }),
		of(blueGreen, func(w *walk) { w.replicas, w.calm, w.long = 4, true, true }),
	} {
		t.Run(w.String(), func(t *testing.T) {
			if w.long && !long {
				t.Skip("ORCHESTRATE_LONG is not set")
			}
			if testing.Short() && (w.replicas > 2 || w.third || !w.calm && w.replicas > 1) {
				t.Skip("it takes longer than others")
			}
			t.Parallel()
			w.troubles = *troubles
			if w.replicas == 1 && w.strategy == record.Rolling {
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
	replicas                        int
	parallelism, surge, unavailable control.Amount
	stopFirst                       bool
	strategy                        record.Strategy
	canaries                        control.Amount
	manual                          bool
	onFailure                       control.Action
	// What else can happen: a third revision, a promotion or abortion by call.
	third, promote, abort bool
	// resize has the update change resources alone, on nodes that can do that to
	// tasks that run; tight gives one of them no room for it.
	resize, tight bool
	troubles      int
	calm          bool // one trouble less, for what is large without it
	long          bool

	seen map[string]bool
	ends map[string]int
	// next is the state that each leads to if nothing happens; none where all
	// has ended, or waits for a call.
	next map[string]string
}

func (w *walk) String() string {
	name := fmt.Sprintf("%d", w.replicas)
	for _, part := range []struct {
		name string
		is   bool
	}{
		{fmt.Sprintf("by%d", w.parallelism), w.parallelism != 0}, {fmt.Sprintf("surge%d", w.surge), w.surge != 0},
		{fmt.Sprintf("unavailable%d", w.unavailable), w.unavailable != 0}, {"stopfirst", w.stopFirst},
		{string(w.strategy), w.strategy != ""}, {"manual", w.manual}, {"third", w.third}, {"promote", w.promote},
		{"abort", w.abort}, {"resize", w.resize}, {"tight", w.tight}, {string(w.onFailure), w.onFailure != ""}, {"calm", w.calm},
	} {
		if part.is {
			name += "," + part.name
		}
	}
	return name
}

const (
	walkMonitor  = time.Second
	walkDeadline = 3 * time.Second
	walkBake     = 2 * time.Second
)

func (w *walk) spec(image string) spec {
	return spec{Replicas: w.replicas, Image: image, Update: control.Update{
		Parallelism: w.parallelism, MaxSurge: w.surge, MaxUnavailable: w.unavailable, StopFirst: w.stopFirst,
		Strategy: w.strategy, Canaries: w.canaries, Manual: w.manual, Bake: walkBake,
		Monitor: walkMonitor, ProgressDeadline: walkDeadline, MaxFailures: 2, OnFailure: w.onFailure,
	}}
}

func (w *walk) run(t *testing.T) {
	w.seen, w.ends, w.next = map[string]bool{}, map[string]int{}, map[string]string{}
	s := newSim(t)
	first, second := "v1", "v2"
	if w.resize {
		first, second = "v1/100", "v1/200"
	}
	for i, id := range []string{"n1", "n2"} {
		n := record.Node{Node: scheduler.Node{ID: id, Ready: true, Capacity: scheduler.Resources{Memory: 1000}}, Resizes: w.resize}
		if w.tight && i == 0 {
			n.Capacity.Memory = 150
		}
		s.commit(store.Put(record.Key(record.Nodes, id), marshal(t, n)), store.Put(record.Key(record.Alive, id), nil))
	}
	s.apply("web", w.spec(first))
	s.plan()
	for _, task := range s.tasks("web") {
		s.report(task, record.Ready, nil)
	}
	s.pass(walkMonitor)
	if r := s.rollout("web"); r.State != record.RolloutCompleted {
		t.Fatalf("v1 is %s before the walk begins", r.State)
	}
	s.apply("web", w.spec(second))
	s.plan()
	w.visit(t, s, nil, 0)
	t.Logf("%d states, %v", len(w.seen), w.ends)
	if t.Failed() {
		return
	}
	w.endings(t)
	want := []string{"completed", "failed"}
	if w.onFailure == control.RollBack {
		want = []string{"completed", "rollback completed", "rollback failed"}
		if w.strategy != record.Rolling && w.troubles == 0 {
			want = slices.Delete(want, 2, 3) // the old set is all there
		}
	}
	got := slices.Collect(maps.Keys(w.ends))
	for _, end := range want {
		if !slices.Contains(got, end) {
			t.Errorf("the walk came to the ends %v, want %s among them", w.ends, end)
		}
	}
}

// endings checks that every way on which nothing happens leads somewhere.
func (w *walk) endings(t *testing.T) {
	ends := map[string]bool{}
	for state := range w.next {
		var way []string
		on := map[string]bool{}
		for s := state; s != "" && !ends[s]; s = w.next[s] {
			if on[s] {
				t.Fatalf("if nothing happens, the rollout goes round and round: %s", strings.Join(way, "\n"))
			}
			on[s], way = true, append(way, s)
		}
		for _, s := range way {
			ends[s] = true
		}
	}
}

// action is something that can happen.
type action struct {
	name    string
	trouble int
	do      func(*sim)
}

func (w *walk) visit(t *testing.T, s *sim, path []string, troubles int) (key string) {
	key = fmt.Sprint(fingerprint(s), troubles)
	if w.seen[key] {
		return key
	}
	w.seen[key] = true
	if len(w.seen) > 1_000_000 {
		t.Fatal("more than 1,000,000 states: something that cannot matter is told apart")
	}
	r := s.rollout("web")
	last := r.Current().State != record.Progressing && (!w.third || r.Hash == "v3")
	if last && r.Rollback != nil {
		w.ends["rollback "+string(r.Rollback.State)]++
	} else if last {
		w.ends[string(r.State)]++
	}
	actions := w.actions(s)
	if last {
		actions = []action{{"nothing", 0, func(*sim) {}}}
	} else if s.wake.IsZero() && r.Phase != record.PhaseWaiting && r.Current().State == record.Progressing {
		t.Errorf("the rollout is %s in phase %s, and nobody looks at it again\nafter %s\n%s", r.State, r.Phase, strings.Join(path, ", "), strings.Join(s.log, "\n"))
		return key
	}
	for _, a := range actions {
		if troubles+a.trouble > w.troubles {
			continue
		}
		f := fork(s)
		p := watch(f)
		f.planned = func(plan control.Plan) {
			p.check(plan)
			if len(plan.Writes) > 0 {
				w := plan.Writes[0]
				p.breaks("a new leader makes %d writes, want none: the old one was at rest. The first is\n%s %s, which was\n%s", len(plan.Writes), w.Key, w.Value, f.kv[w.Key].Value)
			}
		}
		f.lead()
		f.planned = p.check
		a.do(f)
		f.plan()
		step := append(slices.Clone(path), a.name)
		if p.broken != "" {
			t.Errorf("%s\nafter %s\n%s", p.broken, strings.Join(step, ", "), strings.Join(f.log, "\n"))
			return key
		}
		if last {
			return key
		}
		then := w.visit(t, f, step, troubles+a.trouble)
		if t.Failed() {
			return key
		}
		if a.name == "time" {
			w.next[key] = then
		}
	}
	return key
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
		if !task.Resized.IsZero() && st.InForce != task.Hash && st.Refused != task.Hash {
			set := func(what string, trouble int, change func(*record.Status)) {
				out = append(out, action{name + " " + what, trouble, func(s *sim) { s.amend(task, change) }})
			}
			set("has its new bounds", 0, func(st *record.Status) { st.InForce, st.InForceSince = task.Hash, s.now })
			set("is refused them", 1, func(st *record.Status) { st.Refused = task.Hash })
		} else if !task.Resized.IsZero() && st.InForce == task.Hash && st.State == record.Ready {
			say(record.Running, 1, &record.Failure{Kind: record.FailedOOM, Message: "out of memory"})
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
	r := s.rollout("web")
	if _, said := s.kv[record.Key(record.Directives, "default", "web")]; said || r.State != record.Progressing {
		return out
	}
	if w.promote && (r.Phase == record.PhaseWaiting || r.Phase == record.PhaseBake) {
		out = append(out, action{"promote", 0, func(s *sim) { s.direct("web", record.Promote) }})
	}
	if w.abort {
		out = append(out, action{"abort", 0, func(s *sim) { s.direct("web", record.Abort) }})
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
	idle := s.now.Sub(a.Progressed)
	if r.Phase == record.PhaseWaiting || !r.Until.IsZero() {
		idle = r.Since.Sub(a.Progressed) // the clock stands still
		fmt.Fprintf(&b, "%v ", r.Until.Sub(s.now))
	}
	fmt.Fprintf(&b, "%s %s %s %s %s %s %d %d %d %v", s.specs["web"].Image, r.State, r.Reason, a.Hash, a.State, a.Reason, a.Failures, a.Best, a.Settled, idle)
	slots := func(of map[int]record.Slot) {
		for _, n := range slices.Sorted(maps.Keys(of)) {
			sl := of[n]
			_, kept := s.kv[record.Key(record.Tasks, sl.Node, sl.Task)]
			fmt.Fprintf(&b, " [%d %d %v %v]", n, sl.Failures, min(s.now.Sub(sl.Last), 2*time.Second), kept)
		}
		b.WriteString(";")
	}
	for _, c := range r.Completed {
		fmt.Fprintf(&b, " %s", c.Hash)
	}
	fmt.Fprintf(&b, " %s %v", r.Phase, r.Held)
	if i, ok := s.kv[record.Key(record.Directives, "default", "web")]; ok {
		var d record.Directive
		unmarshal(s.t, i.Value, &d)
		fmt.Fprintf(&b, " %s from %s, %v", d.Action, d.From, d.Spec >= r.Began)
	}
	slots(r.Slots)
	slots(r.Trial)
	for _, t := range s.tasks("web") {
		st, _ := s.status(t)
		age := time.Duration(-1)
		if st.State == record.Ready {
			age = min(s.now.Sub(st.Ready), walkMonitor)
		}
		fmt.Fprintf(&b, " %d %s %v %s %v %v", t.Slot, t.Hash, t.Stop != nil, st.State, age, st.Ready.IsZero())
		if !t.Resized.IsZero() {
			killed := st.Failure != nil && st.Failure.Kind == record.FailedOOM && st.Failure.At.After(st.InForceSince)
			fmt.Fprintf(&b, " %v %v %v %v %s", st.InForce == t.Hash, min(s.now.Sub(st.InForceSince), walkMonitor), st.Refused, killed, t.Node)
		}
	}
	return b.String()
}
