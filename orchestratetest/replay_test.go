package orchestratetest_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cron"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/orchestratetest"
	"github.com/orchestrate-go/orchestrate/runtime"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// recorded is the log of a scenario.
func recorded(t testing.TB, s orchestratetest.Scenario) []byte {
	t.Helper()
	var log bytes.Buffer
	s.ControlPlanes = 1 // they would share the log
	further := s.Options
	s.Options = func() []orchestrate.Option {
		opts := []orchestrate.Option{orchestrate.WithRecorder(&log)}
		if further != nil {
			opts = append(opts, further()...)
		}
		return opts
	}
	orchestratetest.Run(t.(*testing.T), s)
	return log.Bytes()
}

func packing(t testing.TB) orchestrate.Option {
	t.Helper()
	pack := scheduler.BinPackStrategy()
	pack.Name = scheduler.Spread // in its place
	sched, err := scheduler.New(scheduler.Options{Strategies: []scheduler.Strategy{pack}})
	if err != nil {
		t.Fatal(err)
	}
	return orchestrate.WithScheduler(sched)
}

// TestReplay decides again as it was decided, over restarts of the leader, and
// otherwise with another strategy.
func TestReplay(t *testing.T) {
	s := chaos(5)
	s.Script = []orchestratetest.Step{
		{At: 30 * time.Minute, Do: orchestratetest.LeaderDies{For: 5 * time.Second}},
		{At: 40 * time.Minute, Do: orchestratetest.Apply{Objects: []orchestrate.Object{revised(web(12))}}},
	}
	log := recorded(t, s)
	again, err := orchestratetest.Replay(bytes.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes, %d plans, %d placements, %+v", len(log), again.Plans, again.Placements, again.Was)
	if again.Placements < 30 || again.Same != again.Placements || len(again.Differences) > 0 {
		t.Errorf("%d placements, of which the same code makes %d again: %v", again.Placements, again.Same, again.Differences)
	}
	if again.Was != again.Would {
		t.Errorf("the same decisions cost %+v, and then %+v", again.Was, again.Would)
	}
	if d := again.To.Sub(again.From); d < time.Hour {
		t.Errorf("the log is of %v, want the two hours", d)
	}
	other, err := orchestratetest.Replay(bytes.NewReader(log), packing(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("packed: %d differ, %+v", len(other.Differences), other.Would)
	if other.Same+len(other.Differences) != other.Placements || len(other.Differences) == 0 || other.Was != again.Was {
		t.Errorf("another strategy: %d of %d differ, and it was %+v", len(other.Differences), other.Placements, other.Was)
	}
	if other.Would.Imbalance <= other.Was.Imbalance {
		t.Errorf("packed the imbalance is %v, and spread %v", other.Would.Imbalance, other.Was.Imbalance)
	}
	// The log of a program that crashed ends anywhere.
	cut := log[:bytes.LastIndexByte(log[:len(log)/2], '\n')+9]
	if short, err := orchestratetest.Replay(bytes.NewReader(cut)); err != nil || short.Placements == 0 || short.Placements >= again.Placements {
		t.Errorf("half a log: %+v, %v", short, err)
	}
}

// scheduled is a fleet with jobs, of which some fail, and cron jobs of all kinds.
func scheduled() orchestratetest.Scenario {
	work := orchestrate.Template{Containers: []orchestrate.Container{{Image: "work:1", Resources: orchestrate.Resources{CPU: 700, Memory: 128 << 20}}}}
	flaky := orchestrate.Template{Containers: []orchestrate.Container{{Image: "flaky:1", Resources: orchestrate.Resources{CPU: 300}}}}
	return orchestratetest.Scenario{
		Seed: 11, For: 6 * time.Hour,
		Nodes: []orchestratetest.NodeGroup{{Count: 5, Zones: []string{"a", "b"}}},
		Objects: []orchestrate.Object{
			web(6),
			orchestrate.Job{Name: "batch", Completions: 40, Parallelism: 5, Template: work},
			orchestrate.Job{Name: "tried", Completions: 6, Parallelism: 3, Retries: 3, Template: flaky},
			orchestrate.CronJob{Name: "often", Schedule: "*/7 * * * *", KeepCompleted: 2, Job: orchestrate.Job{Template: work}},
			orchestrate.CronJob{Name: "wide", Schedule: "@hourly", Job: orchestrate.Job{Completions: 8, Parallelism: 4, Template: work}},
			orchestrate.CronJob{Name: "slow", Schedule: "*/5 * * * *", Concurrency: orchestrate.ForbidConcurrent, StartDeadline: time.Minute,
				Job: orchestrate.Job{Template: flaky, Retries: orchestrate.None}},
			orchestrate.CronJob{Name: "newest", Schedule: "*/2 * * * *", Concurrency: orchestrate.ReplaceConcurrent, Job: orchestrate.Job{Template: flaky}},
		},
		Images: map[string]runtimememory.Image{
			"work:1":  {Program: runtimememory.Program{Life: 20 * time.Second}},
			"flaky:1": {Program: runtimememory.Program{Life: 7 * time.Minute, Code: 3}},
		},
		Script: []orchestratetest.Step{
			{At: 10 * time.Minute, Do: orchestratetest.NodeDies{Node: "n2", For: 20 * time.Minute}},
			{At: 50 * time.Minute, Do: orchestratetest.LeaderDies{For: 5 * time.Minute}},
			{At: 100 * time.Minute, Do: orchestratetest.Drain{Node: "n4"}},
			{At: 2 * time.Hour, Do: orchestratetest.Uncordon{Node: "n4"}},
			{At: 3 * time.Hour, Do: orchestratetest.Remove{Names: []string{"often"}}},
			{At: 4 * time.Hour, Do: orchestratetest.Apply{Objects: []orchestrate.Object{
				orchestrate.CronJob{Name: "often", Schedule: "*/9 * * * *", Job: orchestrate.Job{Template: work}},
			}}},
		},
	}
}

// TestReplaySchedules decides again about jobs and cron jobs as it was decided, and
// otherwise with another strategy, or another reading of schedules.
func TestReplaySchedules(t *testing.T) {
	log := recorded(t, scheduled())
	again, err := orchestratetest.Replay(bytes.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes, %d plans, %d placements, %d steps of cron jobs, %+v", len(log), again.Plans, again.Placements, again.CronSteps, again.Was)
	if again.Placements < 300 || again.Same != again.Placements {
		t.Errorf("%d placements, of which the same code makes %d again: %v", again.Placements, again.Same, again.Differences)
	}
	if again.CronSteps < 200 || again.SameCronSteps != again.CronSteps || len(again.CronDifferences) > 0 {
		t.Errorf("%d steps of cron jobs, of which the same code makes %d again: %v", again.CronSteps, again.SameCronSteps, again.CronDifferences)
	}
	if again.Was != again.Would {
		t.Errorf("the same decisions cost %+v, and then %+v", again.Was, again.Would)
	}
	other, err := orchestratetest.Replay(bytes.NewReader(log), packing(t))
	if err != nil {
		t.Fatal(err)
	}
	jobs := map[string]bool{}
	for _, d := range other.Differences {
		jobs[d.Service] = true
	}
	for _, name := range []string{"default/batch", "default/web"} {
		if !jobs[name] {
			t.Errorf("packed, no task of %s would be elsewhere", name)
		}
	}
	if runs := slices.ContainsFunc(other.Differences, func(d orchestrate.Difference) bool { return strings.HasPrefix(d.Service, "default/wide-") }); !runs {
		t.Error("packed, no task of a run of the cron job wide would be elsewhere")
	}
	if other.SameCronSteps != other.CronSteps {
		t.Errorf("packed, schedules are kept otherwise: %v", other.CronDifferences)
	}
	later, err := orchestratetest.Replay(bytes.NewReader(log), orchestrate.WithSchedules(func(expr string, zone *time.Location) (func(time.Time) time.Time, error) {
		next, err := cron.Parse(expr, zone)
		if expr == "@hourly" {
			return func(t time.Time) time.Time { return next(t.Add(-time.Minute)).Add(time.Minute) }, nil
		}
		return next, err
	}))
	if err != nil {
		t.Fatal(err)
	}
	if later.SameCronSteps == later.CronSteps || later.SameCronSteps+len(later.CronDifferences) != later.CronSteps || later.Same != later.Placements {
		t.Errorf("with another reading of schedules %d of %d steps are the same", later.SameCronSteps, later.CronSteps)
	}
	for _, d := range later.CronDifferences {
		if d.CronJob != "default/wide" {
			t.Errorf("%v, want only what is read otherwise to differ", d)
		}
	}
	if _, err := orchestrate.Replay(bytes.NewReader(log)); !errors.Is(err, orchestrate.ErrNoSchedules) {
		t.Errorf("without a parser of schedules: %v, want ErrNoSchedules", err)
	}
}

// TestReplayRemembers decides again in a fleet that is full and loses nodes, where the
// planner goes by what it has given up, which no record says.
func TestReplayRemembers(t *testing.T) {
	work := web(1).Template
	work.Ports = nil
	log := recorded(t, orchestratetest.Scenario{
		For: 24 * time.Hour, Nodes: []orchestratetest.NodeGroup{{Count: 5, FailsEvery: 6 * time.Hour}},
		Objects: []orchestrate.Object{web(12), orchestrate.CronJob{Name: "backup", Schedule: "*/10 * * * *", Job: orchestrate.Job{Template: work}}}, // that never end
	})
	r, err := orchestratetest.Replay(bytes.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	if r.Was.Unplaced < 1000*time.Hour || r.Was != r.Would || r.Same != r.Placements {
		t.Errorf("the same decisions cost %+v, and then %+v: %v", r.Was, r.Would, r.Differences)
	}
}

// secret is in everything that may hold one.
const secret = "hunter2"

// secretive is a template that is full of secrets, and prints one as it fails.
func secretive() orchestrate.Template {
	t := web(1).Template
	c := &t.Containers[0]
	c.Image = "telltale:1"
	c.Env = map[string]string{"PASSWORD": secret}
	c.Command, c.Entrypoint, c.Dir, c.User = []string{"serve", "--token=" + secret}, []string{"/bin/" + secret}, "/"+secret, secret
	c.Labels = map[string]string{"note": secret}
	c.Readiness = &health.Check{HTTP: &health.HTTP{Port: 80, Path: "/" + secret, Headers: map[string]string{"Authorization": secret}}}
	c.Liveness = &health.Check{Exec: &health.Exec{Command: []string{"check", secret}}}
	t.Hostname = secret
	t.DNS.Search = []string{secret + ".example"}
	t.Init = []orchestrate.Container{{Name: "first", Image: "work:1", Env: map[string]string{"KEY": secret}, Command: []string{secret}}}
	return t
}

// telltale is a registry that answers with what one has logged in with.
type telltale struct{ runtime.Resolver }

func (telltale) Resolve(context.Context, string, runtime.PullOptions) (string, error) {
	return "", errors.New("401: the password " + secret + " is wrong")
}

// TestLogsHaveNoSecrets runs services, jobs and cron jobs that are full of them, that
// fail with them, and whose images cannot be had with them.
func TestLogsHaveNoSecrets(t *testing.T) {
	s := web(2)
	s.Template = secretive()
	other := s
	other.Template = secretive()
	other.Containers[0].Env = map[string]string{"PASSWORD": secret + "too"}
	job := secretive()
	job.Ports, job.Containers[0].Readiness, job.Containers[0].Liveness = nil, nil, nil
	later := orchestrate.CronJob{Name: "later", Schedule: "*/3 * * * *", Labels: map[string]string{"note": secret},
		Job: orchestrate.Job{Retries: 1, Labels: map[string]string{"for": "cron"}, Template: job}}
	asked := later
	asked.Name, asked.Suspend = "asked", true
	scenario := orchestratetest.Scenario{
		For: 30 * time.Minute, Objects: []orchestrate.Object{s, later, asked, orchestrate.Job{Name: "batch", Retries: 1, Template: job}},
		Images: map[string]runtimememory.Image{
			"work:1":     {Program: runtimememory.Program{Life: time.Second}},
			"telltale:1": {Program: runtimememory.Program{Life: time.Minute, Code: 3, Output: []runtimememory.Output{{Text: "my password is " + secret}}}},
		},
		Script: []orchestratetest.Step{
			{At: 5 * time.Minute, Do: orchestratetest.Apply{Objects: []orchestrate.Object{other}}},
			{At: 10 * time.Minute, Do: orchestratetest.Do{Name: "trigger", Func: func(ctx context.Context, f *orchestrate.Fleet) error {
				_, err := f.Trigger(orchestrate.WithActor(ctx, secret), "asked")
				return err
			}}},
			{At: 11 * time.Minute, Do: orchestratetest.Do{Name: "apply and cordon", Func: func(ctx context.Context, f *orchestrate.Fleet) error {
				ctx = orchestrate.WithActor(ctx, secret)
				again := later
				again.Schedule = "*/4 * * * *"
				return errors.Join(f.Apply(ctx, again, web(1)), f.Cordon(ctx, "n1"))
			}}},
		},
	}
	pinned := scenario
	pinned.Options = func() []orchestrate.Option { return []orchestrate.Option{orchestrate.WithResolver(telltale{})} }
	for name, s := range map[string]orchestratetest.Scenario{"run": scenario, "wait for a registry": pinned} {
		t.Run(name, func(t *testing.T) {
			log := recorded(t, s)
			if at := bytes.Index(log, []byte(secret)); at >= 0 {
				t.Errorf("a secret is in the log: …%s…", log[max(0, at-200):at+20])
			}
			for _, want := range []string{"telltale:1", `"look":{"namespace":"default","name":"later"`, `"/jobs/default/later-`, `"/jobs/default/batch"`} {
				if !bytes.Contains(log, []byte(want)) {
					t.Errorf("%s is not in the log, so that says nothing", want)
				}
			}
			again, err := orchestratetest.Replay(bytes.NewReader(log))
			if err != nil || again.Same != again.Placements || again.SameCronSteps != again.CronSteps {
				t.Errorf("without them it is decided otherwise: %+v, %v", again, err)
			}
		})
	}
}

func TestReplayRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ log, says string }{
		"nothing":         {"", "the log is empty"},
		"another form":    {"hello\n", "is no entry of a log"},
		"no snapshot":     {`{"t":1,"plan":true}` + "\n", "does not begin with a snapshot"},
		"another version": {`{"orchestrate":3,"t":1,"load":true}` + "\n", "version 3"},
		"a broken record": {`{"orchestrate":1,"t":1,"load":true,"set":{"/tasks/n/x":3}}` + "\n", "/tasks/n/x"},
		"a broken later":  {`{"orchestrate":1,"t":1,"load":true}` + "\n" + `{"t":2,"set":{"/nodes/a":[]}}` + "\n", "line 2"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := orchestratetest.Replay(strings.NewReader(tc.log))
			var bad *orchestrate.LogError
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v, want a *LogError with %q", err, tc.says)
			}
		})
	}
}

var writeLog = flag.Bool("write-log", false, "write the log that FuzzReplay begins with")

// FuzzReplay reads logs that anybody may have written.
func FuzzReplay(f *testing.F) {
	const file = "testdata/small.log"
	log, err := os.ReadFile(filepath.FromSlash(file))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(log)
	f.Add([]byte(`{"orchestrate":1,"t":1,"load":true,"set":{"/nodes/a":{"r":1,"v":{"id":"a","capacity":{"cpu":1}}},"/alive/a":{"r":1,"v":{}}}}` + "\n" + `{"t":2,"plan":true}` + "\n"))
	f.Add([]byte(`{"orchestrate":1,"t":1,"load":true,"set":{"/services/x/y":{"r":-1,"v":{"spec":{"replicas":-5}}}}}` + "\n" + `{"t":-2,"plan":true}` + "\n"))
	// Found by this: the planner made a list of all that was missing.
	f.Add([]byte(`{"orchestrate":1,"t":1,"load":true,"set":{"/services/x/y":{"r":1,"v":{"spec":{"replicas":9000000000000}}}}}` + "\n" + `{"t":2,"plan":true}` + "\n"))
	f.Add([]byte(`{"t":1,"look":{"namespace":"x","name":"y","schedule":"@every 1s","timeZone":"UTC","since":"0001-01-01T00:00:00Z","keepCompleted":-1,"keepFailed":0,"state":{"created":"2000-01-01T00:00:00Z"},"runs":[{"name":"y-1","at":"2000-01-01T00:00:00Z"}],"missed":3}}` + "\n" + `{"orchestrate":2,"t":1,"load":true}` + "\n"))
	f.Fuzz(func(t *testing.T, log []byte) {
		r, err := orchestratetest.Replay(bytes.NewReader(log))
		if err != nil {
			return
		}
		if r.Same+len(r.Differences) != r.Placements || r.SameCronSteps+len(r.CronDifferences) != r.CronSteps || r.To.Before(r.From) {
			t.Errorf("%+v", r)
		}
	})
}

// TestSmallLog keeps the log that the fuzzing begins with one of today's form.
func TestSmallLog(t *testing.T) {
	log := recorded(t, orchestratetest.Scenario{
		For: 5 * time.Minute, Objects: []orchestrate.Object{web(2)},
		Script: []orchestratetest.Step{{At: time.Minute, Do: orchestratetest.NodeDies{Node: "n1"}}},
	})
	if *writeLog {
		if err := os.WriteFile("testdata/small.log", log, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile("testdata/small.log")
	if err != nil {
		t.Fatal(err)
	}
	was, err := orchestratetest.Replay(bytes.NewReader(kept))
	if err != nil {
		t.Fatal(err)
	}
	if was.Placements == 0 {
		t.Errorf("%+v: run this test with -write-log", was)
	}
}
