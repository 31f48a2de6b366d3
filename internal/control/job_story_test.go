package control_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// storyJob is the spec of a job in the stories.
type storyJob struct {
	control.JobWork
	Image  string
	Memory int64
}

func decodeStoryJob(_, _ string, rec record.Job) (control.JobWork, error) {
	var j storyJob
	err := json.Unmarshal(rec.Spec, &j)
	w := j.JobWork
	w.Template, _ = json.Marshal(j.Image)
	w.Request = scheduler.Request{Resources: scheduler.Resources{Memory: j.Memory}}
	return w, err
}

// job applies a job. Of one that there is, a word that changes what its tasks do
// begins it anew, but for patch, which changes the image beneath its run.
func (s *sim) job(name string, words []string) {
	s.t.Helper()
	key := record.Key(record.Jobs, "default", name)
	j := storyJob{Image: "once", JobWork: control.JobWork{Indexes: 1, Parallelism: 1, Backoff: time.Second, MaxBackoff: time.Minute}}
	var old record.Job
	if item, ok := s.kv[key]; ok {
		unmarshal(s.t, item.Value, &old)
		unmarshal(s.t, old.Spec, &j)
	}
	rec := record.Job{Run: old.Run, Created: epoch}
	if len(words) == 0 || old.Run == 0 {
		rec.Run++
	}
	enough := j.Enough
	for _, w := range words {
		switch key, value, _ := strings.Cut(w, "="); key {
		case "on":
			j.DependsOn = dependsOn(value)
		case "indexes":
			j.Indexes = int(s.number(value))
			rec.Run = old.Run + 1
		case "image":
			j.Image = value
			rec.Run = old.Run + 1
		case "patch":
			j.Image = value
		case "memory":
			j.Memory = s.number(value)
		case "parallelism":
			j.Parallelism = int(s.number(value))
		case "enough":
			enough = int(s.number(value))
		case "retries":
			j.Retries = int(s.number(value))
		case "backoff":
			j.Backoff = s.duration(value)
		case "deadline":
			j.Deadline = s.duration(value)
		case "keep":
			j.Keep = int(s.number(value))
		case "gang":
			j.Gang = value == "yes"
		case "suspended":
			j.Suspended = value == "yes"
		case "exits": // CODE:ACTION,…; * is any
			j.Rules = nil
			for rule := range strings.SplitSeq(value, ",") {
				code, action, _ := strings.Cut(rule, ":")
				r := control.ExitRule{Action: control.ExitAction(action)}
				if code != "*" {
					r.Codes = []int{int(s.number(code))}
				}
				j.Rules = append(j.Rules, r)
			}
		default:
			s.t.Fatalf("unknown setting %q", w)
		}
	}
	if j.Enough = enough; enough == 0 || enough > j.Indexes {
		j.Enough = j.Indexes
	}
	rec.Hash, rec.Spec = j.Image, marshal(s.t, j)
	s.commit(store.Put(key, marshal(s.t, rec)))
}

func describeRun(r record.Run) string {
	text := fmt.Sprintf("%s, %d of %d done", r.State, r.Done.Len(), r.Indexes)
	if r.Failed.Len() > 0 {
		text += ", given up: " + r.Failed.String()
	}
	for _, i := range slices.Sorted(maps.Keys(r.Tries)) {
		text += fmt.Sprintf(", index %d failed %d times", i, r.Tries[i].Failures)
	}
	if r.Ignored > 0 {
		text += fmt.Sprintf(", %d not counted", r.Ignored)
	}
	if r.Reason != "" {
		text += fmt.Sprintf(", %s: %s", r.Reason, r.Message)
	}
	if len(r.Waiting) > 0 {
		text += ", waits: " + record.Waits(r.Waiting)
	}
	return text
}
