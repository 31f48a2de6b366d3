package control

import (
	"fmt"
	"slices"
	"strings"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// What a service or a job depends on gates the first start of each of its
// revisions, or runs: nothing of it is placed until every dependency holds.
// Once they have, which is written down, or once something of it runs, the gate
// is open for good: what fails later stops nothing, and restarts are no starts.
//
// Whether a dependency holds is read off its rollout, or run, alone, which says
// how many are ready. So who waits is looked at again when one of these changes,
// and costs nothing at any other event.

// Dependency is what must hold before a revision, or run, is started.
type Dependency struct {
	Key string // NAMESPACE/NAME
	Job bool   // it is a job that must have completed; else a service that must be healthy
}

// String names it for people.
func (d Dependency) String() string {
	if d.Job {
		return "job " + d.Key
	}
	return "service " + d.Key
}

// unmet says why a dependency does not hold, "" if it does. Final is one that
// waiting does not mend.
func (s *State) unmet(d Dependency) (why string, final bool) {
	svc := s.services[d.Key]
	if d.Job {
		return svc.incomplete()
	}
	return svc.unhealthy(), false
}

// incomplete says why a job has not completed.
func (s *service) incomplete() (why string, final bool) {
	if s == nil || s.job == nil || s.job.spec == 0 {
		return "does not exist", false
	}
	j := s.job
	r := j.run
	if r == nil || r.Number != j.work.Revision || !r.Created.Equal(j.created) {
		return "has not begun", false
	}
	switch r.State {
	case record.RunCompleted:
		return "", false
	case record.RunFailed:
		return strings.TrimSuffix("failed: "+r.Message, ": "), true
	}
	return fmt.Sprintf("is %s: %d of %d indexes completed", r.State, r.Done.Len(), r.Indexes), false
}

// unhealthy says why a service is not healthy. One whose rollout failed is all
// the same if it was rolled back, or filled up since.
func (s *service) unhealthy() string {
	if s == nil || s.spec == 0 {
		return "does not exist"
	}
	r := s.rollout
	switch {
	case r == nil || r.Spec != s.spec:
		return "has not been rolled out"
	case r.Ready < max(1, r.Desired):
		return fmt.Sprintf("is not healthy: %d of %d ready", r.Ready, r.Desired)
	}
	switch a := r.Current(); {
	case a.State == record.Progressing:
		return fmt.Sprintf("is being rolled out: %d of %d updated", r.Updated, r.Desired)
	case a.State == record.RolloutFailed && r.Updated < r.Desired:
		return "is not healthy: its rollout failed"
	}
	return ""
}

// await says what of deps does not hold, and has svc looked at again when that
// may have changed.
func (s *State) await(svc *service, deps []Dependency) (unmet []record.Unmet, b *blocked) {
	s.unawait(svc)
	for _, d := range deps {
		why, final := s.unmet(d)
		if why == "" {
			continue
		}
		unmet = append(unmet, record.Unmet{Dependency: d.String(), Why: why})
		if b == nil {
			b = &blocked{why: record.WhyDependency}
		}
		b.final = b.final || final
		svc.awaits = append(svc.awaits, d.Key)
		if s.awaited[d.Key] == nil {
			s.awaited[d.Key] = map[*service]struct{}{}
		}
		s.awaited[d.Key][svc] = struct{}{}
	}
	if b != nil {
		b.message = record.Waits(unmet)
	}
	return unmet, b
}

func (s *State) unawait(svc *service) {
	for _, key := range svc.awaits {
		if delete(s.awaited[key], svc); len(s.awaited[key]) == 0 {
			delete(s.awaited, key)
		}
	}
	svc.awaits = nil
}

// moved has those looked at that wait for key.
func (s *State) moved(key string) {
	for svc := range s.awaited[key] {
		s.mark(svc)
	}
}

// gated are the dependencies that the revision of v has yet to wait for; open
// reports whether it has some, and need not.
func (v *view) gated() (deps []Dependency, open bool) {
	w, r := v.work, v.rollout
	if len(w.DependsOn) == 0 || w.Replicas == 0 {
		return nil, false
	}
	m := record.Mark{Revision: w.Revision, Hash: w.Hash}
	if r.Created.Equal(v.created) && (r.Cleared == m || slices.Contains(r.Completed, m)) {
		return nil, true
	}
	if slices.ContainsFunc(v.tasks, func(t *task) bool { return t.rec.Hash == w.Hash && t.rec.Stop == nil }) {
		return nil, true
	}
	return w.DependsOn, false
}

// depend has the view wait for what its revision depends on.
func (s *State) depend(svc *service, v *view) {
	deps, open := v.gated()
	if svc.supposed {
		deps, open = nil, true
	}
	unmet, b := s.await(svc, deps)
	v.unmet, v.cleared = unmet, open || deps != nil && unmet == nil
	if v.blocked == nil {
		v.blocked = b
	}
}

// gate writes down what is waited for. The deadline begins anew when the wait
// is over: the revision has had no time yet.
func (v *view) gate(waited bool) {
	r := v.rollout
	r.Waiting = v.unmet
	switch {
	case v.cleared:
		r.Cleared = record.Mark{Revision: v.work.Revision, Hash: v.work.Hash}
	case len(v.work.DependsOn) == 0:
		r.Cleared = record.Mark{}
	}
	if a := v.attempt(); waited && v.unmet == nil && a.State == record.Progressing {
		a.Progressed = v.now
	}
}

// dependJob has the run wait for what the job depends on, until anything of it has
// been started.
func (s *State) dependJob(svc *service, v *jobView) {
	r := &v.run
	if s.unawait(svc); r.State.Final() {
		return // what it waited for to its end stays in the record
	}
	var deps []Dependency
	begun := r.Done.Len()+r.Failed.Len()+len(r.Tries) > 0 || slices.ContainsFunc(v.tasks, v.mine)
	if !r.Cleared && !begun && !svc.supposed {
		deps = v.work.DependsOn
	}
	var b *blocked
	r.Waiting, b = s.await(svc, deps)
	r.Cleared = r.Cleared || len(v.work.DependsOn) > 0 && r.Waiting == nil
	if v.blocked == nil {
		v.blocked = b
	}
}

// waiting tells when a wait begins and when it ends.
func (w *writer) waiting(revision int64, old, now []record.Unmet) {
	switch {
	case len(old) == 0 && len(now) > 0:
		w.event(Event{Kind: DependencyAwaited, Revision: revision, Reason: record.WhyDependency, Message: record.Waits(now)})
	case len(old) > 0 && len(now) == 0:
		w.event(Event{Kind: DependencyMet, Revision: revision, Reason: record.WhyDependency})
	}
}
