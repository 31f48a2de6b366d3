package control_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
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

// decodeStoryJob makes a job of one task, of what it depends on.
func decodeStoryJob(_, _ string, rec record.Job) (control.JobWork, error) {
	w := control.JobWork{Indexes: 1, Parallelism: 1, Enough: 1, Backoff: time.Second, MaxBackoff: time.Minute}
	w.Template = json.RawMessage(`"once"`)
	err := json.Unmarshal(rec.Spec, &w.DependsOn)
	return w, err
}

func (s *sim) job(name string, words []string) {
	s.t.Helper()
	var deps []control.Dependency
	for _, w := range words {
		deps = dependsOn(strings.TrimPrefix(w, "on="))
	}
	key := record.Key(record.Jobs, "default", name)
	var old record.Job
	if item, ok := s.kv[key]; ok {
		unmarshal(s.t, item.Value, &old)
	}
	s.commit(store.Put(key, marshal(s.t, record.Job{Run: old.Run + 1, Hash: "once", Created: epoch, Spec: marshal(s.t, deps)})))
}

func describeRun(r record.Run) string {
	text := fmt.Sprintf("%s, %d of %d done", r.State, r.Done.Len(), r.Indexes)
	if r.Reason != "" {
		text += fmt.Sprintf(", %s: %s", r.Reason, r.Message)
	}
	if len(r.Waiting) > 0 {
		text += ", waits: " + record.Waits(r.Waiting)
	}
	return text
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
