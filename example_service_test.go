package orchestrate_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/autoscale"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

// A service is a Go value. What is left away has a default.
func ExampleService() {
	web := orchestrate.Service{
		Name:     "web",
		Replicas: 3,
		Template: orchestrate.Template{
			Containers: []orchestrate.Container{{
				Image:     "registry.example/web:1",
				Env:       map[string]string{"MODE": "live"},
				Resources: orchestrate.Resources{CPULimit: orchestrate.Core / 2, MemoryLimit: 256 * orchestrate.MiB},
				Mounts:    []orchestrate.Mount{{Target: "/data", Volume: "data"}},
				Readiness: &health.Check{HTTP: &health.HTTP{Port: 8080, Path: "/ready"}, Interval: 2 * time.Second},
			}},
			Ports: []orchestrate.Port{{Port: 8080, Virtual: 80, Published: 80}},
		},
	}
	if err := web.Validate(); err != nil {
		fmt.Println(err)
	}
	stored := web.WithDefaults()
	fmt.Println(stored.Namespace, stored.Networks, stored.Containers[0].Name, stored.StopGrace)
	// Output: default [default] main 10s
}

// Every mistake is named at once, with its place and what would be right.
func ExampleService_Validate() {
	err := orchestrate.Service{
		Name: "Web",
		Template: orchestrate.Template{
			Containers: []orchestrate.Container{{
				Image:     "web:",
				Resources: orchestrate.Resources{MemoryLimit: 512},
				Mounts:    []orchestrate.Mount{{Target: "data/", Volume: "data"}},
			}},
			Ports: []orchestrate.Port{{Port: 80}, {Port: 80}},
		},
	}.Validate()
	fmt.Println(err)

	var invalid *orchestrate.ValidationError
	if errors.As(err, &invalid) {
		fmt.Println(len(invalid.Problems), invalid.Problems[3].Path)
	}
	// Output:
	// service "default/Web" has 5 mistakes:
	//   name: "Web" is not a DNS label; use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at the ends
	//   containers[0].image: "web:" has the tag ""; a tag is 1 to 128 of the characters A-Z a-z 0-9 _ . - and begins with none of the last two
	//   containers[0].resources.memoryLimit: 512 is too little to start in; the unit is bytes, and the least is 6291456
	//   containers[0].mounts[0].target: "data/" is not absolute; give a path in the container that begins with /
	//   ports[1].port: 80 is the second tcp port 80 at the virtual address, after ports[0].port; give it another virtual port
	// 5 containers[0].mounts[0].target
}

// Specs can come from JSON, which is read strictly.
func ExampleDecodeService() {
	_, err := orchestrate.DecodeService([]byte(`{
		"name": "web",
		"containers": [{"image": "web:1", "comand": ["serve"]}],
		"stopGrace": "30"
	}`))
	fmt.Println(err)

	web, err := orchestrate.DecodeService([]byte(`{
		"name": "web",
		"containers": [{"image": "web:1", "command": ["serve"]}],
		"stopGrace": "30s"
	}`))
	fmt.Println(web.Containers[0].Command, web.StopGrace, err)
	// Output:
	// service "default/web" has 2 mistakes:
	//   containers[0].comand: is not a field; did you mean "command"?
	//   stopGrace: "30" is not a duration; write such as "10s" or "1m30s"
	// [serve] 30s <nil>
}

// Diff says what an Apply would change.
func ExampleDiff() {
	web := orchestrate.Service{Name: "web", Template: orchestrate.Template{
		Containers: []orchestrate.Container{{Image: "web:1"}},
	}}
	next := web.WithDefaults()
	next.Replicas = 3
	next.Containers[0].Image = "web:2"
	next.Containers[0].Env = map[string]string{"MODE": "live"}
	for _, change := range orchestrate.Diff(web, next) {
		fmt.Println(change)
	}
	fmt.Println("tasks are replaced:", web.Hash() != next.Hash())
	// Output:
	// replicas: 1 → 3
	// containers["main"].image: "web:1" → "web:2"
	// containers["main"].env["MODE"]: added "live"
	// tasks are replaced: true
}

// A queue's workers: none while it is empty, then one for every 10 jobs, up to
// 20. The fleet that leads is given the metric with [orchestrate.WithMetric].
func ExampleWithMetric() {
	queue := orchestrate.WithMetric("queue", func(ctx context.Context, service string) (float64, error) {
		return 35, nil // such as what a broker says
	})
	workers := orchestrate.Service{
		Name: "worker", Replicas: orchestrate.None,
		Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: "worker:1"}}},
		Autoscale: &autoscale.Policy{
			Min: orchestrate.None, Max: 20,
			Metrics: []autoscale.Metric{{Name: "queue", Average: 10}},
			Down:    autoscale.Rules{Window: time.Minute, Limits: []autoscale.Limit{{Percent: 50, Period: time.Minute}}},
			Idle:    10 * time.Minute,
		},
	}
	fleet, err := orchestrate.New(memory.New(memory.Options{}), queue)
	if err != nil {
		panic(err)
	}
	if err := fleet.Apply(context.Background(), workers); err != nil {
		panic(err)
	}
	workers.Autoscale.Metrics[0].Name = "cue"
	fmt.Println(fleet.Apply(context.Background(), workers))
	fmt.Println(fleet.Scale(context.Background(), "worker", 3))

	// Output:
	// service "default/worker": autoscale.metrics[0].name: "cue" is no metric: no function is registered under that name; see WithMetric
	// service default/worker is scaled by its policy, from 0 to 20 tasks; apply it with other bounds, or without Autoscale
}
