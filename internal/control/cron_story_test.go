package control

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// TestCronStories plays the files of testdata/cron as TestStories does those of
// services: what happens, then "----" and what is decided about the cron job.
//
//	cron key=value...   every=D since midnight, concurrency, deadline, keep=COMPLETED,FAILED, suspended, since=CLOCK
//	CLOCK               the time is CLOCK, or later, and the leader looks whenever it asked to
//	completes|fails RUN
//	nobody CLOCK        leads until then
//	show                what is known of it
func TestCronStories(t *testing.T) {
	files, err := filepath.Glob("testdata/cron/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	update := flag.Lookup("update").Value.String() == "true" // see TestStories
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := &cronStory{t: t, runs: map[string]*CronJobRun{}, now: at("00:00:00")}
			var told strings.Builder
			for scene := range strings.SplitSeq(strings.TrimSpace(string(data)), "\n\n") {
				commands, want, _ := strings.Cut(scene+"\n", "----\n")
				s.log = nil
				for line := range strings.SplitSeq(strings.TrimSpace(commands), "\n") {
					if !strings.HasPrefix(line, "#") {
						s.play(strings.Fields(line))
					}
				}
				got := strings.Join(append(s.log, ""), "\n")
				if len(s.log) == 0 {
					got = "nothing\n"
				}
				if got != want && !update {
					t.Fatalf("after\n%s\ngot\n%s\nwant\n%s\n(go test -update accepts what is decided now)", commands, got, want)
				}
				fmt.Fprintf(&told, "%s----\n%s\n", commands, got)
			}
			if update {
				if err := os.WriteFile(file, []byte(strings.TrimRight(told.String(), "\n")+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// cronStory is a cron job, its runs, and a leader that does what is decided.
type cronStory struct {
	t     *testing.T
	cron  Cron
	state record.CronState
	runs  map[string]*CronJobRun
	now   time.Time
	wake  time.Time
	log   []string
}

func (s *cronStory) play(words []string) {
	s.t.Helper()
	switch words[0] {
	case "cron":
		for _, w := range words[1:] {
			key, value, _ := strings.Cut(w, "=")
			d, _ := time.ParseDuration(value)
			switch key {
			case "every":
				s.cron.Next = func(t time.Time) time.Time { return t.Truncate(d).Add(d) }
				s.cron.Since = s.now
			case "concurrency":
				s.cron.Concurrency = Concurrency(strings.TrimPrefix(value, "allow"))
			case "deadline":
				s.cron.StartDeadline = d
			case "keep":
				fmt.Sscanf(value, "%d,%d", &s.cron.KeepCompleted, &s.cron.KeepFailed)
			case "suspended":
				if s.cron.Suspended = value == "yes"; !s.cron.Suspended {
					s.cron.Since = s.now
				}
			default:
				s.t.Fatalf("unknown setting %q", w)
			}
		}
		s.decide()
	case "completes", "fails":
		r := s.runs[words[1]]
		if r == nil || r.State.Final() {
			s.t.Fatalf("%s %s: it does not go on", words[0], words[1])
		}
		r.Ended, r.State = s.now, record.RunCompleted
		if words[0] == "fails" {
			r.State = record.RunFailed
		}
		s.decide()
	case "nobody":
		s.now = at(words[1])
		s.decide()
	case "show":
		s.log = append(s.log, fmt.Sprintf("active %v, %d missed, last run %s, ended last %s %s, wakes %s",
			s.state.Active, s.state.Missed, s.state.LastRun, s.state.Ended, s.state.Outcome, s.wake.Format("15:04:05")))
	default:
		end := at(words[0])
		for !s.wake.IsZero() && !s.wake.After(end) {
			s.now = s.wake
			s.decide()
		}
		s.now = end
		s.decide()
	}
}

// decide does what is decided, until nothing is.
func (s *cronStory) decide() {
	s.t.Helper()
	for range 10 {
		var runs []CronJobRun
		for _, name := range slices.Sorted(maps.Keys(s.runs)) {
			runs = append(runs, *s.runs[name])
		}
		step := DecideCron(s.cron, s.state, runs, s.now)
		s.state, s.wake = step.State, step.Wake
		clock := s.now.Format("15:04:05")
		if step.Missed > 0 {
			s.log = append(s.log, fmt.Sprintf("%s missed %d", clock, step.Missed))
		}
		for what, names := range map[string][]string{"replaced": step.Replaced, "forgotten": step.Expired} {
			for _, name := range names {
				s.log = append(s.log, fmt.Sprintf("%s %s is %s", clock, name, what))
				delete(s.runs, name)
			}
		}
		if step.Start.IsZero() {
			if len(step.Replaced)+len(step.Expired) == 0 {
				return
			}
			continue
		}
		name := "run-" + step.Start.Format("15:04")
		s.runs[name] = &CronJobRun{Name: name, At: step.Start, State: record.RunActive}
		s.state.LastRun, s.state.Active = name, append(s.state.Active, name)
		s.log = append(s.log, fmt.Sprintf("%s start %s", clock, name))
	}
	s.t.Fatal("it does not come to rest")
}
