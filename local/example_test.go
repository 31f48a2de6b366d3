//go:build linux

package local_test

import (
	"context"
	"fmt"
	"log"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/local"
)

// Three replicas on real containers, published on port 80 of this machine. It
// needs root, containerd-shim-runc-v2 and runc.
func ExampleOpen() {
	ctx := context.Background()
	fleet, err := local.Open("/var/lib/myapp")
	if err != nil {
		log.Fatal(err)
	}
	defer fleet.Close() //nolint:errcheck // containers run on
	err = fleet.Apply(ctx, orchestrate.Service{
		Name: "web", Replicas: 3,
		Template: orchestrate.Template{
			Containers: []orchestrate.Container{{Image: "docker.io/library/nginx:1"}},
			Ports:      []orchestrate.Port{{Port: 80, Published: 80}},
		},
	})
	if err != nil {
		log.Fatal(err) // names every mistake in the service
	}
	result, err := fleet.Wait(ctx, "web")
	fmt.Println(result, err)
}
