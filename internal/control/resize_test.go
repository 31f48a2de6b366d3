package control_test

import (
	"path/filepath"
	"strings"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// amend is an agent's: something is added to what it says of a task.
func (s *sim) amend(t record.Task, change func(*record.Status)) {
	st, ok := s.status(t)
	if !ok {
		st = record.Status{Task: t.ID, Namespace: t.Namespace, Service: t.Service, Node: t.Node, State: record.Preparing, Since: s.now}
	}
	change(&st)
	s.commit(store.Put(record.Key(record.Statuses, t.Node, t.ID), marshal(s.t, st)))
}

// bounds reports what became of the bounds of tasks that were changed in place.
func (s *sim) bounds(what string, patterns []string) {
	s.t.Helper()
	for _, p := range patterns {
		found := false
		for _, t := range s.tasks("") {
			if ok, err := filepath.Match(p, s.alias(t.ID)); err != nil {
				s.t.Fatal(err)
			} else if !ok || t.Resized.IsZero() {
				continue
			}
			found = true
			s.amend(t, func(st *record.Status) {
				switch what {
				case "inforce":
					st.InForce, st.InForceSince = t.Hash, s.now
				case "refuses":
					st.Refused = t.Hash
				case "killed":
					st.State, st.Failure = record.Running, &record.Failure{Kind: record.FailedOOM, Message: "out of memory", At: s.now}
				}
			})
		}
		if !found {
			s.t.Fatalf("%s %s: no such task was changed in place\n%s", what, p, strings.Join(s.log, "\n"))
		}
	}
}
