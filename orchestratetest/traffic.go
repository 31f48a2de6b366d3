package orchestratetest

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/autoscale"
)

// Daily is a load that goes up and down once a day, between low at the begin and
// high twelve hours later.
func Daily(low, high float64) Load {
	return func(since time.Duration) float64 {
		return low + (high-low)*(1-math.Cos(2*math.Pi*since.Hours()/24))/2
	}
}

// Constant is a load that stays the same.
func Constant(x float64) Load { return func(time.Duration) float64 { return x } }

// load is that of a service, NAMESPACE/NAME.
func (w *world) load(service string) (float64, bool) {
	for name, load := range w.scenario.Traffic {
		if qualified(name) == service {
			return load(w.since()), true
		}
	}
	return 0, false
}

// trafficOptions give the autoscalers of a control plane the load to go by.
func (w *world) trafficOptions() []orchestrate.Option {
	if len(w.scenario.Traffic) == 0 {
		return nil
	}
	return []orchestrate.Option{orchestrate.WithMetric(autoscale.Requests, func(_ context.Context, service string) (float64, error) {
		x, ok := w.load(service)
		if !ok {
			return 0, fmt.Errorf("orchestratetest: the scenario has no Traffic for %s", service)
		}
		return x, nil
	})}
}
