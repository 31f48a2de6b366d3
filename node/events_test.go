package node_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/record"
	runmem "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/store"
)

// agentKinds are the kinds of event that agents write.
var agentKinds = []orchestrate.EventKind{
	orchestrate.TaskStarted, orchestrate.TaskRestarted, orchestrate.TaskUnhealthy, orchestrate.TaskKilled,
	orchestrate.TaskRefused, orchestrate.TaskEnded, orchestrate.EventsDropped,
}

// told are the agents' events of a service, as KIND REASON and what more matters.
func (m *machine) told(service string) (lines []string) {
	m.t.Helper()
	synctest.Wait()
	events, err := m.fleet.Events(context.Background(), orchestrate.EventFilter{Service: service, Kinds: agentKinds})
	if err != nil {
		m.t.Fatal(err)
	}
	for _, e := range events {
		line := fmt.Sprint(strings.TrimPrefix(string(e.Kind), "task-"), " ", e.Reason)
		if e.Failure != nil && e.Failure.Kind == orchestrate.FailedExit {
			line += fmt.Sprint(" ", e.Failure.ExitCode)
		}
		if e.Kind == orchestrate.TaskRestarted || e.Restarts > 0 {
			line += fmt.Sprint(" #", e.Restarts)
		}
		if e.Kind == orchestrate.TaskEnded {
			line += " " + string(e.State)
		}
		lines = append(lines, line)
		if e.Cause.Actor != "agent of n1" || e.Node != "n1" || e.Revision == 0 || e.Cause.Revision != e.Revision || e.Task == "" || e.Token == "" || e.At.IsZero() {
			m.t.Errorf("%+v; want who told it, of which task and revision, and when", e)
		}
		if e.Failure != nil && e.Failure.Log != nil {
			m.t.Errorf("%v keeps what the container wrote: %q", e, e.Failure.Log)
		}
	}
	return lines
}

// What a node sees and does of a task is told with its cause, and kept.
func TestAgentsTell(t *testing.T) {
	secret := []runmem.Output{{Text: "the password is hunter2"}}
	slow := func(tm *orchestrate.Template) { tm.StopGrace = 2 * time.Second }
	for name, tc := range map[string]struct {
		program runmem.Program
		change  func(*orchestrate.Template)
		then    func(m *machine, sw *switches)
		want    []string
	}{
		"a life": {runmem.Program{}, nil, nil, []string{"started wanted", "ended removed stopped"}},
		"crashes until it gives up": {
			runmem.Program{Life: time.Second / 2, Code: 3, Output: secret},
			func(tm *orchestrate.Template) { tm.Restart = orchestrate.RestartPolicy{Attempts: 2} }, nil,
			[]string{"started wanted", "restarted exit 3 #1", "restarted exit 3 #2", "ended exit 3 #2 failed"},
		},
		"out of memory": {
			runmem.Program{Life: time.Minute, Code: 137, OOM: true},
			func(tm *orchestrate.Template) { tm.Restart = orchestrate.RestartPolicy{Attempts: 1} },
			func(*machine, *switches) { time.Sleep(90 * time.Second) },
			[]string{"started wanted", "restarted oom #1", "ended removed #1 stopped"},
		},
		"a liveness kill": {
			runmem.Program{}, func(tm *orchestrate.Template) { tm.Containers[0].Liveness = custom("alive") },
			func(m *machine, sw *switches) {
				for sw.set("alive", true); !slices.Contains(m.told("one"), "unhealthy liveness"); {
					time.Sleep(100 * time.Millisecond)
				}
				sw.set("alive", false)
				time.Sleep(time.Minute)
			},
			[]string{"started wanted", "unhealthy liveness", "restarted liveness #1", "ended removed #1 stopped"},
		},
		"a stop that takes too long": {runmem.Program{StopTime: -1}, slow, nil, []string{"started wanted", "killed grace", "ended removed stopped"}},
		"a start that fails": {
			runmem.Program{StartErr: fmt.Errorf("no such file"), StartErrPermanent: true}, nil, nil, []string{"refused start", "ended start failed"},
		},
		"an image that does not exist": {
			runmem.Program{}, func(tm *orchestrate.Template) { tm.Containers[0].Image = "none:1" }, nil, []string{"refused image", "ended image failed"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t)
				sw := &switches{bad: map[string]bool{}}
				m.checkers = sw.checkers("alive")
				m.runtime = runmem.New(runmem.Options{Strict: true})
				m.runtime.SetImage("img", runmem.Image{Program: tc.program})
				m.agent()
				tm := orchestrate.Template{Containers: []orchestrate.Container{{Image: "img"}}}
				if tc.change != nil {
					tc.change(&tm)
				}
				s := one(tm)
				s.Update.OnFailure, s.Update.MaxFailures = orchestrate.Pause, 1
				m.apply(s)
				if _, err := m.fleet.Wait(t.Context(), "one"); err != nil {
					t.Fatal(err)
				}
				if tc.then != nil {
					tc.then(m, sw)
				}
				if err := m.fleet.Remove(t.Context(), "one"); err != nil {
					t.Fatal(err)
				}
				m.wait("one", orchestrate.RolloutRemoved)
				if got := m.told("one"); !slices.Equal(got, tc.want) {
					t.Errorf("told is %q, want %q", got, tc.want)
				}
			})
		})
	}
}

// The event of a restart comes before the status that follows it: it does not say
// what the task was before as if it were what it is.
func TestRestartIsNotToldAsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.runtime = runmem.New(runmem.Options{Strict: true})
		m.runtime.SetImage("img", runmem.Image{Program: runmem.Program{Life: time.Minute, Code: 1}})
		m.agent()
		events, err := m.fleet.Watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m.apply(one(orchestrate.Template{Containers: []orchestrate.Container{{Image: "img"}}}))
		restarted, ready := false, false
		for !ready {
			switch e := <-events; {
			case e.Kind == orchestrate.TaskRestarted:
				restarted = true
				if e.State == orchestrate.Ready || e.Restarts != 1 {
					t.Errorf("%+v; want the first restart, of a task that is not ready", e)
				}
			case e.Restarts == 1 && e.State == orchestrate.Ready:
				ready = true
			}
		}
		if !restarted {
			t.Error("the restart is not told before it is over")
		}
	})
}

// A restart of the agent is none of its tasks' business: nothing is told twice, and
// what ended meanwhile is told once.
func TestAgentsTellOverRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		kill := m.agent()
		m.runtime.SetImage("img", runmem.Image{Program: runmem.Exits(time.Minute, 7)})
		m.apply(one(orchestrate.Template{Containers: []orchestrate.Container{{Image: "img"}}}))
		m.wait("one", orchestrate.RolloutCompleted)
		kill()
		kill = m.agent()
		synctest.Wait()
		if got := m.told("one"); !slices.Equal(got, []string{"started wanted"}) {
			t.Errorf("after a restart of the agent told is %q", got)
		}
		kill()
		time.Sleep(time.Minute) // its container ends
		m.agent()
		time.Sleep(time.Second)
		if got := m.told("one"); !slices.Equal(got, []string{"started wanted", "restarted exit 7 #1"}) {
			t.Errorf("after an end without an agent told is %q", got)
		}
	})
}

// A Watch tells what agents tell, in its place, and a job's result.
func TestWatchTellsAgentsEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.agent()
		synctest.Wait()
		m.runtime.SetImage("img", runmem.Image{Program: runmem.Exits(time.Minute, 0)})
		events, err := m.fleet.Watch(t.Context(), orchestrate.WatchOnly(orchestrate.EventFilter{Service: "sums"}))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.fleet.Apply(t.Context(), orchestrate.Job{Name: "sums", Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: "img"}}}}); err != nil {
			t.Fatal(err)
		}
		var got []string
		for e := range events {
			if e.Kind != orchestrate.TaskChanged {
				got = append(got, string(e.Kind)+" "+e.Cause.Actor)
			}
			if e.Kind == orchestrate.JobSucceeded {
				break
			}
		}
		want := []string{"job-applied application", "job-started application", "task-placed application", "task-started agent of n1", "task-ended agent of n1", "job-completed application"}
		if !slices.Equal(got, want) {
			t.Errorf("told is %q, want %q", got, want)
		}
	})
}

// A node that was taken over can write what it likes under its own keys, and is
// believed nothing of what others decide.
func TestForgedEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.agent()
		m.apply(one(orchestrate.Template{Containers: []orchestrate.Container{{Image: "img"}}}))
		m.wait("one", orchestrate.RolloutCompleted)
		events := []record.Event{
			{Kind: record.ServiceRemoved, Namespace: "default", Service: "one", Cause: record.Cause{Actor: "alice"}},
			{Kind: "node-lost", Node: "n2"},
			{Kind: record.TaskEnded, Namespace: "default", Service: "one", Node: "n2", Cause: record.Cause{Actor: "agent of n2"}},
		}
		for _, key := range []string{record.NodeEvents("n1", 99), record.Key(record.Kept+"node/", "n1", "deeper", "still")} {
			if _, err := m.store.Commit(t.Context(), store.Txn{Writes: []store.Write{store.Put(key, record.EncodeEvents(events))}}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := m.store.Commit(t.Context(), store.Txn{Writes: []store.Write{store.Put(record.NodeEvents("n1", 100), []byte(`{"events":[],"forgotten":999999}`))}}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		all, err := m.fleet.Events(t.Context(), orchestrate.EventFilter{})
		if err != nil {
			t.Fatal(err)
		}
		believed := 0
		for _, e := range all {
			switch {
			case e.Cause.Actor == "alice", e.Kind == orchestrate.NodeLost, e.Node == "n2", e.Cause.Actor == "agent of n2":
				t.Errorf("it is believed %v", e)
			case e.Kind == orchestrate.TaskEnded:
				believed++
			}
		}
		if believed != 2 {
			t.Errorf("%d of its own events are told, want both", believed)
		}
		if err := m.fleet.Remove(orchestrate.WithActor(t.Context(), "bob"), "one"); err != nil {
			t.Fatal(err)
		}
		m.wait("one", orchestrate.RolloutRemoved)
		gone, err := m.fleet.Events(t.Context(), orchestrate.EventFilter{Kinds: []orchestrate.EventKind{orchestrate.ServiceGone}})
		if err != nil || len(gone) != 1 || gone[0].Cause.Actor != "bob" {
			t.Errorf("it is gone by %v, %v; want by bob alone", gone, err)
		}
	})
}
