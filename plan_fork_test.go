package orchestrate_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
)

// Any fleet over a store plans alike, whether it leads or not, and has seen all
// that was written before: also after a time in which nobody asked.
func TestEveryFleetPlansAlike(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leader, _, s := open(t)
		addNode(t, s, "n2")
		synctest.Wait()
		other, err := orchestrate.New(s)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		mustApply(t, leader, sized("web", 2, 1<<30))
		mustEnd(t, leader, "web", orchestrate.RolloutCompleted)
		for i := range 6 {
			next := sized("web", 3+i, 1<<30)
			p, q := mustPlan(t, leader, next), mustPlan(t, other, next)
			p.Made, q.Made = time.Time{}, time.Time{}
			if p.String() != q.String() || fmt.Sprint(p.Basis) != fmt.Sprint(q.Basis) {
				t.Fatalf("the fleet that leads plans\n%sthe other\n%s", p, q)
			}
			// What is written is in the next plan at once.
			change := leader.Cordon
			if i%2 == 1 {
				change = leader.Uncordon
			}
			if err := change(t.Context(), "n2"); err != nil {
				t.Fatal(err)
			}
			for _, f := range []*orchestrate.Fleet{leader, other} {
				for _, n := range mustPlan(t, f, next).Nodes {
					if n.Node == "n2" && n.Usable != (i%2 == 1) {
						t.Fatalf("after change %d the plan says usable: %v", i, n.Usable)
					}
				}
			}
			if i == 3 {
				time.Sleep(time.Hour) // nobody follows the store any more
			}
			if err := other.ApplyPlan(t.Context(), mustPlan(t, other, next)); err != nil {
				t.Fatal(err)
			}
			mustEnd(t, leader, "web", orchestrate.RolloutCompleted)
		}
		leader.Close()
		if got := actions(mustPlan(t, other, sized("web", 1, 1<<30)), "web"); got[orchestrate.TaskStops] != 7 {
			t.Errorf("without a leader planned is %v, want 7 stops", got)
		}
	})
}
