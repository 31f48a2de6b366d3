package control_test

import (
	"slices"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
)

// Whoever follows the events hears of a rollback what its record says.
func TestRollbackEvents(t *testing.T) {
	for _, tt := range []struct {
		name string
		then func(*sim)
		want []control.EventKind
	}{
		{"completes", func(s *sim) {
			for _, task := range s.tasks("web") {
				if task.Hash == "v1" {
					s.report(task, record.Ready, nil)
				}
			}
			s.pass(time.Second)
		}, []control.EventKind{control.RolloutStopped, control.RollbackStarted, control.RollbackSucceeded}},
		{"fails", func(s *sim) {
			s.pass(time.Hour)
		}, []control.EventKind{control.RolloutStopped, control.RollbackStarted, control.RollbackStopped}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSim(t)
			s.node("n1", 1000)
			sp := spec{Replicas: 1, Image: "v1", Update: control.Update{
				StopFirst: true, Monitor: time.Second, ProgressDeadline: time.Minute, OnFailure: control.RollBack,
			}}
			s.apply("web", sp)
			s.plan()
			s.report(s.tasks("web")[0], record.Ready, nil)
			s.pass(time.Second)
			var got []control.EventKind
			var revisions []int64
			s.planned = func(p control.Plan) {
				for _, e := range p.Events {
					switch e.Kind {
					case control.RolloutStopped, control.RollbackStarted, control.RollbackSucceeded, control.RollbackStopped:
						got, revisions = append(got, e.Kind), append(revisions, e.Revision)
					}
				}
			}
			sp.Image = "v2"
			s.apply("web", sp)
			s.plan()
			s.report(s.tasks("web")[0], record.Stopped, nil)
			s.plan()
			s.report(s.tasks("web")[0], record.Failed, &record.Failure{Kind: record.FailedImage, Permanent: true})
			s.plan()
			s.lead() // a new leader does not tell it again
			tt.then(s)
			if !slices.Equal(got, tt.want) || !slices.Equal(revisions, []int64{2, 1, 1}) {
				t.Errorf("events %v of revisions %v, want %v of 2, 1, 1", got, revisions, tt.want)
			}
		})
	}
}
