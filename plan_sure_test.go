package orchestrate_test

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/orchestrate-go/orchestrate"
)

// A plan says when it depends on who comes first, and of which tasks.
func TestPlanSaysHowSureItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		addNode(t, s, "n2")
		synctest.Wait()
		mustApply(t, f, sized("a", 3, 1<<30), sized("b", 3, 1<<30))
		mustEnd(t, f, "a", orchestrate.RolloutCompleted)
		mustEnd(t, f, "b", orchestrate.RolloutCompleted)
		next := func(name string, parallelism orchestrate.Amount) orchestrate.Service {
			svc := sized(name, 3, 1<<30)
			svc.Containers[0].Image, svc.Update.Parallelism = "img:2", parallelism
			return svc
		}
		for _, c := range []struct {
			what    string
			objects []orchestrate.Object
			sure    bool
			likely  int // tasks, at least
		}{
			{"one is scaled", []orchestrate.Object{sized("a", 5, 1<<30)}, true, 0},
			{"one is updated, a task at a time", []orchestrate.Object{next("a", "1")}, true, 0},
			{"two are scaled", []orchestrate.Object{sized("a", 4, 1<<30), sized("b", 2, 1<<30)}, true, 0},
			{"one goes, another comes", []orchestrate.Object{orchestrate.Removal{Name: "a"}, sized("c", 2, 1<<30)}, true, 0},
			{"two are updated", []orchestrate.Object{next("a", "1"), next("b", "1")}, false, 2},
			{"one goes, another needs its room", []orchestrate.Object{orchestrate.Removal{Name: "a"}, sized("c", 12, 1<<30)}, false, 1},
			{"one is updated while another goes", []orchestrate.Object{next("a", "1"), orchestrate.Removal{Name: "b"}}, false, 2},
		} {
			p := mustPlan(t, f, c.objects...)
			likely := 0
			for _, s := range p.Services {
				for _, task := range s.Tasks {
					if task.Likely {
						likely++
					}
				}
			}
			if p.Approximate == c.sure || likely < c.likely || c.sure && likely > 0 || c.sure == strings.Contains(p.String(), "(~)") {
				t.Errorf("%s: planned is, with %d tasks that are likely, approximate %v\n%s", c.what, likely, p.Approximate, p)
			}
		}
	})
}
