package orchestrate_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
)

// ready follows a service and returns the least number of its ready tasks since.
func ready(t *testing.T, f *orchestrate.Fleet, name string) (least func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	events, err := f.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	lowest := tasksOf(t, f, name)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range events {
			if tasks, err := f.Tasks(ctx, name); err == nil {
				n := 0
				for _, task := range tasks {
					if task.State == orchestrate.Ready && task.Stopping == "" {
						n++
					}
				}
				lowest = min(lowest, n)
			}
		}
	}()
	return func() int {
		cancel()
		<-ended
		return lowest
	}
}

func nodeOf(t *testing.T, f *orchestrate.Fleet, name string) map[string]int {
	t.Helper()
	tasks, err := f.Tasks(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	on := map[string]int{}
	for _, task := range tasks {
		on[task.Node]++
	}
	return on
}

// Two nodes are drained at once, and together keep the budget; progress tells how
// it goes.
func TestDrainTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		addNode(t, s, "n2")
		addNode(t, s, "n3")
		synctest.Wait()
		web := service("web", 0)
		web.Replicas = 6
		web.Update.Order = orchestrate.StopFirst
		web.Budget.MinAvailable = "80%"
		mustApply(t, f, web)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		least := ready(t, f, "web")
		var told []orchestrate.DrainStatus
		ended := make(chan error, 2)
		go func() { ended <- f.Drain(t.Context(), "n2", orchestrate.DrainWithin(time.Hour)) }()
		go func() {
			ended <- f.Drain(t.Context(), "n3", orchestrate.DrainProgress(func(st orchestrate.DrainStatus) { told = append(told, st) }))
		}()
		for range 2 {
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		time.Sleep(time.Minute)
		if n := least(); n != 5 {
			t.Errorf("at least %d were ready, want 5, which is 80%% of 6, and not more, since one stops before the next starts", n)
		}
		if on := nodeOf(t, f, "web"); on["n1"] != 6 {
			t.Errorf("the tasks are on %v, want all 6 on n1", on)
		}
		if last := told[len(told)-1]; len(told[0].Left) != 2 || len(last.Left) != 0 || len(last.Moved) != 2 || !last.Draining {
			t.Errorf("progress from %v to %v, want from 2 tasks left to 2 moved", told[0], last)
		}
		events, err := f.Events(t.Context(), orchestrate.EventFilter{Kinds: []orchestrate.EventKind{orchestrate.NodeDrained}})
		if err != nil || len(events) != 2 {
			t.Errorf("events %v, %v; want that both nodes are drained", events, err)
		}
	})
}

// A drain that nothing can come of ends at its deadline, and says of each task
// why; with force it ends the tasks.
func TestDrainDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		addNode(t, s, "n2")
		synctest.Wait()
		pinned, single := service("pinned", 0), service("single", 0)
		pinned.Placement.Constraints = []string{"node.id == n1"}
		single.Update.Order = orchestrate.StopFirst
		single.Budget.MinAvailable = "100%"
		single.Placement.Constraints = []string{"node.id != n2"}
		free := service("free", 0)
		free.Replicas = 2
		mustApply(t, f, pinned, single, free)
		for _, name := range []string{"pinned", "single", "free"} {
			mustEnd(t, f, name, orchestrate.RolloutCompleted)
		}
		err := f.Drain(t.Context(), "n1", orchestrate.DrainWithin(5*time.Minute))
		var e *orchestrate.DrainError
		if !errors.As(err, &e) || !errors.Is(err, orchestrate.ErrDrainEnded) {
			t.Fatalf("%v; want that the deadline has passed", err)
		}
		var left []string
		for _, b := range e.Status.Left {
			left = append(left, fmt.Sprintf("%s %s %d %d %d", b.Service, b.Reason, b.Replicas, b.Available, b.Least))
		}
		if want := []string{"default/pinned ended 1 1 1", "default/single ended 1 1 1"}; !slices.Equal(left, want) || !e.Status.Ended || e.Status.Draining {
			t.Errorf("left are %v (%v), want %v", left, e.Status, want)
		}
		if on := nodeOf(t, f, "free"); on["n1"] != 0 {
			t.Errorf("tasks that could move are on %v", on)
		}
		if err := f.Scale(t.Context(), "free", 4); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "free", orchestrate.RolloutCompleted)
		if on := nodeOf(t, f, "free"); on["n1"] != 0 {
			t.Errorf("new tasks after the deadline are on %v, want none on n1", on)
		}

		// While it goes on, each has its own reason.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err = f.Drain(ctx, "n1")
		if !errors.As(err, &e) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%v; want that the caller's time is over", err)
		}
		for i, want := range []struct {
			reason orchestrate.BlockedReason
			text   string
		}{{orchestrate.BlockedPlace, "node.id == n1"}, {orchestrate.BlockedBudget, "at least 1 are to"}} {
			if b := e.Status.Left[i]; b.Reason != want.reason || !strings.Contains(b.Message, want.text) {
				t.Errorf("%v; want %s with %q", b, want.reason, want.text)
			}
		}
		if st, err := f.DrainStatus(t.Context(), "n1"); err != nil || !st.Draining || len(st.Left) != 2 {
			t.Errorf("status %v, %v; want that it goes on, with 2 tasks left", st, err)
		}

		if err := f.Drain(t.Context(), "n1", orchestrate.DrainWithin(time.Minute), orchestrate.DrainForce()); err != nil {
			t.Fatal(err)
		}
		if on := nodeOf(t, f, "single"); on["n1"] != 0 {
			t.Errorf("tasks on %v after a forced drain", on)
		}
		if err := f.Uncordon(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		for _, name := range []string{"pinned", "single"} {
			if on := nodeOf(t, f, name); on["n1"] != 1 {
				t.Errorf("%s is on %v after Uncordon, want on n1 again", name, on)
			}
		}
		if err := f.Drain(t.Context(), "n1", orchestrate.DrainForce()); !errors.Is(err, orchestrate.ErrInvalid) {
			t.Errorf("force without a deadline: %v, want invalid", err)
		}
		if _, err := f.DrainStatus(t.Context(), "nobody"); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("the status of no node: %v, want not found", err)
		}
	})
}

// Evict asks the budget.
func TestEvict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		addNode(t, s, "n2")
		synctest.Wait()
		web, db := service("web", 0), service("db", 0)
		web.Replicas = 2
		db.Replicas = 3
		db.Update.Order = orchestrate.StopFirst
		db.Budget.MaxUnavailable = "1"
		db.DrainDelay = 10 * time.Second
		mustApply(t, f, web, db)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		mustEnd(t, f, "db", orchestrate.RolloutCompleted)
		tasks, err := f.Tasks(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		least := ready(t, f, "web")
		if err := f.Evict(t.Context(), tasks[0].ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		after, err := f.Tasks(t.Context(), "web")
		if err != nil || len(after) != 2 || after[0].ID == tasks[0].ID || after[0].Node == tasks[0].Node || after[1].ID != tasks[1].ID {
			t.Errorf("from %v to %v, %v; want the first on another node, and the other as it was", tasks, after, err)
		}
		if n := least(); n != 2 {
			t.Errorf("%d were ready in the meantime, want always 2", n)
		}
		if n := records(t, s, "/evictions/"); n != 0 {
			t.Errorf("%d evictions are left in the store", n)
		}

		if tasks, err = f.Tasks(t.Context(), "db"); err != nil {
			t.Fatal(err)
		}
		if err := f.Evict(orchestrate.WithActor(t.Context(), "ops"), tasks[0].ID); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		err = f.Evict(t.Context(), tasks[1].ID)
		var e *orchestrate.BudgetError
		if !errors.As(err, &e) || !errors.Is(err, orchestrate.ErrBudget) || e.Blocked.Available != 2 || e.Blocked.Least != 2 || e.Blocked.Replicas != 3 {
			t.Errorf("a second of a budget of one: %v; want that 2 of 3 serve, and at least 2 are to", err)
		}
		time.Sleep(time.Minute)
		if err := f.Evict(t.Context(), tasks[1].ID); err != nil {
			t.Errorf("once the first is back: %v", err)
		}
		events, err := f.Events(t.Context(), orchestrate.EventFilter{Task: tasks[0].ID, Kinds: []orchestrate.EventKind{orchestrate.TaskStopping}})
		if err != nil || len(events) != 1 || events[0].Cause.Actor != "ops" {
			t.Errorf("events %v, %v; want that ops had it moved", events, err)
		}
		if err := f.Evict(t.Context(), "web.9.nobody"); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("no task: %v, want not found", err)
		}
	})
}

// A node that is lost while it is drained needs no deadline: its tasks are
// replaced as lost.
func TestDrainOfALostNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		stop := addNode(t, s, "n2")
		synctest.Wait()
		web := service("web", 0)
		web.Placement.Constraints = []string{"node.id == n2"}
		mustApply(t, f, web)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		stop()
		time.Sleep(10 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var e *orchestrate.DrainError
		if err := f.Drain(ctx, "n2"); !errors.As(err, &e) || len(e.Status.Left) != 1 || e.Status.Left[0].Reason != orchestrate.BlockedNode {
			t.Errorf("draining a node that is dead: %v, want that its task is said to be on a lost node", err)
		}
	})
}

// What becomes of tasks on a node that is silent is said as it is.
func TestLeftOnALostNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		stop := addNode(t, s, "n2")
		synctest.Wait()
		everywhere := service("everywhere", 0)
		everywhere.Mode, everywhere.Replicas = orchestrate.Global, 0
		patient := service("patient", 0)
		patient.LostAfter = -1
		moved := service("moved", 0)
		plain := service("plain", 0)
		for _, s := range []*orchestrate.Service{&patient, &moved, &plain} {
			s.Placement.Constraints = []string{"node.id == n2"}
		}
		mustApply(t, f, everywhere, patient, moved, plain)
		for _, name := range []string{"everywhere", "patient", "moved", "plain"} {
			mustEnd(t, f, name, orchestrate.RolloutCompleted)
		}
		stop()
		time.Sleep(10 * time.Second)
		moved.Placement.Constraints = nil
		mustApply(t, f, moved)
		time.Sleep(time.Hour)
		st, err := f.DrainStatus(t.Context(), "n2")
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{
			"default/everywhere": "waits for the node",
			"default/patient":    "only when the node is fenced or deleted",
			"default/moved":      "it was told to stop, which it does when the node returns",
			"default/plain":      "it is replaced",
		}
		for _, left := range st.Left {
			if left.Reason != orchestrate.BlockedNode || !strings.Contains(left.Message, want[left.Service]) {
				t.Errorf("%s: got %s, %q; want %q", left.Service, left.Reason, left.Message, want[left.Service])
			}
			delete(want, left.Service)
		}
		if len(want) > 0 {
			t.Errorf("nothing is said of %v", want)
		}
	})
}

func ExampleFleet_Drain() {
	var fleet *orchestrate.Fleet // of several nodes
	maintain := func(ctx context.Context, node string) error {
		err := fleet.Drain(ctx, node, orchestrate.DrainWithin(15*time.Minute),
			orchestrate.DrainProgress(func(st orchestrate.DrainStatus) { fmt.Println(st) }))
		if e, ok := errors.AsType[*orchestrate.DrainError](err); ok {
			for _, task := range e.Status.Left {
				fmt.Println(task.Service, "stays, because of", task.Reason, task.Message)
			}
		}
		if err != nil {
			return err
		}
		// Nothing runs there now: the machine can be worked on.
		return fleet.Uncordon(ctx, node)
	}
	_ = maintain
}

// A drain ends for all who wait for it: by Uncordon, and by the deadline that
// the last call has set.
func TestDrainEndsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		addNode(t, s, "n2")
		synctest.Wait()
		web := service("web", 0)
		web.Replicas, web.Placement.MaxPerNode = 2, 1
		mustApply(t, f, web)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		ended := make(chan error, 2)
		drain := func(opts ...orchestrate.DrainOption) {
			go func() { ended <- f.Drain(t.Context(), "n2", opts...) }()
			synctest.Wait()
		}
		drain()
		drain(orchestrate.DrainWithin(time.Hour))
		if err := f.Uncordon(t.Context(), "n2"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			var blocked *orchestrate.DrainError
			if err := <-ended; !errors.Is(err, orchestrate.ErrUncordoned) || !errors.As(err, &blocked) || blocked.Status.Draining || len(blocked.Status.Left) != 1 {
				t.Errorf("Drain of a node that is uncordoned meanwhile: got %v, want ErrUncordoned and what is left", err)
			}
		}

		begun := time.Now()
		drain()
		drain(orchestrate.DrainWithin(time.Minute))
		for range 2 {
			var blocked *orchestrate.DrainError
			if err := <-ended; !errors.Is(err, orchestrate.ErrDrainEnded) || !errors.As(err, &blocked) || !blocked.Status.Ended {
				t.Errorf("Drain that another has given a deadline: got %v, want ErrDrainEnded", err)
			}
		}
		if took := time.Since(begun); took != time.Minute {
			t.Errorf("the drain ended for all after %v, want 1m", took)
		}
	})
}
