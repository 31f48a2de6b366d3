package control_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// patiences are what workloads of random tests have as LostAfter.
var patiences = []time.Duration{0, 0, 7 * time.Second, 45 * time.Second, -1}

// TestPatience has nodes come and go at random under services of all patiences,
// and checks of each task whose node is silent that it is replaced in the moment
// in which its service has waited long enough, and not before: so the planner is
// woken in time.
func TestPatience(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newSim(t)
		nodes := []string{"n1", "n2", "n3"}
		s.play("node safe memory=100000")
		for _, n := range nodes {
			s.play("node " + n)
		}
		of := map[string]time.Duration{}
		for i, p := range patiences[1:] {
			name := fmt.Sprint("s", i)
			of[name] = p
			s.apply(name, spec{Replicas: 3, Image: "v1", Memory: 1, LostAfter: p, Update: control.Update{Monitor: time.Second}})
		}
		s.plan()
		quiet := map[string]time.Time{} // since when nodes are silent
		broken := ""
		s.planned = func(p control.Plan) {
			for _, w := range p.Writes {
				var rec record.Task
				if !strings.HasPrefix(w.Key, record.Tasks) || w.Delete {
					continue
				}
				unmarshal(t, w.Value, &rec)
				since, silent := quiet[rec.Node]
				if rec.Stop == nil || !silent {
					continue
				}
				wait := of[rec.Service]
				if wait == 0 {
					wait = control.DefaultLostAfter
				}
				if was := s.now.Sub(since); wait < 0 || was < wait {
					broken = fmt.Sprintf("%s is replaced after %v of silence, want %v", s.alias(rec.ID), was, wait)
				}
			}
		}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			n := rapid.SampledFrom(nodes).Draw(rt, "node")
			if _, silent := quiet[n]; !silent {
				s.printf("> silent %s", n)
				quiet[n] = s.now
				s.play("silent " + n)
			} else if rapid.Bool().Draw(rt, "back") {
				s.printf("> returns %s", n)
				delete(quiet, n)
				s.play("returns " + n)
			}
			for _, task := range s.tasks("") {
				if _, silent := quiet[task.Node]; silent {
					continue
				}
				if task.Stop != nil {
					s.report(task, record.Stopped, nil)
				} else if st, _ := s.status(task); st.State != record.Ready {
					s.report(task, record.Ready, nil)
				}
			}
			s.plan()
			s.forgetStatuses()
			d := time.Duration(rapid.IntRange(1, 50).Draw(rt, "seconds")) * time.Second
			s.printf("> wait %v", d)
			s.pass(d)
			for _, task := range s.tasks("") {
				since, silent := quiet[task.Node]
				wait := of[task.Service]
				if wait == 0 {
					wait = control.DefaultLostAfter
				}
				if silent && task.Stop == nil && wait >= 0 && s.now.Sub(since) >= wait {
					broken = firstOf(broken, fmt.Sprintf("%s is not replaced after %v of silence, want %v", s.alias(task.ID), s.now.Sub(since), wait))
				}
			}
			if broken != "" {
				rt.Fatalf("%s\n%s", broken, strings.Join(s.log, "\n"))
			}
		}
	})
}

// TestJobsAndReturningNodes has a task of a job replaced and its node return, and
// checks which of the two stays.
func TestJobsAndReturningNodes(t *testing.T) {
	for _, tt := range []struct {
		after  time.Duration
		keep   bool
		stays  string
		reason string
	}{
		{0, false, "n2", record.ReasonScaled},
		{5 * time.Second, false, "n2", record.ReasonScaled},
		{0, true, "n1", record.ReasonReturned},
		{-1, true, "", ""},
	} {
		t.Run(fmt.Sprintf("after=%v,keep=%v", tt.after, tt.keep), func(t *testing.T) {
			w := newJobWorld(t, control.JobWork{
				Workload: control.Workload{LostAfter: tt.after, KeepOriginal: tt.keep, Template: []byte("{}")},
				Indexes:  1, Parallelism: 1, Enough: 1,
			})
			w.plan(-1)
			w.put(record.Nodes+"n2", record.Node{Node: scheduler.Node{ID: "n2", Capacity: scheduler.Resources{CPU: 1 << 30, Memory: 1 << 50}}})
			w.put(record.Alive+"n2", struct{}{})
			w.write(store.Delete(record.Alive + "n1"))
			w.plan(-1)
			wait := tt.after
			if wait <= 0 {
				wait = control.DefaultLostAfter
			}
			count := func() (tasks int) {
				for key := range w.kv {
					if strings.HasPrefix(key, record.Tasks) {
						tasks++
					}
				}
				return tasks
			}
			w.now = w.now.Add(wait - 1)
			w.plan(-1)
			if n := count(); n != 1 {
				t.Fatalf("%d tasks before the job has waited for its node, want 1", n)
			}
			w.now = w.now.Add(1)
			w.plan(-1)
			if tt.stays == "" {
				w.now = w.now.Add(1000 * time.Hour)
				w.plan(-1)
				if n := count(); n != 1 {
					t.Fatalf("%d tasks of a job that waits for ever, want 1", n)
				}
				return
			}
			if n := count(); n != 2 {
				t.Fatalf("%d tasks after the node was lost, want another one", n)
			}
			w.put(record.Alive+"n1", struct{}{})
			w.plan(-1)
			for key, item := range w.kv {
				var rec record.Task
				if !strings.HasPrefix(key, record.Tasks) {
					continue
				}
				unmarshal(t, item.Value, &rec)
				if stays := rec.Stop == nil; stays != (rec.Node == tt.stays) {
					t.Errorf("the task on %s stays: %v, want that on %s to stay alone", rec.Node, stays, tt.stays)
				} else if !stays && rec.Stop.Reason != tt.reason {
					t.Errorf("the other stops because of %q, want %q", rec.Stop.Reason, tt.reason)
				}
			}
		})
	}
}
