package control

import (
	"slices"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// waits is what a service, or a job, waits for.
func (svc *service) waits() []record.Unmet {
	switch {
	case svc.spec != 0 && svc.rollout != nil && svc.rollout.Spec == svc.spec:
		return svc.rollout.Waiting
	case svc.job != nil && svc.job.spec != 0 && svc.job.run != nil && !svc.job.run.State.Final():
		return svc.job.run.Waiting
	}
	return nil
}

// suppose has those of the services that were asked for wait no more that wait
// for nothing that waits itself, and reports whether there are any.
func (r *rehearsal) suppose() bool {
	var wait []*service
	for key, c := range r.cast {
		svc := r.state.services[key]
		if svc == nil || svc.supposed || svc.waits() == nil || svc.job == nil && svc.rollout.Current().State != record.Progressing {
			continue // one that has failed for it has been told
		}
		if c.waiting == nil {
			c.waiting = svc.waits()
		}
		if c.asked {
			wait = append(wait, svc)
		}
	}
	more := false
	for _, svc := range wait {
		if !slices.ContainsFunc(wait, func(o *service) bool { return slices.Contains(svc.awaits, o.key) }) {
			svc.supposed, more = true, true
			r.state.mark(svc)
		}
	}
	if more {
		r.supposing = true
		r.rest()
	}
	return more
}
