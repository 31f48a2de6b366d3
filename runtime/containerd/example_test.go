//go:build linux

package containerd_test

import (
	"context"
	"fmt"
	"log"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
)

// One container of an image from a registry, from its start to its end. It
// needs root, containerd-shim-runc-v2 and runc.
func ExampleOpen() {
	ctx := context.Background()
	rt, err := containerd.Open(containerd.Options{Root: "/var/lib/myapp/runtime"})
	if err != nil {
		log.Fatal(err) // names the program that is missing, if one is
	}
	defer rt.Close() //nolint:errcheck // containers run on
	const image = "docker.io/library/redis:7"
	if _, err := rt.Pull(ctx, image, runtime.PullOptions{}); err != nil {
		log.Fatal(err)
	}
	if err := rt.Start(ctx, runtime.Spec{ID: "redis.1", Image: image}); err != nil {
		log.Fatal(err)
	}
	exit, err := rt.Wait(ctx, "redis.1")
	fmt.Println(exit.Code, err)
}
