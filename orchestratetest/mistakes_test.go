package orchestratetest

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
)

// TestMistakes has no scenario be run that could not test what it seems to.
func TestMistakes(t *testing.T) {
	web := orchestrate.Service{Name: "web", Replicas: 1, Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: "web:1"}}}}
	later := web
	later.Name = "later"
	step := func(do Action) []Step { return []Step{{At: time.Minute, Do: do}} }
	for name, tc := range map[string]struct {
		scenario Scenario
		says     string // nothing when it is right
	}{
		"a node":                 {Scenario{Script: step(NodeDies{Node: "n4"})}, `"n4", which is no node`},
		"one of a partition":     {Scenario{Script: step(Partition{Nodes: []string{"n1", "m1"}})}, `"m1", which is no node`},
		"a drain":                {Scenario{Script: step(Drain{"node1"})}, `"node1", which is no node`},
		"a watch":                {Scenario{Script: step(WatchLost{Of: "control2"})}, `"control2", which is no node`},
		"a service":              {Scenario{Objects: []orchestrate.Object{web}, Script: step(ContainerCrashes{Service: "wbe"})}, `"wbe", and nothing of that name is applied: there are [default/web]`},
		"after the end":          {Scenario{Script: []Step{{At: 2 * time.Hour, Do: NodeDies{Node: "n1"}}}}, "after the end at 1h0m0s"},
		"nothing to do":          {Scenario{Script: step(nil)}, "does nothing"},
		"no check":               {Scenario{Always: []Invariant{{Name: "all is well"}}}, `"all is well" has no Check`},
		"no time":                {Scenario{Eventually: []Eventual{Eventually("soon", 0, func(*View) error { return nil })}}, `"soon", which is to hold eventually`},
		"the leader":             {Scenario{ControlPlanes: 2, Script: step(WatchLost{})}, ""},
		"a control plane":        {Scenario{ControlPlanes: 2, Script: step(ClockSkew{Node: "control2"})}, ""},
		"all nodes":              {Scenario{Script: step(PullSlow{By: time.Minute})}, ""},
		"what is applied later":  {Scenario{Script: append(step(Apply{[]orchestrate.Object{later}}), step(Scale{"later", 3})...)}, ""},
		"whatever somebody does": {Scenario{Script: append(step(Do{Name: "anything"}), step(Scale{"later", 3})...)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, err := newWorld(tc.scenario.withDefaults())
				if tc.says == "" && err != nil || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
					t.Errorf("%v, want %q", err, tc.says)
				}
			})
		})
	}
	for name, tc := range map[string]struct {
		scenario Scenario
		says     string
	}{
		"a service that never serves": {Scenario{Objects: []orchestrate.Object{web}, Always: []Invariant{AtLeast("web", 2)}}, "1h0m0s: web has at least 2 tasks that serve: it never had them"},
		"an object that is refused":   {Scenario{Script: step(Apply{[]orchestrate.Object{orchestrate.Service{Name: "Web"}}})}, "1m0s: what is applied is valid: "},
	} {
		t.Run(name, func(t *testing.T) {
			tc.scenario.Shrink = -1
			if r := Explore(t, tc.scenario); r.Failure == nil || !strings.Contains(r.Failure.Error(), tc.says) {
				t.Errorf("%v, want %q", r.Failure, tc.says)
			}
		})
	}
}

// ownOptions and OwnOptions are functions of a test, as a user's are.
func ownOptions() []orchestrate.Option { return nil }
func OwnOptions() []orchestrate.Option { return nil }

// TestFunctionsAreNamed has the functions of a printed scenario be found where it is
// pasted.
func TestFunctionsAreNamed(t *testing.T) {
	for want, options := range map[string]func() []orchestrate.Option{
		"Options: ownOptions,":                 ownOptions, // nobody but this package has it
		"Options: orchestratetest.OwnOptions,": OwnOptions,
		"// Options is a function without":     func() []orchestrate.Option { return nil },
	} {
		source := goTest(Scenario{Options: options}, &Violation{Err: errOver})
		if !strings.Contains(source, want) || !strings.Contains(source, `"`+self+`"`) {
			t.Errorf("want %s in\n%s", want, source)
		}
	}
}
