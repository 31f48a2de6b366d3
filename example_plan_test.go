package orchestrate_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cron"
	networkmemory "github.com/orchestrate-go/orchestrate/network/memory"
	"github.com/orchestrate-go/orchestrate/node"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/scheduler"
	storememory "github.com/orchestrate-go/orchestrate/store/memory"
)

// inMemory runs a fleet of one node, n1, and those beside it until the returned
// function is called.
func inMemory(beside ...scheduler.Node) (*orchestrate.Fleet, func()) {
	dir, err := os.MkdirTemp("", "fleet")
	if err != nil {
		panic(err)
	}
	store := storememory.New(storememory.Options{})
	fleet, err := orchestrate.New(store, orchestrate.WithSchedules(cron.Parse))
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { fleet.Run(ctx) })
	n1 := scheduler.Node{ID: "n1", Labels: map[string]string{"zone": "a"}, Capacity: scheduler.Resources{CPU: 4 * orchestrate.Core, Memory: 8 * orchestrate.GiB}}
	for _, n := range append([]scheduler.Node{n1}, beside...) {
		network := networkmemory.New(networkmemory.Options{})
		agent, err := node.New(store, node.Options{
			Node: n, Runtime: runtimememory.New(runtimememory.Options{}), Network: network, Namespaces: network, Balancer: network, Dir: filepath.Join(dir, n.ID),
		})
		if err != nil {
			panic(err)
		}
		running.Go(func() { agent.Run(ctx) })
	}
	for { // until they are all there
		nodes, err := fleet.Nodes(ctx)
		if err != nil {
			panic(err)
		}
		if len(nodes) == 1+len(beside) {
			break
		}
	}
	return fleet, func() {
		cancel()
		running.Wait()
		fleet.Close()
		os.RemoveAll(dir)
	}
}

// applied applies web with so many replicas and waits until it runs.
func applied(fleet *orchestrate.Fleet, actor string, replicas int) orchestrate.Service {
	ctx := orchestrate.WithActor(context.Background(), actor)
	web := orchestrate.Service{
		Name: "web", Replicas: replicas,
		Template: orchestrate.Template{Containers: []orchestrate.Container{{
			Image: "web:1", Resources: orchestrate.Resources{CPU: orchestrate.Core / 2, Memory: orchestrate.GiB},
		}}},
		Update: orchestrate.UpdatePolicy{Monitor: -1},
	}
	if err := fleet.Apply(ctx, web); err != nil {
		panic(err)
	}
	if _, err := fleet.Wait(ctx, web.Name); err != nil {
		panic(err)
	}
	return web
}

// What would a change do? The answer is read, approved, and carried out as it
// was read, or not at all.
func ExampleFleet_Plan() {
	ctx := context.Background()
	fleet, stop := inMemory()
	defer stop()
	web := applied(fleet, "alice@example", 2)

	web.Replicas = 3
	plan, err := fleet.Plan(ctx, web)
	if err != nil {
		panic(err)
	}
	fmt.Print(plan)
	if err := fleet.ApplyPlan(ctx, plan); err != nil {
		panic(err)
	}

	// Applied once more it would not do what it says.
	var stale *orchestrate.StalePlanError
	fmt.Println(errors.As(fleet.ApplyPlan(ctx, plan), &stale), stale.Differences)

	// Output:
	// ~ service default/web: in place, the template stays
	//     replicas: 2 → 3
	// default/web: 1 to start, 2 untouched; completed
	//   2  start on n1  wanted, best of 1
	// node    tasks  cpu left      memory left
	// n1      2 → 3  3 → 2.5 of 4  6 GiB → 5 GiB of 8 GiB
	// in all  2 → 3  3 → 2.5 of 4  6 GiB → 5 GiB of 8 GiB
	// takes at least 0s
	// true [service default/web has been changed]
}

// How many more fit? What is there no room for, and what would help?
func ExampleFleet_WhatIf() {
	ctx := context.Background()
	fleet, stop := inMemory()
	defer stop()
	applied(fleet, "alice@example", 6)

	forecast, err := fleet.WhatIf(ctx, orchestrate.LoadGrows(1.5, "web"))
	if err != nil {
		panic(err)
	}
	for _, s := range forecast.Services {
		fmt.Println(s.Err())
	}
	forecast, err = fleet.WhatIf(ctx, orchestrate.LoadGrows(1.5, "web"), orchestrate.NodeJoins(scheduler.Node{
		ID: "n2", Capacity: scheduler.Resources{CPU: 2 * orchestrate.Core, Memory: 4 * orchestrate.GiB},
	}))
	if err != nil {
		panic(err)
	}
	for _, s := range forecast.Services {
		fmt.Println(s.Service, s.Outcome, "with", len(s.Tasks), "more tasks;", s.Err())
	}

	// Output:
	// default/web: 1 of 1 replica not placed: none of 1 node fits
	//   cpu: refused 1 node: n1 has 0 free, needs 500m
	// default/web completed with 3 more tasks; <nil>
}

// Who did this, and why?
func ExampleFleet_Events() {
	ctx := context.Background()
	fleet, stop := inMemory()
	defer stop()
	applied(fleet, "alice@example", 1)
	if err := fleet.Scale(orchestrate.WithActor(ctx, "night-shift"), "web", 0); err != nil {
		panic(err)
	}
	if _, err := fleet.Wait(ctx, "web"); err != nil {
		panic(err)
	}
	events, err := fleet.Events(ctx, orchestrate.EventFilter{Service: "web", Kinds: []orchestrate.EventKind{
		orchestrate.ServiceApplied, orchestrate.TaskPlaced, orchestrate.TaskStopping,
	}})
	if err != nil {
		panic(err)
	}
	for _, e := range events {
		fmt.Println(e.Kind, e.Reason, "by", e.Cause.Actor)
	}

	// An application that was down goes on with the event it saw last.
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	missed, err := fleet.Watch(watching, orchestrate.WatchAfter(events[1].Token), orchestrate.WatchOnly(orchestrate.EventFilter{
		Service: "web", Kinds: []orchestrate.EventKind{orchestrate.TaskStopping},
	}))
	if err != nil {
		panic(err)
	}
	fmt.Println("missed:", (<-missed).Reason)

	// Output:
	// service-applied applied by alice@example
	// task-placed wanted by alice@example
	// service-applied scaled by night-shift
	// task-stopping scaled by night-shift
	// missed: scaled
}
