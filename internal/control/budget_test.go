package control_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// drain has a node drained with a deadline.
func (s *sim) drain(node string, within time.Duration, force bool) {
	d := &record.Draining{Since: s.now, Force: force}
	if within > 0 {
		d.Deadline = s.now.Add(within)
	}
	s.commit(store.Put(record.Key(record.NodeSpecs, node), marshal(s.t, record.NodeSpec{Drain: true, Cordoned: true, Draining: d})))
}

// evict asks for tasks to be moved.
func (s *sim) evict(patterns ...string) {
	s.t.Helper()
	for _, p := range patterns {
		for _, t := range s.tasks("") {
			if ok, err := filepath.Match(p, s.alias(t.ID)); err != nil {
				s.t.Fatal(err)
			} else if ok {
				s.commit(store.Put(record.Key(record.Evictions, t.Node, t.ID), marshal(s.t, record.Eviction{At: s.now})))
			}
		}
	}
}

// scaled is what an autoscaler writes.
func (s *sim) scaled(name string, n int) {
	s.commit(store.Put(record.Key(record.Scales, "default", name), marshal(s.t, record.Scale{Created: epoch, Replicas: n, Reason: "metrics", At: s.now})))
}

// serving is how many tasks of a service serve.
func (s *sim) serving(service string) (n int) {
	for _, t := range s.tasks(service) {
		if s.serves(t) {
			n++
		}
	}
	return n
}

// TestDrainsTogether drains every set of nodes at once, for every small service
// and every budget, with the agents answering in every order of a few, and holds
// that no fewer tasks serve than the budget says, and that the drains come to
// an end where there is somewhere to go, or the budget allows to be fewer.
func TestDrainsTogether(t *testing.T) {
	cases := 0
	for replicas := 1; replicas <= 4; replicas++ {
		for _, stopFirst := range []bool{false, true} {
			for available := -1; available <= replicas; available++ { // -1 is no budget
				for drained := 1; drained < 1<<3; drained++ {
					for order := range 3 {
						cases++
						drainTogether(t, replicas, stopFirst, available, drained, order)
					}
				}
			}
		}
	}
	if cases < 500 {
		t.Fatalf("%d cases, want all", cases)
	}
}

func drainTogether(t *testing.T, replicas int, stopFirst bool, available, drained, order int) {
	t.Helper()
	s := newSim(t)
	p := watch(s)
	for i := range 3 {
		s.node(fmt.Sprintf("n%d", i), 1000)
	}
	sp := spec{Replicas: replicas, Image: "v1", Memory: 100, Update: control.Update{StopFirst: stopFirst, Monitor: time.Second}}
	if available >= 0 {
		sp.Budget = &control.Budget{Amount: control.Amount(available)}
	}
	s.apply("web", sp)
	s.plan()
	for _, task := range s.tasks("web") {
		s.report(task, record.Ready, nil)
	}
	s.pass(time.Minute)
	for i := range 3 {
		if drained&(1<<i) != 0 {
			s.drain(fmt.Sprintf("n%d", i), 0, false)
		}
	}
	s.plan()
	floor := replicas
	switch {
	case available >= 0:
		floor = available
	case stopFirst:
		floor = replicas - 1
	}
	name := fmt.Sprintf("%d replicas, stop first %v, budget %d, nodes %03b drained, order %d", replicas, stopFirst, available, drained, order)
	for step := range 60 {
		if n := s.serving("web"); n < floor {
			t.Fatalf("%s: %d serve, want at least %d\n%s", name, n, floor, strings.Join(s.log, "\n"))
		}
		// One agent at a time says one thing, in one of several orders.
		tasks := s.tasks("web")
		for i := range tasks {
			task := tasks[(i*(order+1)+step)%len(tasks)]
			st, _ := s.status(task)
			if task.Stop != nil && !st.State.Final() {
				s.report(task, record.Stopped, nil)
				break
			}
			if task.Stop == nil && st.State != record.Ready {
				s.report(task, record.Ready, nil)
				break
			}
		}
		s.plan()
		s.forgetStatuses()
		s.pass(time.Second)
		if p.broken != "" {
			t.Fatalf("%s: %s\n%s", name, p.broken, strings.Join(s.log, "\n"))
		}
	}
	left := 0
	for _, task := range s.tasks("web") {
		var i int
		fmt.Sscanf(task.Node, "n%d", &i)
		if drained&(1<<i) != 0 {
			left++
		}
	}
	somewhere := drained != 7
	blocked := stopFirst && available == replicas
	switch {
	case left > 0 && somewhere && !blocked:
		t.Fatalf("%s: %d tasks are left on drained nodes\n%s", name, left, strings.Join(s.log, "\n"))
	case left > floor && !somewhere && available >= 0:
		t.Fatalf("%s: %d tasks are left, want no more than the budget keeps, %d\n%s", name, left, floor, strings.Join(s.log, "\n"))
	}
}

// TestDrainsAtRandom drains, evicts and gives back nodes of larger services in
// any order, with tasks that fail too, and holds that a task that is moved never
// takes a service below its budget.
func TestDrainsAtRandom(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newSim(t)
		s.place = newScheduler(t)
		s.lead()
		p := watch(s)
		nodes := []string{"n1", "n2", "n3", "n4"}
		for _, n := range nodes {
			s.node(n, 500)
		}
		for _, name := range services {
			sp := spec{
				Replicas: rapid.IntRange(1, 8).Draw(rt, "replicas"), Image: "v1", Memory: 100,
				Update: control.Update{StopFirst: rapid.Bool().Draw(rt, "stop first"), Monitor: time.Second},
			}
			switch rapid.IntRange(0, 2).Draw(rt, "budget") {
			case 0:
				sp.Budget = &control.Budget{Amount: control.Amount(-rapid.IntRange(1, 100).Draw(rt, "share"))}
			case 1:
				sp.Budget = &control.Budget{Amount: control.Amount(rapid.IntRange(0, 8).Draw(rt, "down")), Unavailable: true}
			}
			s.apply(name, sp)
		}
		s.plan()
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			tasks := s.tasks("")
			what := []string{"drain", "use", "evict", "answer", "answer", "answer", "answer", "time", "leader"}
			if len(tasks) == 0 {
				what = []string{"use", "time"}
			}
			switch w := rapid.SampledFrom(what).Draw(rt, "what"); w {
			case "drain", "use":
				n := rapid.SampledFrom(nodes).Draw(rt, "node")
				s.printf("> %s %s", w, n)
				if w == "drain" {
					s.drain(n, time.Duration(rapid.SampledFrom([]int{0, 5}).Draw(rt, "deadline"))*time.Second, false)
				} else {
					s.commit(store.Delete(record.Key(record.NodeSpecs, n)))
				}
			case "evict":
				s.evict(s.alias(rapid.SampledFrom(tasks).Draw(rt, "task").ID))
			case "answer":
				h := &history{rt: rt, s: s, nodes: nodes}
				h.task(rapid.SampledFrom(tasks).Draw(rt, "task"))
			case "time":
				s.pass(2 * time.Second)
			case "leader":
				s.lead()
			}
			s.plan()
			s.forgetStatuses()
			if p.broken != "" {
				rt.Fatalf("%s\n%s", p.broken, strings.Join(s.log, "\n"))
			}
		}
	})
}
