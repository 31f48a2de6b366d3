package control

import (
	"encoding/json"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// An autoscaler decides how many replicas a service has while its spec has a
// policy. It says so in a record of its own, which is the leader's, and all else
// goes on as if the spec had said it: a rollout under way aims at the new number,
// shares of it follow, and what was completed is kept true.

// Bounds of the number of replicas.
type Bounds struct{ Min, Max int }

func (s *State) changeScale(key string, c store.Change) error {
	svc, err := s.service(key)
	if err != nil {
		return err
	}
	s.mark(svc)
	svc.disturbAll()
	svc.scale = nil
	if !c.Deleted {
		svc.scale = new(record.Scale)
		err = json.Unmarshal(c.Item.Value, svc.scale) // it is written anew
	}
	work := *svc.work
	svc.rescale(&work)
	svc.work = &work
	if svc.earlier != nil {
		own := *svc.earlier
		svc.rescale(&own.work)
		svc.earlier = &own
	}
	s.forget(svc)
	return err
}

// rescale gives w the replicas that it is to have now.
func (svc *service) rescale(w *Workload) {
	n := max(0, w.fixed)
	if b := w.Scaled; b != nil {
		if svc.scale != nil && svc.scale.Created.Equal(svc.created) {
			n = svc.scale.Replicas
		}
		n = min(max(n, b.Min), b.Max)
	}
	w.Replicas, w.Update = n, w.given.withDefaults(n)
}

// unscaled reports whether the record of the number of replicas is nobody's any
// more.
func (svc *service) unscaled() bool {
	return svc.scale != nil && (svc.work.Scaled == nil || !svc.scale.Created.Equal(svc.created))
}

// measure has the agents of tasks that run told when to measure them, where
// that has changed.
func (w *writer) measure(v *view, every time.Duration) {
	for _, t := range v.tasks {
		if t.rec.Measure != every && t.live() && !v.told[t] {
			t.own().Measure = every
			w.put(record.Key(record.Tasks, t.rec.Node, t.rec.ID), t.rec)
		}
	}
}

// scaling reports whether the number of replicas is what an autoscaler made of
// it, and not the application.
func (svc *service) scaling() bool {
	return svc.work.Scaled != nil && svc.scale != nil && svc.rollout != nil && svc.rollout.Current().State != record.Progressing
}
