package control_test

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// A plan is a value: what to write, why, and when to plan again.
func ExampleState_Plan() {
	sched, err := scheduler.New(scheduler.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	state := control.NewState(control.Config{
		Place: sched,
		Decode: func(namespace, name string, rec record.Service, _ *record.Revision) (control.Workload, error) {
			return control.Workload{Replicas: 2, Hash: rec.Hash, Revision: rec.Revision}, nil
		},
	})
	node, err := json.Marshal(record.Node{Node: scheduler.Node{ID: "n1", Ready: true}})
	if err != nil {
		fmt.Println(err)
		return
	}
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	state.Load(store.Snapshot{Revision: 7, Items: []store.Item{
		{Key: "/alive/n1"},
		{Key: "/nodes/n1", Value: node},
		{Key: "/services/default/web", Value: []byte(`{"hash": "v1", "revision": 1}`), Revision: 7},
	}}, now)

	plan := state.Plan(now)
	for _, e := range plan.Events {
		fmt.Println(e.Kind, e.Service)
	}
	fmt.Println("again in", plan.Wake.Sub(now))
	// Output:
	// rollout-started web
	// task-placed web
	// task-placed web
	// again in 10m0s
}
