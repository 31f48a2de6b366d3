package node_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// TestTasksOutliveOutages takes away the store from a node, or the control plane
// from the fleet, for a minute and for a day, with containers that crash meanwhile:
// the agent restarts them, and afterwards the same tasks are there, not others.
func TestTasksOutliveOutages(t *testing.T) {
	for _, what := range []string{"store", "control plane"} {
		for _, d := range []time.Duration{time.Minute, 24 * time.Hour} {
			t.Run(what+" for "+d.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := newMachine(t)
					c := newCable(m.store)
					m.agentStore = c
					m.agent()
					s := web(3)
					s.Restart.Backoff, s.Restart.MaxBackoff, s.Restart.Attempts = 100*time.Millisecond, 100*time.Millisecond, -1
					m.apply(s)
					m.wait("web", orchestrate.RolloutCompleted)
					ids := func() map[string]int {
						tasks, err := m.fleet.Tasks(context.Background(), "web")
						if err != nil {
							t.Fatal(err)
						}
						out := map[string]int{}
						for _, task := range tasks {
							if task.State != orchestrate.Ready {
								t.Errorf("%s is %s, want ready", task.ID, task.State)
							}
							out[task.ID] = task.Restarts
						}
						return out
					}
					before := ids()

					if what == "store" {
						c.set(true)
					} else if err := m.fleet.Close(); err != nil {
						t.Fatal(err)
					}
					const crashes = 6
					for range crashes {
						time.Sleep(d / (crashes + 1))
						m.runtime.Crash(m.containers()[0].ID, 1)
						time.Sleep(time.Second)
						for _, c := range m.containers() {
							if c.State != runtime.Running {
								t.Fatalf("%s is %s a second after it crashed, want it restarted", c.ID, c.State)
							}
						}
					}
					time.Sleep(d / (crashes + 1))

					if what == "store" {
						c.set(false)
					} else {
						next, err := orchestrate.New(m.store, orchestrate.WithLogger(logger()))
						if err != nil {
							t.Fatal(err)
						}
						m.fleet = next
						done := make(chan error, 1)
						go func() { done <- next.Run(context.Background()) }()
						defer func() {
							if err := next.Close(); err != nil {
								t.Error(err)
							}
							if err := <-done; err != nil {
								t.Error(err)
							}
						}()
					}
					time.Sleep(time.Minute)
					after := ids()
					restarts := 0
					for id, n := range after {
						if _, same := before[id]; !same {
							t.Errorf("%s has taken the place of another, want the tasks of before", id)
						}
						restarts += n
					}
					if len(after) != len(before) || restarts != crashes {
						t.Errorf("%d tasks with %d restarts, want %d with %d", len(after), restarts, len(before), crashes)
					}
				})
			})
		}
	}
}
