package health_test

import (
	"context"
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate/health"
)

// A custom checker, and one target whose status is reported.
func Example() {
	reports := make(chan health.Result, 1)
	m := health.NewMonitor(health.Options{
		Checkers: map[string]health.Checker{
			"queue": health.CheckerFunc(func(ctx context.Context, t health.Target, c health.Check) error {
				return fmt.Errorf("the queue is longer than %s", c.Custom.Params["limit"])
			}),
		},
		Report: func(r health.Result) { reports <- r },
	})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()

	m.Add(health.Target{ID: "worker.1"}, health.Check{
		Custom:   &health.Custom{Name: "queue", Params: map[string]string{"limit": "100"}},
		Interval: 10 * time.Millisecond, Failures: 2,
	})
	r := <-reports
	fmt.Printf("%s is %s after %d probes: %v\n", r.Target, r.Status, r.Probes, r.Reason)
	stop()
	<-ended
	// Output: worker.1 is unhealthy after 2 probes: the queue is longer than 100
}

// The three probes of a container decide together.
func ExampleGate() {
	web := &health.Check{HTTP: &health.HTTP{Port: 80}}
	g := health.Probes{Startup: web, Readiness: web}.Begin()
	fmt.Println(g.Active(), g.Ready())
	g = g.Observe(health.Startup, health.Healthy)
	fmt.Println(g.Active(), g.Ready())
	g = g.Observe(health.Readiness, health.Healthy)
	fmt.Println(g.Ready())
	// Output:
	// [startup] false
	// [readiness] false
	// true
}

func ExampleCheck_Validate() {
	for _, mistake := range (health.Check{HTTP: &health.HTTP{Path: "ready"}}).Validate() {
		fmt.Println(mistake.Field)
	}
	// Output:
	// http.port
	// http.path
}
