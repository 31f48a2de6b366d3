package orchestrate_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// What if: a node or a zone dies, the load doubles, a revision is applied, a cron
// job's time comes, one at a time and together, of services of every kind.
func TestWhatIfOfEveryKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, s := openCrons(t)
		for _, id := range []string{"n2", "n3"} {
			addNode(t, s, id)
		}
		synctest.Wait()
		work(rt, 1000*time.Hour, ok)
		for id, zone := range map[string]string{"n1": "a", "n2": "b", "n3": "b"} {
			labels := store.Put(record.NodeSpecs+id, []byte(`{"labels": {"zone": "`+zone+`"}}`))
			if _, err := s.Commit(t.Context(), store.Txn{Writes: []store.Write{labels}}); err != nil {
				t.Fatal(err)
			}
		}
		web, db, logs := sized("web", 6, 1<<30), sized("db", 3, 1<<20), sized("logs", 0, 1<<20)
		db.Stateful, logs.Mode = &orchestrate.Stateful{}, orchestrate.Global
		crunch, nightly := heavyJob("crunch", 3, 3), heavyCron("nightly", "0 2 * * *", 1<<30)
		mustApply(t, f, web, db, logs, crunch, nightly)
		for _, name := range []string{"web", "db", "logs"} {
			mustEnd(t, f, name, orchestrate.RolloutCompleted)
		}
		synctest.Wait()
		before := everySpec(t, s) + fmt.Sprint(placements(t, f, "web"), placements(t, f, "crunch"))

		next := sized("web", 6, 1<<30)
		next.Containers[0].Image = "img:2"
		for _, c := range []struct {
			what  string
			of    []orchestrate.What
			wants map[string]string // by service: action=count, ...
			took  time.Duration     // at least
		}{
			{"a node dies", []orchestrate.What{orchestrate.NodesDie("n2")},
				map[string]string{"web": "move=2", "db": "move=1", "logs": "", "crunch": "move=1"}, 30 * time.Second},
			{"a zone dies", []orchestrate.What{orchestrate.ZoneDies("zone", "b")},
				map[string]string{"web": "move=2 unplaced=2", "db": "move=2", "crunch": "move=2"}, time.Minute},
			{"the load doubles", []orchestrate.What{orchestrate.LoadGrows(2)},
				map[string]string{"web": "start=6", "db": "start=3", "logs": ""}, 0},
			{"a revision is applied", []orchestrate.What{orchestrate.Applied(next)},
				map[string]string{"web": "replace+move=6", "db": "", "logs": ""}, 0},
			{"a revision is applied, its load grows, a node dies and a run comes", []orchestrate.What{
				orchestrate.Applied(next), orchestrate.LoadGrows(1.5, "web"), orchestrate.NodesDie("n3"), orchestrate.CronRuns("nightly")},
				map[string]string{"web": "revision=2 start=3", "nightly": "start=1", "crunch": "move=1"}, 30 * time.Second},
			{"what follows the nodes is drained", []orchestrate.What{orchestrate.NodesDrain("n3")},
				map[string]string{"web": "move=2", "db": "move=1", "logs": "stop=1", "crunch": "move=1"}, 0},
		} {
			forecast, err := f.WhatIf(t.Context(), c.of...)
			if err != nil {
				t.Fatal(err)
			}
			for name, wants := range c.wants {
				var got orchestrate.PlannedService
				for _, svc := range forecast.Services {
					if svc.Service == "default/"+name || strings.HasPrefix(svc.Service, "default/"+name+"-") {
						got = svc
					}
				}
				count := map[string]int{"unplaced": 0, "revision": int(got.Revision)}
				if got.Unplaced != nil {
					count["unplaced"] = got.Unplaced.Unplaced
				}
				for _, task := range got.Tasks {
					count[string(task.Action)]++
				}
				count["replace+move"] = count["replace"] + count["move"]
				for _, want := range strings.Fields(wants) {
					if what, n, _ := strings.Cut(want, "="); fmt.Sprint(count[what]) != n {
						t.Errorf("if %s, of %s it is %v; want %s\n%s", c.what, name, count, want, forecast)
					}
				}
				if wants == "" && len(got.Tasks) > 0 {
					t.Errorf("if %s, of %s it is %v; want nothing\n%s", c.what, name, count, forecast)
				}
			}
			if forecast.Took < c.took {
				t.Errorf("if %s, it takes %v, want at least %v", c.what, forecast.Took, c.took)
			}
		}
		if after := everySpec(t, s) + fmt.Sprint(placements(t, f, "web"), placements(t, f, "crunch")); after != before {
			t.Errorf("after all that was supposed there is\n%s\nwant\n%s", after, before)
		}
	})
}
