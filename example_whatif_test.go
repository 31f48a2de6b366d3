package orchestrate_test

import (
	"context"
	"fmt"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// inTwoZones are two nodes beside n1, which is in zone a.
var inTwoZones = []scheduler.Node{
	{ID: "n2", Labels: map[string]string{"zone": "b"}, Capacity: scheduler.Resources{CPU: 4 * orchestrate.Core, Memory: 8 * orchestrate.GiB}},
	{ID: "n3", Labels: map[string]string{"zone": "b"}, Capacity: scheduler.Resources{CPU: 4 * orchestrate.Core, Memory: 8 * orchestrate.GiB}},
}

// asked prints what would become of each service.
func asked(fleet *orchestrate.Fleet, what ...orchestrate.What) {
	forecast, err := fleet.WhatIf(context.Background(), what...)
	if err != nil {
		panic(err)
	}
	for _, s := range forecast.Services {
		changed := 0
		for _, task := range s.Tasks {
			if task.To != "" {
				changed++
			}
		}
		fmt.Printf("%s: %d untouched, %d moved or new; everything has a place: %v\n", s.Service, s.Kept, changed, s.Err() == nil)
	}
}

// Can the fleet do without one of its nodes?
func ExampleNodesDie() {
	fleet, stop := inMemory(inTwoZones...)
	defer stop()
	applied(fleet, "alice@example", 12)
	asked(fleet, orchestrate.NodesDie("n3"))
	// Output:
	// default/web: 8 untouched, 4 moved or new; everything has a place: true
}

// And without a zone?
func ExampleZoneDies() {
	fleet, stop := inMemory(inTwoZones...)
	defer stop()
	applied(fleet, "alice@example", 12)
	asked(fleet, orchestrate.ZoneDies("zone", "b"))
	// Output:
	// default/web: 4 untouched, 4 moved or new; everything has a place: false
}

// A revision is rolled out just as the load doubles and a node is taken away: each
// thing is supposed where those before it are.
func ExampleApplied() {
	fleet, stop := inMemory(inTwoZones...)
	defer stop()
	web := applied(fleet, "alice@example", 3)
	web.Containers[0].Image = "web:2"
	asked(fleet, orchestrate.Applied(web), orchestrate.LoadGrows(2, "web"), orchestrate.NodesDrain("n2"))
	// Output:
	// default/web: 0 untouched, 6 moved or new; everything has a place: true
}

// Is there room for the nightly backup when it comes?
func ExampleCronRuns() {
	fleet, stop := inMemory()
	defer stop()
	applied(fleet, "alice@example", 6)
	backup := orchestrate.CronJob{Name: "backup", Schedule: "0 3 * * *", Job: orchestrate.Job{Template: orchestrate.Template{
		Containers: []orchestrate.Container{{Image: "backup:1", Resources: orchestrate.Resources{Memory: 4 * orchestrate.GiB}}},
	}}}
	if err := fleet.Apply(context.Background(), backup); err != nil {
		panic(err)
	}
	forecast, err := fleet.WhatIf(context.Background(), orchestrate.CronRuns("backup"))
	if err != nil {
		panic(err)
	}
	for _, s := range forecast.Services {
		fmt.Println("a run of", s.CronJob, "has no place:", s.Err() != nil)
		for i := range s.Unplaced.Fixes {
			fmt.Println(&s.Unplaced.Fixes[i])
		}
	}
	// Output:
	// a run of default/backup has no place: true
	// free 2 GiB memory on n1
}
