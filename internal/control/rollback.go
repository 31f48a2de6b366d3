package control

import (
	"encoding/json"
	"fmt"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// A rollback is an attempt like the one that failed, with the template of the
// last completed revision in place of the spec's: the same steps, the same
// promise, the same ends. It is the second and last attempt at a spec: one that
// fails is held, as a first attempt that has nothing to go back to.
//
// The leader does not write the spec, which is the application's. So the rollout
// of it stays failed, and says beside that what became of the rollback; whatever
// is applied later begins a rollout of its own.

// earlier is a service's workload with an earlier template. It is replaced, and
// not written to.
type earlier struct {
	mark record.Mark
	work Workload
	err  error // why there is none
}

// earlier returns the workload of svc as it was at a revision.
func (s *State) earlier(svc *service, mark record.Mark) *earlier {
	if e := svc.earlier; e != nil && e.mark == mark {
		return e
	}
	e := &earlier{mark: mark, err: fmt.Errorf("revision %d is not in the service's history", mark.Revision)}
	svc.earlier = e
	var rec record.Service
	at := &record.Revision{Revision: mark.Revision, Hash: mark.Hash}
	if svc.record != nil {
		if err := json.Unmarshal(svc.record, &rec); err != nil {
			e.err = err // it has been read before
		}
	}
	for i, r := range rec.History {
		if r.Revision == mark.Revision && r.Hash == mark.Hash {
			at = &rec.History[i]
		}
	}
	if at.Template == nil {
		e.work = *svc.work
		e.work.Revision, e.work.Hash = mark.Revision, mark.Hash
		return e
	}
	e.work, e.err = s.decode(svc, rec, at)
	return e
}

// lastCompleted is the last completed revision of svc, which its spec is to replace and
// goes back to should that fail; nil if there is none, or if it is the spec's.
func (s *State) lastCompleted(svc *service) *Workload {
	r := svc.rollout
	if r == nil || !r.Created.Equal(svc.created) || len(r.Completed) == 0 {
		return nil
	}
	last := r.Completed[len(r.Completed)-1]
	if last.Hash == svc.work.Hash {
		return nil // it is what failed
	}
	if e := s.earlier(svc, last); e.err == nil {
		return &e.work
	}
	return nil
}

// attempt is what is under way, or was the last.
func (v *view) attempt() *record.Attempt { return v.rollout.Current() }

// turnBack begins the rollback, if the rollout has just failed for its template
// or by a call, and there is something to go back to; from a rollback there is
// nothing. The steps are the next plan's, which looks at everything anew.
func (v *view) turnBack() bool {
	r := v.rollout
	if r.State != record.RolloutFailed || v.last == nil || !v.goesBack() {
		return false
	}
	v.work, v.global, v.last = v.last, v.globalBack, nil
	v.survey()
	r.Rollback = v.newAttempt()
	v.pardon()
	v.balance()
	return true
}

// goesBack reports whether the rollout failed in a way that leads back.
func (v *view) goesBack() bool {
	r := v.rollout
	switch r.Reason {
	case record.WhyAborted:
		return true
	case record.WhyFailures, record.WhyDeadline, record.WhyImage, record.WhyBake:
	case record.WhyCapacity:
		if !v.trying() { // else the old tasks are all there
			return false
		}
	default:
		return false
	}
	// An old set that has been dismissed is no better than the new one, which
	// has proved itself.
	return v.work.Update.OnFailure == RollBack && r.Phase != record.PhaseRetiring
}
