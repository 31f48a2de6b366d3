//go:build linux

package local

import (
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/runtime"
)

func job(name string, completions, parallelism int, args ...string) orchestrate.Job {
	return orchestrate.Job{
		Name: name, Completions: completions, Parallelism: parallelism, RetryBackoff: 10 * time.Millisecond,
		Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: testImage, Command: args}}, StopGrace: time.Second},
	}
}

func endJob(t *testing.T, f *Fleet, name string, want orchestrate.JobOutcome) orchestrate.JobResult {
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

// TestJobs runs jobs on real containers: what they print stays until they expire,
// and their exit codes are judged.
func TestJobs(t *testing.T) {
	f := openFleet(t)
	lines := job("lines", 12, 4, "print=a line")
	lines.TTL, lines.KeepTasks = 5*time.Second, 12
	failing := job("failing", 1, 1, "print=the last words", "exit=42")
	failing.Exits = []orchestrate.ExitRule{{Codes: []int{42}, Action: orchestrate.ExitFailJob}}
	slow := job("slow", 1, 1, "wait")
	slow.Deadline = 3 * time.Second
	if err := f.Apply(t.Context(), lines, failing, slow); err != nil {
		t.Fatal(err)
	}
	endJob(t, f, "lines", orchestrate.JobCompleted)
	n := 0
	if err := f.Logs(t.Context(), "lines", "", runtime.LogOptions{}, func(l orchestrate.LogLine) error {
		if string(l.Text) == "a line" {
			n++
		}
		return nil
	}); err != nil || n != 12 {
		t.Errorf("%d lines of tasks that have ended, error %v; want 12", n, err)
	}
	r := endJob(t, f, "failing", orchestrate.JobFailed)
	if r.Reason != orchestrate.JobExitCode || r.Failure == nil || r.Failure.ExitCode != 42 || !strings.Contains(strings.Join(r.Failure.Log, "\n"), "the last words") {
		t.Errorf("%v, failure %+v; want exit code 42 and the last words", r, r.Failure)
	}
	if r := endJob(t, f, "slow", orchestrate.JobFailed); r.Reason != orchestrate.JobDeadline {
		t.Errorf("%v; want its deadline", r)
	}
	for {
		if _, err := f.Job(t.Context(), "lines"); err != nil {
			return // it has expired
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("the job does not expire")
		}
	}
}
