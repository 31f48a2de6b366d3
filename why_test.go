package orchestrate_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// Every decision about a task can be asked for its reason, also when the task is
// gone, and what lacks a place says what would help.
func TestWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		alice := orchestrate.WithActor(t.Context(), "alice@example")
		if err := f.Apply(alice, sized("web", 1, 1<<30)); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		first, err := f.Tasks(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		addNode(t, s, "n2")
		synctest.Wait()
		if err := f.Drain(orchestrate.WithActor(t.Context(), "dave"), "n1"); err != nil {
			t.Fatal(err)
		}
		why := func(subject string) *orchestrate.Explanation {
			t.Helper()
			x, err := f.Why(t.Context(), subject)
			if err != nil {
				t.Fatal(err)
			}
			return x
		}
		kinds := func(events []orchestrate.Event) (kinds []orchestrate.EventKind) {
			for _, e := range events {
				kinds = append(kinds, e.Kind)
			}
			return kinds
		}
		gone := why(first[0].ID)
		if got := kinds(gone.Events); gone.Task != nil || !slices.Equal(got, []orchestrate.EventKind{orchestrate.TaskPlaced, orchestrate.TaskStarted, orchestrate.TaskStopping, orchestrate.TaskEnded, orchestrate.TaskGone}) {
			t.Errorf("the first task's story is %v (there: %v), want that it was placed, started, stopped, ended and is gone", got, gone.Task)
		}
		if got := kinds(gone.Because); !slices.Equal(got, []orchestrate.EventKind{orchestrate.ServiceApplied, orchestrate.NodeChanged}) {
			t.Errorf("the causes are %v, want the Apply and the drain", got)
		}
		text := gone.String()
		for _, want := range []string{"by alice@example", "chosen of 1 nodes: n1 score", "drained by dave", "service-applied default/web"} {
			if !strings.Contains(text, want) {
				t.Errorf("the explanation does not say %q:\n%s", want, text)
			}
		}
		now, err := f.Tasks(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		if x := why(now[0].ID); x.Task == nil || x.Task.Node != "n2" || x.Events[0].Cause.Trigger != "node/n1" {
			t.Errorf("the second task is explained by\n%s\nwant that n1 was drained", x)
		}

		if err := f.Scale(alice, "web", 9); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		x := why("web")
		if x.Unplaced == nil || x.Unplaced.Unplaced == 0 || x.Unplaced.Refused[0].Filter == "" || x.Events[0].Kind != orchestrate.ServiceApplied || x.Events[0].Reason != "scaled" {
			t.Errorf("web is explained by\n%s\nwant that it was scaled, and why replicas have no place", x)
		}
		if !slices.ContainsFunc(x.Unplaced.Refused, func(r scheduler.Refusal) bool { return r.Filter == scheduler.FilterMemory }) {
			t.Errorf("refused is %+v, want by memory", x.Unplaced.Refused)
		}
		if _, err := f.Why(t.Context(), "nobody"); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("why nobody: %v, want not found", err)
		}
	})
}
