package orchestrate_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
)

// A node that is drained gives up what a job has there: tasks that have ended and
// are kept for their logs, and those that run, whose indexes run again.
func TestDrainWithAJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		l := work(rt, 10*time.Minute, ok)
		mustApply(t, f, aJob("batch", 4, 2))
		time.Sleep(15 * time.Minute) // two have ended, two run
		if err := f.Drain(t.Context(), "n1", orchestrate.DrainWithin(5*time.Minute)); err != nil {
			t.Fatalf("%v; want the node empty", err)
		}
		if tasks, err := f.Tasks(t.Context(), "batch"); err != nil || len(tasks) != 0 {
			t.Errorf("tasks after the drain of the only node: %+v, %v; want none", tasks, err)
		}
		if err := f.Uncordon(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		if r := mustEndJob(t, f, "batch", orchestrate.JobCompleted); r.Completed != 4 {
			t.Errorf("%v; want all 4 indexes completed", r)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		for index, want := range map[string]int{"0": 1, "1": 1, "2": 2, "3": 2} {
			if l.runs[index] != want {
				t.Errorf("index %s ran %d times, want %d: those that had completed once, those that ran twice", index, l.runs[index], want)
			}
		}
	})
}
