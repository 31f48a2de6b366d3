//go:build linux

package local

import (
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
)

// perNode counts the tasks of a service by node.
func perNode(t testing.TB, f *Fleet, name string) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, task := range tasks(t, f, name) {
		counts[task.Node]++
	}
	return counts
}

// Two nodes of one machine share its addresses: every way to a service leads
// to the tasks of both, names are known to both, and closing and opening leaves
// the containers of both alone.
func TestNodes(t *testing.T) {
	dir := newFolder(t)
	nodes := []Option{WithNode("a", nil), WithNodes("b")}
	f := openAt(t, dir, nodes...)
	defer func() { destroy(t, f) }()
	if got := f.NodeIDs(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("nodes: got %v, want a and b", got)
	}
	s := service("web", 4)
	s.Ports[0].Published = 8081
	up(t, f, s)
	if got := perNode(t, f, "web"); !maps.Equal(got, map[string]int{"a": 2, "b": 2}) {
		t.Errorf("tasks by node: got %v, want 2 on each", got)
	}
	check := func(when string) {
		t.Helper()
		for _, address := range []string{"127.0.0.1:8081", at(virtual(t, f, "web")[0], 80)} {
			if counts := answers(t, address, 80); len(counts) != 4 {
				t.Errorf("%s, %s was answered by %v, want all 4 tasks", when, address, counts)
			}
		}
	}
	check("at first")
	for _, task := range tasks(t, f, "web") {
		if code, out := run(t, f, task.ID, "get=http://tasks.web:8080/"); code != 0 {
			t.Errorf("a task on node %s asks tasks.web: exit code %d, %s", task.Node, code, out)
		}
	}
	before := pids(t, f, "web")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = openAt(t, dir, nodes...)
	completed(t, f, "web")
	if after := pids(t, f, "web"); !maps.Equal(before, after) {
		t.Errorf("containers after opening again: got %v, want those of before, %v", after, before)
	}
	check("after opening again")
}

// A node whose agent has stopped is lost after a while: its tasks are replaced
// on the other, and stopped once it returns. Its containers run on until then.
func TestStopNode(t *testing.T) {
	f := openFleet(t, WithNode("a", nil), WithNodes("b"), WithFleetOptions(orchestrate.WithLostAfter(time.Second)))
	s := service("web", 2)
	s.Ports[0].Published = 8081
	up(t, f, s)
	events := watch(t, f)
	if err := f.StopNode("b"); err != nil {
		t.Fatal(err)
	}
	if err := f.StopNode("b"); err != nil {
		t.Errorf("StopNode of a stopped node: got %v, want nil", err)
	}
	if err := f.StopNode("c"); !errors.Is(err, orchestrate.ErrNotFound) {
		t.Errorf("StopNode of a node that is not there: got %v, want ErrNotFound", err)
	}
	placed := until(t, events, "a task takes the place of the lost one", func(e orchestrate.Event) bool {
		return e.Kind == orchestrate.TaskPlaced
	})
	if placed.Node != "a" {
		t.Errorf("the lost task's successor: got node %s, want a", placed.Node)
	}
	until(t, events, "it is ready", func(e orchestrate.Event) bool { return e.Task == placed.Task && e.State == orchestrate.Ready })
	if counts := answers(t, "127.0.0.1:8081", 40); counts[placed.Task] == 0 {
		t.Errorf("while a node is lost: answered by %v, want also %s", counts, placed.Task)
	}
	if err := f.StartNode("b"); err != nil {
		t.Fatal(err)
	}
	until(t, events, "the returned node gives up what was replaced", func(e orchestrate.Event) bool {
		return e.Kind == orchestrate.TaskGone && e.Node == "b"
	})
	if got := perNode(t, f, "web"); !maps.Equal(got, map[string]int{"a": 2}) {
		t.Errorf("tasks by node after the return: got %v, want 2 on a", got)
	}
}
