package node_test

import (
	"context"
	"fmt"
	"log"

	networks "github.com/orchestrate-go/orchestrate/network/memory"
	"github.com/orchestrate-go/orchestrate/node"
	containers "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/scheduler"
	state "github.com/orchestrate-go/orchestrate/store/memory"
	volumes "github.com/orchestrate-go/orchestrate/volume/memory"
)

// An agent for a machine that exists in memory only. Package local wires one
// for a real machine.
func ExampleNew() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	store := state.New(state.Options{}) // the one that the fleet has
	defer store.Close()                 //nolint:errcheck // in memory
	network := networks.New(networks.Options{})
	agent, err := node.New(store, node.Options{
		Node: scheduler.Node{
			ID:       "n1",
			Capacity: scheduler.Resources{CPU: 4000, Memory: 8 << 30},
		},
		Runtime: containers.New(containers.Options{}),
		Network: network, Namespaces: network, Balancer: network,
		Volumes: &volumes.Driver{},
		Dir:     "/var/lib/myapp/tasks",
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(agent.Run(ctx)) // blocks until ctx ends
}
