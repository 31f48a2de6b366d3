package orchestrate_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// Everything that has a name can be asked why nothing, or not all, of it runs.
func TestWhyOfEveryKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, s := openCrons(t)
		addNode(t, s, "n2")
		synctest.Wait()
		work(rt, 100*time.Hour, ok)
		why := func(subject, kind string) *orchestrate.Explanation {
			t.Helper()
			synctest.Wait()
			x, err := f.Why(t.Context(), subject)
			if err != nil {
				t.Fatal(err)
			}
			if x.Kind != kind {
				t.Fatalf("%s is a %q, want a %q\n%s", subject, x.Kind, kind, x)
			}
			return x
		}
		kinds := func(x *orchestrate.Explanation) (kinds []orchestrate.EventKind) {
			for _, e := range x.Events {
				kinds = append(kinds, e.Kind)
			}
			return kinds
		}
		unplaced := func(x *orchestrate.Explanation, filter string) {
			t.Helper()
			if x.Unplaced == nil || x.Blocked == "" || !slices.ContainsFunc(x.Unplaced.Refused, func(r scheduler.Refusal) bool { return r.Filter == filter }) {
				t.Errorf("explained is\n%swant that %s refused it, have %+v", x, filter, x.Unplaced)
			}
		}

		// A job: without room, suspended, waiting, removed.
		j := heavyJob("sums", 3, 3)
		j.Containers[0].Resources.Memory = 7 << 30
		mustApply(t, f, j)
		unplaced(why("sums", orchestrate.KindJob), scheduler.FilterMemory)
		if err := f.SuspendJob(t.Context(), "sums"); err != nil {
			t.Fatal(err)
		}
		if x := why("default/sums", orchestrate.KindJob); x.Blocked != "it is suspended" || x.Unplaced != nil {
			t.Errorf("explained is\n%swant that it is suspended", x)
		}
		if err := f.Remove(t.Context(), "sums"); err != nil {
			t.Fatal(err)
		}
		if x := why("sums", orchestrate.KindJob); !slices.Contains(kinds(x), orchestrate.JobGone) {
			t.Errorf("explained is\n%swant that it was removed", x)
		}
		time.Sleep(time.Minute)
		j = aJob("later", 1, 1)
		j.DependsOn = []orchestrate.Dependency{on("db")}
		mustApply(t, f, j)
		if x := why("later", orchestrate.KindJob); len(x.WaitsFor) != 1 || !strings.Contains(x.String(), "it waits: service default/db does not exist") {
			t.Errorf("explained is\n%swant that it waits for db", x)
		}
		j = aJob("brief", 1, 1)
		j.Deadline = time.Second
		mustApply(t, f, j)
		mustEndJob(t, f, "brief", orchestrate.JobFailed)
		if x := why("brief", orchestrate.KindJob); !slices.Equal(kinds(x), []orchestrate.EventKind{orchestrate.JobApplied, orchestrate.JobStarted, orchestrate.JobStopped}) {
			t.Errorf("explained is\n%swant that it was applied, began and failed", x)
		}

		// A global service: of each node why it has no task.
		mustApply(t, f, sized("filler", 7, 1<<30))
		mustEnd(t, f, "filler", orchestrate.RolloutCompleted)
		logs := sized("logs", 0, 5<<30)
		logs.Mode = orchestrate.Global
		mustApply(t, f, logs)
		x := why("logs", orchestrate.KindService)
		if len(x.Lacks) != 1 || !strings.Contains(x.Lacks[0].Why, "needs 5 GiB") {
			t.Errorf("the nodes without a task are %+v, want one without the memory\n%s", x.Lacks, x)
		}
		unplaced(x, scheduler.FilterMemory)
		nowhere := service("nowhere", 0)
		nowhere.Mode, nowhere.Placement.Constraints = orchestrate.Global, []string{"node.labels.disk == ssd"}
		mustApply(t, f, nowhere)
		if err := f.Cordon(t.Context(), "n2"); err != nil {
			t.Fatal(err)
		}
		x = why("nowhere", orchestrate.KindService)
		want := []orchestrate.Lack{{"n1", "does not satisfy node.labels.disk == ssd"}, {"n2", "is cordoned"}}
		if !slices.Equal(x.Lacks, want) || !strings.Contains(x.String(), "no task on n1: it does not satisfy") {
			t.Errorf("the nodes without a task are %+v, want %+v\n%s", x.Lacks, want, x)
		}

		// A cron job: suspended, held up by its own run, and with a run without room.
		c := heavyCron("nightly", "* * * * *", 1<<20)
		c.Suspend, c.Concurrency = true, orchestrate.ForbidConcurrent
		mustApply(t, f, c)
		if x := why("nightly", orchestrate.KindCronJob); x.Blocked != "it is suspended" || !slices.Equal(kinds(x), []orchestrate.EventKind{orchestrate.CronApplied}) {
			t.Errorf("explained is\n%swant that it is suspended", x)
		}
		c.Suspend = false
		mustApply(t, f, c)
		time.Sleep(3 * time.Minute)
		if x := why("nightly", orchestrate.KindCronJob); !strings.HasPrefix(x.Blocked, "its next run waits for the end of default/nightly-") || x.Unplaced != nil {
			t.Errorf("explained is\n%swant that a run goes on", x)
		}
		large := heavyCron("large", "* * * * *", 1<<50)
		mustApply(t, f, large)
		time.Sleep(time.Minute)
		x = why("large", orchestrate.KindCronJob)
		unplaced(x, scheduler.FilterMemory)
		if !strings.Contains(x.Blocked, "its run default/large-") {
			t.Errorf("explained is\n%swant which run has no place", x)
		}
		if _, err := f.Why(t.Context(), "nobody"); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("why nobody: %v, want not found", err)
		}
	})
}
