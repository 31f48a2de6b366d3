package orchestrate_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cron"
	"github.com/orchestrate-go/orchestrate/runtime"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
)

// diary is which content did the work of which index, "CONTENT INDEX", in the
// order of their ends.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) read() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.lines)
}

// works is a program that notes what it did after life, and ends with code.
func (d *diary) works(content string, life time.Duration, code int) runtimememory.Program {
	return runtimememory.Program{Run: func(ctx context.Context, p *runtimememory.Process) int {
		index := "?"
		for _, v := range p.Spec.Env {
			if s, ok := strings.CutPrefix(v, orchestrate.EnvIndex+"="); ok {
				index = s
			}
		}
		select {
		case <-ctx.Done():
			return 137
		case <-p.Signals:
			return 143
		case <-time.After(life):
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.lines = append(d.lines, content+" "+index)
		return code
	}}
}

func tagJob(name string, completions int) orchestrate.Job {
	j := aJob(name, completions, 1)
	j.Containers[0].Image = appTag
	return j
}

// All tasks of a run do what its tag meant when it began.
func TestJobsArePinned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		var d diary
		one := w.push(appTag, "one", d.works("one", time.Minute, 0))
		mustApply(t, w.Fleet, tagJob("sums", 3))
		time.Sleep(90 * time.Second)
		w.push(appTag, "two", d.works("two", time.Minute, 0))
		asked := w.asked()
		more := tagJob("sums", 3)
		more.Parallelism = 2
		mustApply(t, w.Fleet, more)
		if w.asked() != asked {
			t.Error("an Apply that lets the run go on asked what the tag means")
		}
		mustEndJob(t, w.Fleet, "sums", orchestrate.JobCompleted)
		if got, want := d.read(), []string{"one 0", "one 1", "one 2"}; !slices.Equal(slices.Sorted(slices.Values(got)), want) {
			t.Errorf("the run did %q, want %q", got, want)
		}
		st, err := w.Job(t.Context(), "sums")
		if err != nil || st.Digests[appTag] != one || st.Containers[0].Image != appTag || st.Result.Run != 1 {
			t.Errorf("it is %+v, %v; want the tag as it was applied, what it means, and the first run", st, err)
		}
		// What has completed stays, whatever the tag means by now, and what is
		// begun anew looks again.
		mustApply(t, w.Fleet, more)
		if st, _ := w.Job(t.Context(), "sums"); st.Result.Run != 1 {
			t.Errorf("applied again it is run %d, want the first", st.Result.Run)
		}
		more.Completions = 1
		mustApply(t, w.Fleet, more)
		mustEndJob(t, w.Fleet, "sums", orchestrate.JobCompleted)
		if got := d.read(); got[len(got)-1] != "two 0" {
			t.Errorf("begun anew it did %q, want what the tag means now", got)
		}
	})
}

// A job that failed for its image, and is tried again, runs what the tag means by
// then.
func TestFailedJobLooksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		var d diary
		w.push(appTag, "bad", d.works("bad", time.Second, 1))
		j := tagJob("sums", 1)
		j.Retries = orchestrate.None
		mustApply(t, w.Fleet, j)
		mustEndJob(t, w.Fleet, "sums", orchestrate.JobFailed)
		w.push(appTag, "good", d.works("good", time.Second, 0))
		mustApply(t, w.Fleet, j)
		mustEndJob(t, w.Fleet, "sums", orchestrate.JobCompleted)
		if got, want := d.read(), []string{"bad 0", "good 0"}; !slices.Equal(got, want) {
			t.Errorf("it did %q, want %q", got, want)
		}
	})
}

// While nobody says what a tag means, nothing of a job starts; its deadline holds.
func TestUnresolvedJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		var d diary
		w.push(appTag, "one", d.works("one", time.Second, 0))
		w.down(true)
		j := tagJob("sums", 1)
		j.Deadline = 3 * time.Minute
		late := j
		late.Name = "late"
		mustApply(t, w.Fleet, j)
		time.Sleep(time.Minute)
		st, err := w.Job(t.Context(), "sums")
		if err != nil || st.Result.Outcome != "" || !strings.Contains(st.Result.Unplaced, errDown.Error()) || len(d.read()) != 0 {
			t.Errorf("while the registry is away it is %+v, %v; want it to wait and say why", st.Result, err)
		}
		w.down(false)
		if r := mustEndJob(t, w.Fleet, "sums", orchestrate.JobCompleted); r.Run != 1 || r.Unplaced != "" {
			t.Errorf("%+v; want the first run, for nothing had been started", r)
		}
		w.down(true)
		mustApply(t, w.Fleet, late)
		r := mustEndJob(t, w.Fleet, "late", orchestrate.JobFailed)
		if r.Reason != orchestrate.JobDeadline || !strings.Contains(r.Message, appTag) || r.Ended.Sub(r.Started) != 3*time.Minute {
			t.Errorf("%+v; want that it failed at its deadline, and what for", r)
		}
	})
}

// The runs of a cron job do what its tag meant when it was applied, and with
// [runtime.PullAlways] what it means at each.
func TestCronJobsArePinned(t *testing.T) {
	for policy, want := range map[runtime.PullPolicy][]string{
		runtime.PullMissing: {"one 0", "one 0", "one 0"},
		runtime.PullAlways:  {"one 0", "two 0", "two 0"}, // the last while nobody answers: what the second Apply found
	} {
		t.Run(string(policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1, orchestrate.WithSchedules(cron.Parse))
				var d diary
				one := w.push(appTag, "one", d.works("one", time.Second, 0))
				c := aCron("nightly", "@hourly")
				c.Job.Containers[0].Image, c.Job.Containers[0].Pull = appTag, policy
				mustApply(t, w.Fleet, c)
				if st := cronStatus(t, w.Fleet, "nightly"); st.Digests[appTag] != one {
					t.Errorf("its digests are %v, want what %s means", st.Digests, appTag)
				}
				time.Sleep(time.Hour + time.Minute)
				w.push(appTag, "two", d.works("two", time.Second, 0))
				time.Sleep(time.Hour)
				if policy == runtime.PullAlways {
					mustApply(t, w.Fleet, c) // which looks too
				}
				w.down(true)
				time.Sleep(time.Hour)
				if got := d.read(); !slices.Equal(got, want) {
					t.Errorf("the runs did %q, want %q", got, want)
				}
				if st := cronStatus(t, w.Fleet, "nightly"); st.Missed != 0 || st.Outcome != orchestrate.JobCompleted {
					t.Errorf("%+v; want no time missed", st)
				}
			})
		})
	}
}

// An image is replaced in what runs to an end too: what has completed stays so,
// and what is left as it is is said.
func TestReplaceImageOfJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, orchestrate.WithSchedules(cron.Parse))
		var d diary
		one := w.push(appTag, "one", d.works("one", time.Minute, 0))
		fixed := w.push("reg.example/app:2", "fixed", d.works("fixed", time.Minute, 0))
		_ = w.push(appTag+"-x", "fixed", d.works("fixed", time.Minute, 0))
		ended := tagJob("ended", 1)
		mustApply(t, w.Fleet, ended)
		mustEndJob(t, w.Fleet, "ended", orchestrate.JobCompleted)
		waits := tagJob("waits", 1)
		waits.Suspend = true
		slow, follows := aCron("slow", "@every 30s"), aCron("follows", "@yearly")
		for _, c := range []*orchestrate.CronJob{&slow, &follows} {
			c.Job.Containers[0].Image, c.Concurrency = appTag, orchestrate.ForbidConcurrent
		}
		follows.Job.Containers[0].Pull = runtime.PullAlways
		mustApply(t, w.Fleet, tagJob("sums", 3), waits, slow, follows)
		time.Sleep(70 * time.Second) // index 0 is done, and a run of slow goes on

		plan, err := w.PlanReplaceImage(t.Context(), one, fixed)
		if err != nil {
			t.Fatal(err)
		}
		say := func(changes []orchestrate.PlannedChange) (lines []string) {
			for _, c := range changes {
				lines = append(lines, fmt.Sprint(c.Kind, " ", c.Name, " ", c.From, c.To))
				if c.Origin != orchestrate.OriginReplaced || len(c.Diff) != 1 {
					t.Errorf("the change of %s is made by %q and is %v; want one of an image", c.Name, c.Origin, c.Diff)
				}
			}
			return lines
		}
		if got, want := say(plan.Changes), []string{"job default/sums 1 1", "job default/waits 1 1", "cronjob default/slow 0 0"}; !slices.Equal(got, want) {
			t.Errorf("the plan changes %q, want %q", got, want)
		}
		left := func(all []orchestrate.LeftImage) (lines []string) {
			for _, l := range all {
				name, _, _ := strings.Cut(l.Name, "-")
				lines = append(lines, l.Kind+" "+name+" "+string(l.Why))
				if !slices.Equal(l.Images, []string{appTag}) {
					t.Errorf("%v; want that it names %s", l, appTag)
				}
			}
			return lines
		}
		wantLeft := []string{"job default/ended ended", "job default/slow cron-run", "cronjob default/follows follows-tag"}
		if got := left(plan.Left); !slices.Equal(got, wantLeft) {
			t.Errorf("the plan leaves %q, want %q", got, wantLeft)
		}
		before := d.read()
		done, err := w.ReplaceImage(t.Context(), one, fixed, orchestrate.ReplaceOptions{AtOnce: 1})
		if err != nil || len(done.Changes) != 3 || !slices.Equal(left(done.Left), wantLeft) {
			t.Fatalf("it changed %q and left %q, %v", say(done.Changes), left(done.Left), err)
		}
		if err := w.ResumeJob(t.Context(), "waits"); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"sums", "waits"} {
			if r := mustEndJob(t, w.Fleet, name, orchestrate.JobCompleted); r.Run != 1 || r.Failures != 0 {
				t.Errorf("%+v; want the same run without a failure", r)
			}
		}
		time.Sleep(2 * time.Minute)
		counts := map[string]int{}
		for _, line := range d.read()[len(before):] {
			counts[line]++
		}
		// Once by the run of slow that went on.
		if counts["one 0"] != 1 || counts["one 1"]+counts["one 2"] != 0 || counts["fixed 1"] != 1 || counts["fixed 2"] != 1 || counts["fixed 0"] < 2 {
			t.Errorf("after it %v was done; want the rest of sums, waits and the next runs of slow by the fixed image", counts)
		}
		undo, err := w.PlanUndo(t.Context(), &orchestrate.Plan{Changes: done.Changes[2:], Made: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.ApplyPlan(t.Context(), undo); err != nil {
			t.Fatal(err)
		}
		if st := cronStatus(t, w.Fleet, "slow"); st.Digests[appTag] != one {
			t.Errorf("undone, slow has %v, want the digest from before", st.Digests)
		}
		// By a reference the one that follows its tag can be helped.
		plan, err = w.PlanReplaceImage(t.Context(), appTag, "reg.example/app:2")
		if err != nil || !slices.ContainsFunc(plan.Changes, func(c orchestrate.PlannedChange) bool { return c.Name == "default/follows" }) {
			t.Errorf("by a reference the plan changes %q, %v; want follows among them", say(plan.Changes), err)
		}
	})
}

// A cron job can be planned, applied so, and undone.
func TestPlanOfACronJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, orchestrate.WithSchedules(cron.Parse))
		var d diary
		one := w.push(appTag, "one", d.works("one", time.Second, 0))
		c := aCron("nightly", "@hourly")
		c.Job.Containers[0].Image = appTag
		p := mustPlan(t, w.Fleet, c)
		if len(p.Changes) == 0 || p.Changes[len(p.Changes)-1].Kind != orchestrate.KindCronJob || p.Changes[len(p.Changes)-1].Digests[appTag] != one {
			t.Fatalf("the plan is\n%s\nwant a cron job with its digest", p)
		}
		if _, err := w.CronJob(t.Context(), "nightly"); err == nil {
			t.Error("planning made the cron job")
		}
		w.push(appTag, "two", d.works("two", time.Second, 0))
		if err := w.ApplyPlan(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		c.Schedule = "@daily"
		change := mustPlan(t, w.Fleet, c)
		if len(change.Changes) != 1 || len(change.Changes[0].Diff) != 1 || change.Changes[0].Diff[0].Path != "schedule" {
			t.Errorf("another schedule is planned as\n%s", change)
		}
		time.Sleep(time.Hour + time.Minute)
		if got := d.read(); !slices.Equal(got, []string{"one 0"}) {
			t.Errorf("it did %q, want what the image meant when it was planned", got)
		}
		undo, err := w.PlanUndo(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.ApplyPlan(t.Context(), undo); err != nil {
			t.Fatal(err)
		}
		if _, err := w.CronJob(t.Context(), "nightly"); err == nil {
			t.Error("undone, it is there still")
		}
	})
}
