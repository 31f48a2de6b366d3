package orchestratetest_test

import (
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/orchestratetest"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/storetest"
)

// TestStoreConformance holds the simulated store to what every store promises:
// what a simulation shows of a fleet is worth no more than that.
func TestStoreConformance(t *testing.T) {
	for name, s := range map[string]orchestratetest.Scenario{
		"at once": {},
		"slow":    {Delays: orchestratetest.Delays{Store: 10 * time.Millisecond}},
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, storetest.Harness{
				Open:    func(t testing.TB) store.Store { return orchestratetest.OpenStore(t, s) },
				Virtual: true,
			})
		})
	}
}
