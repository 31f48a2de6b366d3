package orchestrate_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
)

// ledger is what the containers of jobs did.
type ledger struct {
	mu   sync.Mutex
	runs map[string]int // by index
	most int            // at the same time
	now  int
}

// work has the image "work" end, after life, with what code says of an index
// and an attempt.
func work(rt *runtimememory.Runtime, life time.Duration, code func(index, attempt string) int) *ledger {
	l := &ledger{runs: map[string]int{}}
	rt.SetImage("work", runtimememory.Image{Program: runtimememory.Program{Run: func(ctx context.Context, p *runtimememory.Process) int {
		var index, attempt string
		for _, v := range p.Spec.Env {
			if s, ok := strings.CutPrefix(v, orchestrate.EnvIndex+"="); ok {
				index = s
			}
			if s, ok := strings.CutPrefix(v, orchestrate.EnvAttempt+"="); ok {
				attempt = s
			}
		}
		l.mu.Lock()
		l.runs[index]++
		l.now++
		l.most = max(l.most, l.now)
		l.mu.Unlock()
		defer func() { l.mu.Lock(); l.now--; l.mu.Unlock() }()
		fmt.Fprintf(p.Stdout, "index %s attempt %s\n", index, attempt)
		select {
		case <-ctx.Done():
			return 137
		case <-p.Signals:
			return 143
		case <-time.After(life):
		}
		return code(index, attempt)
	}}})
	return l
}

func ok(string, string) int { return 0 }

func aJob(name string, completions, parallelism int) orchestrate.Job {
	return orchestrate.Job{Name: name, Completions: completions, Parallelism: parallelism,
		Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: "work"}}}}
}

func mustEndJob(t *testing.T, f *orchestrate.Fleet, name string, want orchestrate.JobOutcome) orchestrate.JobResult {
	t.Helper()
	r, err := f.WaitJob(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if r.Outcome != want {
		t.Fatalf("%v; want %s", r, want)
	}
	return r
}

func TestJobCompletesEachIndexOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, s := open(t)
		l := work(rt, time.Second, ok)
		mustApply(t, f, aJob("sums", 50, 7))
		r := mustEndJob(t, f, "sums", orchestrate.JobCompleted)
		if r.Completed != 50 || r.Failures != 0 || r.Err() != nil {
			t.Errorf("%+v; want 50 completed without a failure", r)
		}
		for i := range 50 {
			if n := l.runs[fmt.Sprint(i)]; n != 1 {
				t.Errorf("index %d ran %d times, want once", i, n)
			}
		}
		if l.most > 7 || l.most < 2 {
			t.Errorf("%d tasks ran at a time, want at most 7 and more than one", l.most)
		}
		synctest.Wait()
		tasks, err := f.Tasks(t.Context(), "sums")
		if err != nil || len(tasks) != orchestrate.DefaultKeepTasks {
			t.Errorf("%d ended tasks are kept (error %v), want %d", len(tasks), err, orchestrate.DefaultKeepTasks)
		}
		var lines []string
		if err := f.Logs(t.Context(), "sums", "", runtime.LogOptions{}, func(l orchestrate.LogLine) error {
			lines = append(lines, string(l.Text))
			return nil
		}); err != nil || len(lines) != orchestrate.DefaultKeepTasks {
			t.Errorf("logs of ended tasks: %q, error %v; want a line of each that is kept", lines, err)
		}
		// The same again changes nothing.
		mustApply(t, f, aJob("sums", 50, 7))
		if r := mustEndJob(t, f, "sums", orchestrate.JobCompleted); r.Run != 1 {
			t.Errorf("applied again, it is run %d, want 1", r.Run)
		}
		if err := f.Remove(t.Context(), "sums"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := records(t, s, record.Tasks) + records(t, s, record.Runs) + records(t, s, record.Statuses); n != 0 {
			t.Errorf("%d records are left of a removed job, want none", n)
		}
	})
}

func TestJobExits(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*orchestrate.Job)
		code   func(index, attempt string) int
		want   orchestrate.JobOutcome
		reason orchestrate.JobReason
		runs   string // of index 1
		given  string
	}{
		{"retried until it succeeds", nil, func(i, a string) int {
			if i == "1" && a != "2" {
				return 3
			}
			return 0
		}, orchestrate.JobCompleted, "", "3", ""},
		{"retries used up", func(j *orchestrate.Job) { j.Retries = 2 }, func(i, a string) int {
			if i == "1" {
				return 3
			}
			return 0
		}, orchestrate.JobFailed, orchestrate.JobIndexes, "3", "1"},
		{"no retries", func(j *orchestrate.Job) { j.Retries = orchestrate.None }, func(i, a string) int {
			if i == "1" {
				return 3
			}
			return 0
		}, orchestrate.JobFailed, orchestrate.JobIndexes, "1", "1"},
		{"enough without it", func(j *orchestrate.Job) { j.Retries, j.Enough, j.Parallelism = orchestrate.None, 3, 1 }, func(i, a string) int {
			if i == "1" {
				return 3
			}
			return 0
		}, orchestrate.JobCompleted, "", "1", "1"},
		{"a code that fails the job", func(j *orchestrate.Job) {
			j.Exits = []orchestrate.ExitRule{{Codes: []int{42}, Action: orchestrate.ExitFailJob}}
		}, func(i, a string) int {
			if i == "1" {
				return 42
			}
			return 0
		}, orchestrate.JobFailed, orchestrate.JobExitCode, "1", "1"},
		{"a code that fails the index", func(j *orchestrate.Job) {
			j.Exits = []orchestrate.ExitRule{{Codes: []int{42}, Action: orchestrate.ExitFailIndex}}
		}, func(i, a string) int {
			if i == "1" {
				return 42
			}
			return 0
		}, orchestrate.JobFailed, orchestrate.JobIndexes, "1", "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, rt, _ := open(t)
				l := work(rt, time.Second, tt.code)
				j := aJob("j", 4, 4)
				if tt.change != nil {
					tt.change(&j)
				}
				mustApply(t, f, j)
				r := mustEndJob(t, f, "j", tt.want)
				if r.Reason != tt.reason || r.GivenUp != tt.given || fmt.Sprint(l.runs["1"]) != tt.runs {
					t.Errorf("%v, given up %q, index 1 ran %d times; want %q, %q, %s", r, r.GivenUp, l.runs["1"], tt.reason, tt.given, tt.runs)
				}
				if tt.want == orchestrate.JobFailed {
					if r.Failure == nil || r.Failure.ExitCode == 0 || len(r.Failure.Log) == 0 {
						t.Errorf("failure %+v; want the exit code and the last lines", r.Failure)
					}
					var failed *orchestrate.JobError
					if !errors.As(r.Err(), &failed) {
						t.Errorf("Err is %v, want a *JobError", r.Err())
					}
				}
			})
		})
	}
}

func TestJobIgnoredExitsAreNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		left := 20
		work(rt, time.Second, func(string, string) int {
			if left--; left > 0 {
				return 75
			}
			return 0
		})
		j := aJob("j", 1, 1)
		j.Retries = 1
		j.Exits = []orchestrate.ExitRule{{Codes: []int{75}, Action: orchestrate.ExitIgnore}}
		mustApply(t, f, j)
		if r := mustEndJob(t, f, "j", orchestrate.JobCompleted); r.Ignored != 19 || r.Failures != 0 {
			t.Errorf("%+v; want 19 ignored failures and none that counted", r)
		}
	})
}

func TestJobDeadlineCountsActiveTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		l := work(rt, time.Hour, ok)
		j := aJob("slow", 2, 2)
		j.Deadline = 10 * time.Minute
		mustApply(t, f, j)
		time.Sleep(4 * time.Minute)
		if err := f.SuspendJob(t.Context(), "slow"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		st, err := f.Job(t.Context(), "slow")
		if err != nil || !st.Result.Suspended || st.Result.Outcome != "" || l.now != 0 {
			t.Fatalf("%v, error %v, %d processes; want it suspended with none", st.Result, err, l.now)
		}
		resumed := time.Now()
		if err := f.ResumeJob(t.Context(), "slow"); err != nil {
			t.Fatal(err)
		}
		r := mustEndJob(t, f, "slow", orchestrate.JobFailed)
		if took := r.Ended.Sub(resumed).Round(time.Second); r.Reason != orchestrate.JobDeadline || took != 6*time.Minute {
			t.Errorf("%v, %v after it was resumed; want the deadline after the 6 min that were left", r, took)
		}
		time.Sleep(time.Minute)
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.now != 0 {
			t.Errorf("%d processes run after the deadline, want none", l.now)
		}
	})
}

func TestJobTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, s := open(t)
		work(rt, time.Second, ok)
		j := aJob("brief", 3, 3)
		j.TTL = time.Hour
		mustApply(t, f, j)
		mustEndJob(t, f, "brief", orchestrate.JobCompleted)
		time.Sleep(59 * time.Minute)
		if _, err := f.Job(t.Context(), "brief"); err != nil {
			t.Errorf("before its time is over: %v", err)
		}
		time.Sleep(2 * time.Minute)
		if _, err := f.Job(t.Context(), "brief"); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("after its time to live: error %v, want that it does not exist", err)
		}
		if n := records(t, s, record.Tasks) + records(t, s, record.Runs); n != 0 {
			t.Errorf("%d records are left of it, want none", n)
		}
	})
}

func TestJobBegunAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		work(rt, time.Minute, ok)
		mustApply(t, f, aJob("j", 2, 2))
		time.Sleep(time.Second)
		ends := make(chan orchestrate.JobResult, 1)
		go func() {
			r, _ := f.WaitJob(t.Context(), "j")
			ends <- r
		}()
		time.Sleep(time.Second)
		j := aJob("j", 2, 2)
		j.Containers[0].Env = map[string]string{"A": "1"}
		mustApply(t, f, j)
		if r := <-ends; r.Outcome != orchestrate.JobSuperseded {
			t.Errorf("%v; want it superseded", r)
		}
		if r := mustEndJob(t, f, "j", orchestrate.JobCompleted); r.Run != 2 || r.Completed != 2 {
			t.Errorf("%v; want run 2 with 2 completed", r)
		}
	})
}

func TestNamesakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		work(rt, time.Minute, ok)
		rt.SetImage("img:1", runtimememory.Image{})
		mustApply(t, f, service("a", 0), aJob("b", 1, 1))
		for _, o := range []orchestrate.Object{aJob("a", 1, 1), service("b", 0)} {
			var namesake *orchestrate.NamesakeError
			if err := f.Apply(t.Context(), o); !errors.As(err, &namesake) || !errors.Is(err, orchestrate.ErrInUse) {
				t.Errorf("error %v, want a *NamesakeError", err)
			}
		}
		jobs, err := f.Jobs(t.Context(), "")
		if err != nil || len(jobs) != 1 || jobs[0].Name != "b" {
			t.Errorf("jobs %v, error %v; want b alone", jobs, err)
		}
		if _, err := f.WaitJob(t.Context(), "a"); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("error %v, want that there is no such job", err)
		}
	})
}

func TestMalformedJobs(t *testing.T) {
	for _, tt := range []struct {
		path  string
		spoil func(*orchestrate.Job)
	}{
		{"name", func(j *orchestrate.Job) { j.Name = "A b" }},
		{"completions", func(j *orchestrate.Job) { j.Completions, j.Enough = orchestrate.MaxCompletions+1, 1 }},
		{"completions", func(j *orchestrate.Job) { j.Completions, j.Enough = -1, 0 }},
		{"parallelism", func(j *orchestrate.Job) { j.Parallelism = -1 }},
		{"ports", func(j *orchestrate.Job) { j.Ports = []orchestrate.Port{{Port: 80}} }},
		{"restart.condition", func(j *orchestrate.Job) { j.Restart.Condition = orchestrate.RestartAlways }},
		{"retries", func(j *orchestrate.Job) { j.Retries = -2 }},
		{"retryBackoff", func(j *orchestrate.Job) { j.RetryBackoff = 5 }},
		{"maxRetryBackoff", func(j *orchestrate.Job) { j.RetryBackoff, j.MaxRetryBackoff = time.Minute, time.Second }},
		{"enough", func(j *orchestrate.Job) { j.Enough = 9 }},
		{"deadline", func(j *orchestrate.Job) { j.Deadline = -time.Second }},
		{"ttl", func(j *orchestrate.Job) { j.TTL = 3 }},
		{"keepTasks", func(j *orchestrate.Job) { j.KeepTasks = orchestrate.MaxKeepTasks + 1 }},
		{"exits[0].action", func(j *orchestrate.Job) { j.Exits = []orchestrate.ExitRule{{Codes: []int{1}, Action: "explode"}} }},
		{"exits[0].codes[1]", func(j *orchestrate.Job) {
			j.Exits = []orchestrate.ExitRule{{Codes: []int{1, 256}, Action: orchestrate.ExitIgnore}}
		}},
		{"exits[1].codes[0]", func(j *orchestrate.Job) {
			j.Exits = []orchestrate.ExitRule{{Codes: []int{1}, Action: orchestrate.ExitIgnore}, {Codes: []int{1}, Action: orchestrate.ExitRetry}}
		}},
		{"exits[0].codes", func(j *orchestrate.Job) {
			j.Exits = []orchestrate.ExitRule{{Action: orchestrate.ExitIgnore}, {Codes: []int{1}, Action: orchestrate.ExitRetry}}
		}},
		{"containers[0].image", func(j *orchestrate.Job) { j.Containers[0].Image = "" }},
	} {
		j := aJob("j", 2, 2)
		tt.spoil(&j)
		var invalid *orchestrate.ValidationError
		if err := j.Validate(); !errors.As(err, &invalid) || !slices.ContainsFunc(invalid.Problems, func(p orchestrate.Problem) bool { return p.Path == tt.path }) {
			t.Errorf("error %v, want a *ValidationError of %s", err, tt.path)
		}
	}
}

func TestDecodeJob(t *testing.T) {
	j, err := orchestrate.DecodeJob([]byte(`{"name": "nightly", "completions": 10, "deadline": "1h", "exits": [{"codes": [3], "action": "ignore"}], "containers": [{"image": "work"}]}`))
	if err != nil || j.Deadline != time.Hour || j.Parallelism != 1 || j.Enough != 10 || j.Exits[0].Codes[0] != 3 {
		t.Errorf("%+v, error %v", j, err)
	}
	if again := j.WithDefaults(); fmt.Sprint(again) != fmt.Sprint(j) {
		t.Errorf("defaults filled in twice: %+v, want %+v", again, j)
	}
	var invalid *orchestrate.ValidationError
	_, err = orchestrate.DecodeJob([]byte(`{"name": "nightly", "completion": 10, "enough": "x", "containers": []}`))
	if !errors.As(err, &invalid) || len(invalid.Problems) != 3 {
		t.Errorf("error %v, want three mistakes", err)
	}
}
