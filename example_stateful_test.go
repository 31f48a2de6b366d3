package orchestrate_test

import (
	"fmt"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/volume"
)

// A database: three slots, db-0 to db-2, each with a volume of its own that
// follows it and goes when the slot does.
func ExampleStateful() {
	db := orchestrate.Service{
		Name:     "db",
		Replicas: 3,
		Stateful: &orchestrate.Stateful{WhenScaled: orchestrate.DeleteVolumes},
		Template: orchestrate.Template{
			Containers: []orchestrate.Container{{
				Image:  "registry.example/db:1",
				Mounts: []orchestrate.Mount{{Target: "/data", Volume: "data"}},
			}},
			SlotVolumes: []volume.Volume{{Name: "data", Size: 10 * orchestrate.GiB}},
			Ports:       []orchestrate.Port{{Port: 5432}},
		},
	}
	fmt.Println(db.Validate())
	// What cannot be: two tasks of a slot at a time.
	db.Update.Order = orchestrate.StartFirst
	fmt.Println(db.Validate())
	// Output:
	// <nil>
	// service "default/db": update.order: "start-first" runs two tasks of a slot at a time, but a stateful service runs it at most once; use "stop-first"
}

// A log shipper on every machine with a disk.
func ExampleMode() {
	logs := orchestrate.Service{
		Name: "logs",
		Mode: orchestrate.Global,
		Template: orchestrate.Template{
			Containers: []orchestrate.Container{{Image: "registry.example/shipper:3"}},
			Placement:  orchestrate.Placement{Constraints: []string{"node.labels.disk exists"}},
		},
	}
	fmt.Println(logs.Validate())
	// Output: <nil>
}
