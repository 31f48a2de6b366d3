package control_test

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// Whatever comes and goes, a service whose tasks make room for more important ones
// keeps as many that serve as its budget says.
func TestPreemptionAsksTheBudget(t *testing.T) {
	sched, err := scheduler.New(scheduler.Options{Preempt: true})
	if err != nil {
		t.Fatal(err)
	}
	preempted := 0
	rapid.Check(t, func(rt *rapid.T) {
		s := newSim(t)
		s.place = sched
		s.lead()
		p := watch(s)
		for _, n := range []string{"n1", "n2", "n3"} {
			s.node(n, 600)
		}
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"apply", "apply", "ready", "ready", "fail", "wait", "drain", "silent", "leader"}).Draw(rt, "what") {
			case "apply":
				i := rapid.IntRange(0, 2).Draw(rt, "service")
				sp := spec{
					Replicas: rapid.IntRange(0, 7).Draw(rt, "replicas"), Image: "v1", Memory: rapid.SampledFrom([]int64{100, 200, 250}).Draw(rt, "memory"),
					Priority: int32(i), Update: control.Update{Parallelism: 1, Monitor: time.Second, ProgressDeadline: time.Minute},
				}
				if rapid.IntRange(0, 3).Draw(rt, "budget") > 0 {
					sp.Budget = &control.Budget{Amount: rapid.SampledFrom([]control.Amount{1, 2, -50, -100}).Draw(rt, "amount"), Unavailable: rapid.Bool().Draw(rt, "down")}
				}
				s.apply([]string{"low", "middle", "high"}[i], sp)
			case "ready":
				for _, task := range s.tasks("") {
					if st, _ := s.status(task); !st.State.Final() && task.Stop == nil && st.State != record.Ready {
						s.report(task, record.Ready, nil)
					} else if !st.State.Final() && task.Stop != nil {
						s.report(task, record.Stopped, nil)
					}
				}
			case "fail":
				if tasks := s.tasks(""); len(tasks) > 0 {
					task := rapid.SampledFrom(tasks).Draw(rt, "task")
					if st, _ := s.status(task); !st.State.Final() {
						s.report(task, record.Failed, &record.Failure{Kind: record.FailedExit, Message: "exit 1"})
					}
				}
			case "wait":
				s.pass(time.Duration(rapid.IntRange(1, 40).Draw(rt, "seconds")) * time.Second)
			case "drain":
				s.drain(rapid.SampledFrom([]string{"n1", "n2"}).Draw(rt, "node"), time.Minute, false)
			case "silent":
				s.play("silent n3")
			case "leader":
				s.lead()
			}
			s.plan()
			s.forgetStatuses()
			if p.broken != "" {
				rt.Fatalf("%s\n%s", p.broken, strings.Join(s.log, "\n"))
			}
		}
		preempted += strings.Count(strings.Join(s.log, "\n"), ": "+record.ReasonPreempted)
	})
	if preempted == 0 {
		t.Error("nothing was preempted in all of it")
	}
}
