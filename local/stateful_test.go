//go:build linux

package local

import (
	"context"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/volume"
)

// slots is a stateful service of test programs, each with a volume.
func slots(n int) orchestrate.Service {
	s := service("db", n)
	s.Stateful = &orchestrate.Stateful{Order: orchestrate.ParallelSlots}
	s.Containers[0].Mounts = []orchestrate.Mount{{Target: "/data", Volume: "data"}}
	s.SlotVolumes = []volume.Volume{{Name: "data"}}
	s.Update = orchestrate.UpdatePolicy{Monitor: -1, ProgressDeadline: time.Minute}
	return s
}

// slot is the task that a slot has.
func slot(t testing.TB, f *Fleet, n int) orchestrate.Task {
	t.Helper()
	for _, task := range tasks(t, f, "db") {
		if task.Slot == n && task.Stopping == "" {
			return task
		}
	}
	t.Fatalf("slot %d has no task", n)
	return orchestrate.Task{}
}

// A slot's volume and name outlive its tasks: through a kill, an update, a move
// to another node, scaling down and up, and removal. With the policy to delete
// volumes they go with the slot.
func TestSlots(t *testing.T) {
	f := openFleet(t, WithNode("a", nil), WithNodes("b"))
	s := slots(2)
	up(t, f, s)
	must := func(n int, words ...string) {
		t.Helper()
		if code, out := run(t, f, slot(t, f, n).ID, words...); code != 0 {
			t.Errorf("%q in slot %d: exit code %d, %s", words, n, code, out)
		}
	}
	must(0, "line=of db-0")
	must(1, "line=of db-1")
	kept := func(when string) {
		t.Helper()
		for n, line := range []string{"has=of db-0", "has=of db-1"} {
			if code, out := run(t, f, slot(t, f, n).ID, line); code != 0 {
				t.Errorf("%s: %q in slot %d: exit code %d, %s", when, line, n, code, out)
			}
		}
		// Names lead to the slots, from either side, wherever they are.
		must(0, "get=http://db-1.db:8080/", "get=http://db-0.db.default:8080/")
		must(1, "get=http://db-0.db:8080/")
	}
	kept("at first")

	events := watch(t, f)
	before := slot(t, f, 0)
	if err := syscall.Kill(before.Containers[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, events, "the restart", func(orchestrate.Event) bool {
		now := slot(t, f, 0)
		return now.State == orchestrate.Ready && now.Restarts > before.Restarts
	})
	kept("after a kill")

	s.Containers[0].Env = map[string]string{"VERSION": "2"}
	up(t, f, s)
	kept("after an update")

	from := slot(t, f, 1).Node
	if err := f.Drain(t.Context(), from); err != nil {
		t.Fatal(err)
	}
	completed(t, f, "db")
	until(t, events, "the move", func(orchestrate.Event) bool {
		for _, task := range tasks(t, f, "db") {
			if task.State != orchestrate.Ready || task.Node == from {
				return false
			}
		}
		return true
	})
	kept("after a drain")
	if err := f.Uncordon(t.Context(), from); err != nil {
		t.Fatal(err)
	}

	for _, n := range []int{1, 2} {
		if err := f.Scale(t.Context(), "db", n); err != nil {
			t.Fatal(err)
		}
		completed(t, f, "db")
	}
	kept("after scaling down and up")

	if err := f.Remove(t.Context(), "db"); err != nil {
		t.Fatal(err)
	}
	wait(t, f, "db")
	s.Stateful.WhenScaled, s.Stateful.WhenRemoved = orchestrate.DeleteVolumes, orchestrate.DeleteVolumes
	up(t, f, s)
	kept("after removal")

	if err := f.Scale(t.Context(), "db", 1); err != nil {
		t.Fatal(err)
	}
	completed(t, f, "db")
	if got, want := volumeNames(t, f), []string{"default/db-0.data"}; !slices.Equal(got, want) {
		t.Errorf("volumes after scaling down with the policy to delete: got %q, want %q", got, want)
	}
	if err := f.Remove(t.Context(), "db"); err != nil {
		t.Fatal(err)
	}
	wait(t, f, "db")
	if got := volumeNames(t, f); len(got) > 0 {
		t.Errorf("volumes after removal with the policy to delete: got %q, want none", got)
	}
}

// A slot on a node whose agent is dead is run nowhere else before its container
// has ended by itself, and then with its volume.
func TestSlotOfLostNode(t *testing.T) {
	f := openFleet(t, WithNode("a", nil), WithNodes("b"), WithFleetOptions(orchestrate.WithLostAfter(time.Second)))
	up(t, f, slots(1))
	before := slot(t, f, 0)
	if code, out := run(t, f, before.ID, "line=of db-0"); code != 0 {
		t.Fatalf("exit code %d, %s", code, out)
	}
	events := watch(t, f)
	if err := f.StopNode(before.Node); err != nil {
		t.Fatal(err)
	}
	running := func() bool {
		list, err := f.runtime.List(context.WithoutCancel(t.Context()), map[string]string{"orchestrate.task": before.ID})
		if err != nil {
			t.Fatal(err)
		}
		return len(list) > 0 && list[0].State == "running"
	}
	if !running() {
		t.Error("the container ended with its agent, want it to run on for its time")
	}
	until(t, events, "the slot elsewhere", func(orchestrate.Event) bool {
		for _, task := range tasks(t, f, "db") {
			if task.ID == before.ID {
				continue
			}
			if running() {
				t.Fatalf("task %s is placed while %s still runs", task.ID, before.ID)
			}
			return task.State == orchestrate.Ready
		}
		return false
	})
	if code, out := run(t, f, slot(t, f, 0).ID, "has=of db-0"); code != 0 {
		t.Errorf("the volume did not follow: exit code %d, %s", code, out)
	}
	if err := f.StartNode(before.Node); err != nil {
		t.Fatal(err)
	}
	until(t, events, "the end of the old task", func(orchestrate.Event) bool { return len(tasks(t, f, "db")) == 1 })
}

// A global service runs on every node that takes it.
func TestGlobal(t *testing.T) {
	f := openFleet(t, WithNode("a", nil), WithNodes("b", "c"))
	s := service("log", 0)
	s.Mode, s.Placement.Constraints = orchestrate.Global, []string{"node.id != c"}
	s.Update.Parallelism = "1"
	up(t, f, s)
	if got := perNode(t, f, "log"); len(got) != 2 || got["a"] != 1 || got["b"] != 1 {
		t.Errorf("tasks by node: got %v, want one on a and b each", got)
	}
	s.Placement.Constraints = nil
	up(t, f, s)
	if got := perNode(t, f, "log"); len(got) != 3 {
		t.Errorf("tasks by node: got %v, want one on each", got)
	}
	if err := f.Drain(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if got := perNode(t, f, "log"); len(got) != 2 || got["b"] != 0 {
		t.Errorf("tasks by node after b was drained: got %v, want one on a and c each", got)
	}
}
