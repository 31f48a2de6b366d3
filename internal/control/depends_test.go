package control_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
)

// dependsOn reads such as db,job:migrate.
func dependsOn(text string) (deps []control.Dependency) {
	for name := range strings.SplitSeq(text, ",") {
		if name == "" {
			continue
		}
		name, job := strings.CutPrefix(name, "job:")
		deps = append(deps, control.Dependency{Key: "default/" + name, Job: job})
	}
	return deps
}

// TestDependencyWakesItsDependentsAlone holds that an event of a service has only
// those planned that wait for it.
func TestDependencyWakesItsDependentsAlone(t *testing.T) {
	s := newSim(t)
	s.play("node n1 memory=100000")
	s.play("apply db replicas=1 image=v1 monitor=1s")
	s.play("apply other replicas=1 image=v1 on=missing")
	for i := range 20 {
		s.play(fmt.Sprintf("apply web%d replicas=1 image=v1 on=db", i))
	}
	if n := len(s.tasks("")); n != 1 {
		t.Fatalf("%d tasks, want that of db alone", n)
	}
	written := map[string]int{}
	s.planned = func(p control.Plan) {
		for _, w := range p.Writes {
			written[w.Key]++
		}
	}
	s.play("ready db*")
	s.play("wait 2s")
	if n := len(s.tasks("")); n != 21 {
		t.Errorf("%d tasks, want one of db and one of each that waited for it", n)
	}
	if n := written[record.Rollouts+"default/other"]; n != 0 {
		t.Errorf("what waits for something else was written %d times", n)
	}
}
