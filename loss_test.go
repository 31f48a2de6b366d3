package orchestrate_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

func TestWithLossLimitRefuses(t *testing.T) {
	s := memory.New(memory.Options{})
	defer s.Close()
	for limit, want := range map[orchestrate.Amount]string{
		"": "", "10%": "", "1": "", "100%": "", // empty is the default
		"0": "want 1 or more", "0%": "want 1 or more", "101%": "more than 100%", "many": "neither", "-1": "neither",
	} {
		f, err := orchestrate.New(s, orchestrate.WithLossLimit(limit))
		switch {
		case want == "" && err != nil:
			t.Errorf("New with a loss limit of %q: %v", limit, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("New with a loss limit of %q: %v, want an error that says %q", limit, err, want)
		}
		if err == nil {
			f.Close()
		}
	}
}

// TestLossPolicy has the node of four services die, and return without what it
// ran: each service waits as it says, and keeps the task that it says. What is
// forecast is what happens.
func TestLossPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		stop := addNode(t, s, "n2")
		synctest.Wait()
		if err := f.Cordon(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		policies := map[string]orchestrate.LossPolicy{
			"default": {},
			"fast":    {LostAfter: 4 * time.Second, Returning: orchestrate.KeepOriginal},
			"slow":    {LostAfter: 2 * time.Hour},
			"loyal":   {LostAfter: -1},
		}
		original := map[string]string{}
		for name, policy := range policies {
			sv := sized(name, 1, 1<<20)
			sv.LossPolicy = policy
			if err := f.Apply(t.Context(), sv); err != nil {
				t.Fatal(err)
			}
			mustEnd(t, f, name, orchestrate.RolloutCompleted)
			original[name] = only(t, f, name).ID
		}
		if err := f.Uncordon(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		forecast, err := f.WhatIf(t.Context(), orchestrate.NodesDie("n2"))
		if err != nil {
			t.Fatal(err)
		}
		moved := map[string]time.Duration{}
		for _, sv := range forecast.Services {
			for _, task := range sv.Tasks {
				moved[strings.TrimPrefix(sv.Service, "default/")] = task.After
				if task.Action != orchestrate.TaskMoves {
					t.Errorf("the forecast for %s is to %s, want that its task moves", sv.Service, task.Action)
				}
			}
		}
		if want := map[string]time.Duration{"fast": 4 * time.Second, "default": 30 * time.Second, "slow": 2 * time.Hour}; !maps.Equal(moved, want) {
			t.Errorf("it is forecast that tasks are replaced after %v, want %v", moved, want)
		}

		stop()
		died := time.Now()
		for _, step := range []struct {
			at       time.Duration // after the lease has run out, which takes up to 5 s
			replaced []string
		}{
			{2 * time.Second, nil},
			{10 * time.Second, []string{"fast"}},
			{40 * time.Second, []string{"default", "fast"}},
			{3 * time.Hour, []string{"default", "fast", "slow"}},
			{300 * time.Hour, []string{"default", "fast", "slow"}},
		} {
			time.Sleep(time.Until(died.Add(step.at)))
			synctest.Wait()
			var replaced []string
			for name := range policies {
				tasks, err := f.Tasks(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				if len(tasks) > 1 {
					replaced = append(replaced, name)
				}
			}
			slices.Sort(replaced)
			if !slices.Equal(replaced, step.replaced) {
				t.Errorf("after %v, %v are replaced, want %v", step.at, replaced, step.replaced)
			}
		}
		for name, want := range map[string]string{
			"loyal": "replaced only when the node is fenced or deleted", "slow": "stops when it returns", "fast": "replaced when that has lasted for 4s",
		} {
			x, err := f.Why(t.Context(), original[name])
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(x.String(), "node n2 is silent, and was given up at") || !strings.Contains(x.String(), want) {
				t.Errorf("why the task of %s is where it is:\n%s\nwant that it says %q", name, x, want)
			}
		}

		addNode(t, s, "n2") // without what ran there
		time.Sleep(time.Minute)
		synctest.Wait()
		for name := range policies {
			stays := only(t, f, name)
			kept := stays.ID == original[name]
			if want := name == "fast" || name == "loyal"; kept != want || stays.State != orchestrate.Ready {
				t.Errorf("of %s the original has stayed: %v, and is %s; want %v, ready", name, kept, stays.State, want)
			}
		}
		events, err := f.Events(t.Context(), orchestrate.EventFilter{Service: "fast", Kinds: []orchestrate.EventKind{orchestrate.TaskPlaced, orchestrate.TaskStopping}})
		if err != nil {
			t.Fatal(err)
		}
		var told []string
		for _, e := range events {
			told = append(told, fmt.Sprintf("%s %s %s", e.Kind, e.Reason, e.Cause.Trigger))
		}
		if want := []string{"task-placed wanted ", "task-placed node-lost node/n2", "task-stopping returned node/n2"}; !slices.Equal(told, want) {
			t.Errorf("of fast it is told %q, want %q", told, want)
		}
		if lost := events[1].At.Sub(died); lost < 4*time.Second || lost > 10*time.Second {
			t.Errorf("the task of fast was replaced %v after its node died, want 4 s after its lease ran out", lost)
		}
	})
}

// only is the task of a service that has one.
func only(t *testing.T, f *orchestrate.Fleet, name string) orchestrate.Task {
	t.Helper()
	tasks, err := f.Tasks(t.Context(), name)
	if err != nil || len(tasks) != 1 {
		t.Fatalf("%s has the tasks %+v (%v), want one", name, tasks, err)
	}
	return tasks[0]
}
