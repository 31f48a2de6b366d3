package orchestrate_test

import (
	"context"
	"fmt"
	"os"

	"github.com/orchestrate-go/orchestrate"
	networkmemory "github.com/orchestrate-go/orchestrate/network/memory"
	"github.com/orchestrate-go/orchestrate/node"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/scheduler"
	storememory "github.com/orchestrate-go/orchestrate/store/memory"
	volumememory "github.com/orchestrate-go/orchestrate/volume/memory"
)

// A whole fleet in one process, composed of the in-memory drivers. Package
// local composes one of the real ones in the same way.
func ExampleFleet() {
	dir, err := os.MkdirTemp("", "fleet")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	store := storememory.New(storememory.Options{})
	network := networkmemory.New(networkmemory.Options{})
	agent, err := node.New(store, node.Options{
		Node:    scheduler.Node{ID: "n1", Capacity: scheduler.Resources{CPU: 4 * orchestrate.Core, Memory: 8 * orchestrate.GiB}},
		Runtime: runtimememory.New(runtimememory.Options{}),
		Network: network, Namespaces: network, Balancer: network,
		Volumes: new(volumememory.Driver),
		Dir:     dir,
	})
	if err != nil {
		panic(err)
	}
	fleet, err := orchestrate.New(store)
	if err != nil {
		panic(err)
	}
	ended := make(chan error, 2)
	go func() { ended <- agent.Run(ctx) }()
	go func() { ended <- fleet.Run(ctx) }()

	err = fleet.Apply(ctx, orchestrate.Service{
		Name: "web", Replicas: 3,
		Template: orchestrate.Template{
			Containers: []orchestrate.Container{{Image: "web:1"}},
			Ports:      []orchestrate.Port{{Port: 8080, Published: 80}},
		},
		Update: orchestrate.UpdatePolicy{Monitor: -1},
	})
	if err != nil {
		panic(err)
	}
	result, err := fleet.Wait(ctx, "web")
	if err != nil {
		panic(err)
	}
	fmt.Println(result)

	// A wrong spec is refused whole, with every mistake.
	fmt.Println(fleet.Apply(ctx, orchestrate.Service{
		Name:     "Web",
		Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: "web:1", Dir: "data"}}},
	}))
	cancel()
	<-ended
	<-ended

	// Output:
	// service default/web revision 1: completed with 3 of 3 tasks ready
	// service "default/Web" has 2 mistakes:
	//   name: "Web" is not a DNS label; use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at the ends
	//   containers[0].dir: "data" is not absolute; give a path of the working directory that begins with /
}
