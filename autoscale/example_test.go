package autoscale_test

import (
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate/autoscale"
)

// A queue of 10 jobs for each worker, and none of these while there is nothing
// to do.
func ExamplePolicy_Decide() {
	policy := autoscale.Policy{
		Min: autoscale.None, Max: 20,
		Metrics: []autoscale.Metric{{Name: "queue", Average: 10}},
		Down:    autoscale.Rules{Window: time.Minute},
		Idle:    2 * time.Minute,
	}
	in := autoscale.Input{Now: time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC), Current: 1}
	for _, length := range []float64{9, 35, 35, 12, 0, 0, 0} {
		in.Readings = []autoscale.Reading{{Total: length}}
		d := policy.Decide(in)
		fmt.Printf("%s %2.0f jobs: %d workers, %s: %s\n", in.Now.Format("15:04:05"), length, d.Replicas, d.Reason, d.Message)
		in.Now, in.Current, in.History = in.Now.Add(45*time.Second), d.Replicas, d.History
	}
	// Output:
	// 12:00:00  9 jobs: 1 workers, tolerance: queue is 9 of 10, which asks for 1
	// 12:00:45 35 jobs: 4 workers, metrics: queue is 35 of 10, which asks for 4
	// 12:01:30 35 jobs: 4 workers, tolerance: queue is 8.75 of 10, which asks for 4
	// 12:02:15 12 jobs: 4 workers, stabilizing: queue is 3 of 10, which asks for 2; the most of the last 1m0s is 4
	// 12:03:00  0 jobs: 2 workers, stabilizing: queue is 0 of 10, which asks for 0; the most of the last 1m0s is 2
	// 12:03:45  0 jobs: 1 workers, minimum: queue is 0 of 10, which asks for 0; at least 1 are to be
	// 12:04:30  0 jobs: 0 workers, idle: no metric was above its activation for 2m15s
}
