package orchestrate_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
)

// The plan of a canary shows the canaries, and the rest once their health has
// promoted them; one that waits for a call ends as waiting, with what runs then.
func TestPlanOfTrials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, _ := open(t)
		web := sized("web", 3, 1<<20)
		mustApply(t, f, web)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		next := func(u orchestrate.UpdatePolicy) *orchestrate.Plan {
			s := sized("web", 3, 1<<20)
			s.Containers[0].Image = "img:2"
			u.Monitor, u.ProgressDeadline = web.Update.Monitor, web.Update.ProgressDeadline
			s.Update = u
			return mustPlan(t, f, s)
		}
		for _, c := range []struct {
			name             string
			update           orchestrate.UpdatePolicy
			starts, replaces int
			kept             int
			waits            bool
			least            time.Duration
		}{
			{"canary by health", orchestrate.UpdatePolicy{Strategy: orchestrate.CanaryUpdate, Canary: orchestrate.Canary{Bake: 2 * time.Hour}}, 0, 3, 0, false, 2 * time.Hour},
			{"canary by a call", orchestrate.UpdatePolicy{Strategy: orchestrate.CanaryUpdate}, 1, 0, 3, true, 0},
			{"two canaries by a call", orchestrate.UpdatePolicy{Strategy: orchestrate.CanaryUpdate, Canary: orchestrate.Canary{Tasks: "2"}}, 2, 0, 3, true, 0},
			{"blue/green by health", orchestrate.UpdatePolicy{Strategy: orchestrate.BlueGreenUpdate, BlueGreen: orchestrate.BlueGreen{Bake: 3 * time.Hour}}, 0, 3, 0, false, 3 * time.Hour},
			{"blue/green by a call", orchestrate.UpdatePolicy{Strategy: orchestrate.BlueGreenUpdate, BlueGreen: orchestrate.BlueGreen{Manual: true}}, 3, 0, 3, true, 0},
		} {
			p := next(c.update)
			s := plannedOf(t, p, "web")
			got := actions(p, "web")
			if got[orchestrate.TaskStarts] != c.starts || got[orchestrate.TaskReplaced] != c.replaces || len(s.Tasks) != c.starts+c.replaces || s.Kept != c.kept {
				t.Errorf("%s: planned is %v with %d kept, want %d starts, %d replaced and %d kept\n%s", c.name, got, s.Kept, c.starts, c.replaces, c.kept, p)
			}
			want := orchestrate.RolloutCompleted
			if c.waits {
				want = orchestrate.RolloutWaiting
			}
			if s.Outcome != want || p.Open != c.waits || p.Took < c.least || c.waits != strings.Contains(p.String(), "and goes on then") {
				t.Errorf("%s: outcome %q after %v, open %v; want %q after at least %v\n%s", c.name, s.Outcome, p.Took, p.Open, want, c.least, p)
			}
		}
	})
}
