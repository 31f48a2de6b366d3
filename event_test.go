package orchestrate_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
	storememory "github.com/orchestrate-go/orchestrate/store/memory"
)

// told lists events as their kind, reason, actor and what set them off.
func told(events []orchestrate.Event) []string {
	var lines []string
	for _, e := range events {
		trigger := e.Cause.Trigger
		if strings.HasPrefix(trigger, "task/") {
			trigger = "task" // its ID is of no consequence
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s: %s %s", e.Kind, e.Reason, e.Cause.Actor, trigger)))
	}
	return lines
}

func mustEvents(t *testing.T, f *orchestrate.Fleet, filter orchestrate.EventFilter) []orchestrate.Event {
	t.Helper()
	events, err := f.Events(t.Context(), filter)
	if err != nil {
		t.Fatal(err)
	}
	return events
}

// Everything that happens to a service says who wanted it, or what made the
// fleet do it, and what it followed from.
func TestEventsNameTheirCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		as := func(actor string) context.Context { return orchestrate.WithActor(t.Context(), actor) }
		if err := f.Apply(as("alice@example"), image("a")); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		first := mustEvents(t, f, orchestrate.EventFilter{Service: "web"})
		if err := f.Scale(as("bob"), "web", 2); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		if err := f.Apply(as("carol\n"), func() orchestrate.Service { s := image("b"); s.Replicas = 2; return s }()); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		addNode(t, s, "n2")
		synctest.Wait()
		if err := f.Drain(as("dave"), "n1"); err != nil {
			t.Fatal(err)
		}
		if err := f.Remove(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutRemoved)

		got := told(mustEvents(t, f, orchestrate.EventFilter{Service: "web"}))
		for _, want := range []string{
			"service-applied applied: alice@example", "rollout-started : alice@example", "task-placed wanted: alice@example",
			"rollout-completed : alice@example",
			"service-applied scaled: bob", "task-placed wanted: bob",
			"service-applied applied: carol", "task-placed updated: carol task", "task-stopping updated: carol",
			"task-gone updated: planner",
			"task-placed drained: dave node/n1", "task-stopping drained: dave node/n1",
			"service-removed removed: application", "task-stopping removed: application", "service-gone removed: application",
		} {
			if !slices.Contains(got, want) {
				t.Errorf("no event %q in\n%s", want, strings.Join(got, "\n"))
			}
		}
		if node := told(mustEvents(t, f, orchestrate.EventFilter{Node: "n1", Kinds: []orchestrate.EventKind{orchestrate.NodeChanged}})); !slices.Equal(node, []string{"node-changed drained: dave"}) {
			t.Errorf("of the node it is told %q, want who drained it", node)
		}

		// The events of an Apply lead to the Apply.
		applied := first[slices.IndexFunc(first, func(e orchestrate.Event) bool { return e.Kind == orchestrate.ServiceApplied })]
		for _, e := range first {
			if e.Kind == orchestrate.TaskPlaced {
				if !strings.HasPrefix(string(applied.Token), fmt.Sprint(e.Cause.Parent, ":")) {
					t.Errorf("the parent of %v is %d, want the commit of %s", e, e.Cause.Parent, applied.Token)
				}
				if e.Decision == nil || e.Decision.Winner == nil || e.Decision.Winner.Node != "n1" || len(e.Decision.Winner.Parts) == 0 {
					t.Errorf("the decision behind %v is %+v, want n1 with its score's parts", e, e.Decision)
				}
			}
		}
		if _, err := json.Marshal(first); err != nil {
			t.Error(err)
		}
	})
}

// What fails, cannot be placed, or is lost is told with the planner, the agent
// or the node as its cause; logs and values stay where they are.
func TestEventsOfTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, s := open(t)
		const secret = "hunter2"
		rt.SetImage("img:bad", runtimememory.Image{Program: runtimememory.Program{
			Output: []runtimememory.Output{{Text: "the password is " + secret}}, Life: time.Second / 2, Code: 3,
		}})
		bad := image("bad")
		bad.Containers[0].Env = map[string]string{"PASSWORD": secret}
		bad.Restart.Attempts = 1
		bad.Update.OnFailure = orchestrate.Pause
		mustApply(t, f, bad)
		r := mustEnd(t, f, "web", orchestrate.RolloutFailed)
		if r.Failure == nil || !strings.Contains(strings.Join(r.Failure.Log, ""), secret) {
			t.Fatalf("%v with failure %+v; want the log to hold what must not be kept", r, r.Failure)
		}
		bad.Containers[0].Env["PASSWORD"] = secret + "!"
		mustApply(t, f, bad)
		mustEnd(t, f, "web", orchestrate.RolloutFailed)

		large := service("large", 0)
		large.Containers[0].Resources.Memory = 1 << 40
		large.Update.ProgressDeadline = time.Minute
		mustApply(t, f, large)
		mustEnd(t, f, "large", orchestrate.RolloutFailed)

		got := told(mustEvents(t, f, orchestrate.EventFilter{}))
		for _, want := range []string{
			"task-failed failed: agent of n1", "task-placed failed: planner task", "rollout-failed task-failures: application",
			"rollout-failed no-capacity: application",
		} {
			if !slices.Contains(got, want) {
				t.Errorf("no event %q in\n%s", want, strings.Join(got, "\n"))
			}
		}
		for _, e := range mustEvents(t, f, orchestrate.EventFilter{Service: "large", Kinds: []orchestrate.EventKind{orchestrate.TaskUnplaced}}) {
			if e.Decision == nil || len(e.Decision.Refused) == 0 || e.Decision.Refused[0].Filter != scheduler.FilterMemory {
				t.Errorf("the decision behind %v is %+v, want that memory refused it", e, e.Decision)
			}
		}
		snapshot, err := s.List(t.Context(), "/events/")
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range snapshot.Items {
			if strings.Contains(string(item.Value), secret) {
				t.Errorf("%s holds a secret: %s", item.Key, item.Value)
			}
		}
	})
}

// gather reads events until there is one of a kind.
func gather(t *testing.T, events <-chan orchestrate.Event, last orchestrate.EventKind) []orchestrate.Event {
	t.Helper()
	var all []orchestrate.Event
	for e := range events {
		all = append(all, e)
		if e.Kind == last {
			return all
		}
	}
	t.Fatalf("the watch ended before a %s; it told\n%s", last, strings.Join(told(all), "\n"))
	return nil
}

// A reader that was away goes on where it was, at whatever event that was, and
// gets every kept event once; also when the store has forgotten its history of
// changes.
func TestWatchGoesOnAfterAnyEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		mustApply(t, f, image("a"))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		mustApply(t, f, image("b"))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		if err := f.Remove(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutRemoved)
		synctest.Wait()
		all := mustEvents(t, f, orchestrate.EventFilter{Service: "web"})
		revision, err := s.List(t.Context(), "/leader")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.(store.Compacter).Compact(t.Context(), revision.Revision); err != nil {
			t.Fatal(err)
		}
		for i, e := range append([]orchestrate.Event{{}}, all...) {
			ctx, cancel := context.WithCancel(t.Context())
			if e.Kind == orchestrate.ServiceGone {
				cancel()
				continue
			}
			events, err := f.Watch(ctx, orchestrate.WatchAfter(e.Token), orchestrate.WatchOnly(orchestrate.EventFilter{Service: "web"}))
			if err != nil {
				t.Fatal(err)
			}
			got := told(gather(t, events, orchestrate.ServiceGone))
			cancel()
			if want := told(all[i:]); !slices.Equal(got, want) {
				t.Errorf("after %v it is told\n%s\nwant\n%s", e, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if rest := told(mustEvents(t, f, orchestrate.EventFilter{Service: "web", After: e.Token})); !slices.Equal(rest, told(all[i:])) {
				t.Errorf("Events after %v are\n%s\nwant\n%s", e, strings.Join(rest, "\n"), strings.Join(told(all[i:]), "\n"))
			}
		}
		var bad *orchestrate.TokenError
		if _, err := f.Watch(t.Context(), orchestrate.WatchAfter("yesterday")); !errors.As(err, &bad) {
			t.Errorf("a watch after yesterday: %v, want a TokenError", err)
		}
		if _, err := f.Events(t.Context(), orchestrate.EventFilter{After: "1:x:/"}); !errors.As(err, &bad) {
			t.Errorf("events after nonsense: %v, want a TokenError", err)
		}
	})
}

// What is forgotten is said to be, and the others' history is not forgotten with
// it.
func TestEventsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storememory.New(storememory.Options{})
		f := openOver(t, s, orchestrate.WithEventHistory(20, 0))
		mustApply(t, f, func() orchestrate.Service { s := service("quiet", 0); return s }())
		mustEnd(t, f, "quiet", orchestrate.RolloutCompleted)
		quiet := told(mustEvents(t, f, orchestrate.EventFilter{Service: "quiet"}))
		token := mustEvents(t, f, orchestrate.EventFilter{Service: "quiet"})[0].Token
		mustApply(t, f, service("noisy", 0))
		for i := range 200 {
			if err := f.Scale(t.Context(), "noisy", 1+i%2); err != nil {
				t.Fatal(err)
			}
			mustEnd(t, f, "noisy", orchestrate.RolloutCompleted)
		}
		synctest.Wait()
		if got := told(mustEvents(t, f, orchestrate.EventFilter{Service: "quiet"})); !slices.Equal(got, quiet) {
			t.Errorf("of the quiet service is left\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(quiet, "\n"))
		}
		n := len(mustEvents(t, f, orchestrate.EventFilter{Service: "noisy"}))
		// Records are forgotten a hundred at a time.
		if n < 20 || n > 20+2*100*4 {
			t.Errorf("%d events of the noisy service are kept, want at least 20 and not many more", n)
		}
		events, err := f.Watch(t.Context(), orchestrate.WatchAfter(token))
		if err != nil {
			t.Fatal(err)
		}
		if e := <-events; e.Kind != orchestrate.EventsLost {
			t.Errorf("a watch after the beginning tells %v first, want that events were lost", e)
		}
	})
}
