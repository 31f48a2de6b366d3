package control_test

import (
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

// Ten thousand replicas of one service change revision, with the loop, the
// scheduler and a store in memory, and agents that pretend, in virtual time.
func TestLoopTenThousandReplicas(t *testing.T) {
	replicas := 10_000
	if testing.Short() && os.Getenv("ORCHESTRATE_LONG") == "" {
		replicas = 2_000
	}
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, memory.New(memory.Options{}), 20)
		update := control.Update{Monitor: time.Second, ProgressDeadline: time.Minute}
		for _, image := range []string{"v1", "v2"} {
			spec := f.apply("web", spec{Replicas: replicas, Image: image, Update: update})
			checkRollout(t, f, "web", f.wait("web", spec), image, replicas)
		}
	})
}
