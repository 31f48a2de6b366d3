package orchestratetest_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/orchestratetest"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/storetest"
)

// TestStoreConformance holds the simulated store to what every store promises:
// what a simulation shows of a fleet is worth no more than that.
func TestStoreConformance(t *testing.T) {
	for name, s := range map[string]orchestratetest.Scenario{
		"at once": {},
		"slow":    {Delays: orchestratetest.Delays{Store: 10 * time.Millisecond}},
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, storetest.Harness{
				Open:    func(t testing.TB) store.Store { return orchestratetest.OpenStore(t, s) },
				Virtual: true,
			})
		})
	}
}

// TestConflictsAreHonest has nothing conflict that nobody has written.
func TestConflictsAreHonest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := orchestratetest.OpenStore(t, orchestratetest.Scenario{Script: []orchestratetest.Step{
			{At: time.Minute, Do: orchestratetest.StoreConflicts{Share: 1}},
		}})
		defer s.Close()
		ctx := t.Context()
		lease, err := s.Lease(ctx, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		at, err := s.Commit(ctx, store.Txn{Writes: []store.Write{
			store.Put("/services/default/web", []byte("{}")), store.PutLeased("/alive/n1", nil, lease.ID()),
		}})
		if err != nil {
			t.Fatal(err)
		}
		lead, err := store.Election{Store: s, ID: "control1"}.Campaign(ctx)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		batches, err := s.Watch(ctx, "/services/", at)
		if err != nil {
			t.Fatal(err)
		}
		var conflict *store.ConflictError
		put := []store.Write{store.Put("/x", nil)}
		_, err = s.Commit(ctx, store.Txn{If: []store.Condition{{Key: "/services/default/web", Revision: at}}, Writes: put})
		item, _, _ := store.Get(ctx, s, "/services/default/web")
		if !errors.As(err, &conflict) || conflict.Got != item.Revision || item.Revision <= at || string(item.Value) != "{}" {
			t.Errorf("%v, and the key is %q at %d; want it written again as it was, and the conflict to say so", err, item.Value, item.Revision)
		}
		if b := <-batches; b.Revision != item.Revision {
			t.Errorf("a watch got %+v, want what the commit conflicted with", b)
		}
		for _, fine := range [][]store.Condition{nil, {store.Absent("/y")}, {{Key: "/alive/n1", Revision: at}}} {
			if _, err := s.Commit(ctx, store.Txn{If: fine, Writes: put}); err != nil {
				t.Errorf("with %v: %v, want nobody to write there", fine, err)
			}
		}
		if _, err := s.Commit(ctx, store.Txn{If: []store.Condition{lead.Fence()}, Writes: put}); !errors.Is(err, store.ErrConflict) {
			t.Errorf("a commit of the leader: %v, want a conflict", err)
		}
		<-lead.Done()
		if err := lead.Err(); !errors.Is(err, store.ErrDeposed) {
			t.Errorf("the leadership ended with %v, want ErrDeposed: its commit conflicted", err)
		}
		if err := lead.Resign(ctx); err != nil {
			t.Error(err)
		}
		if err := lease.Revoke(ctx); err != nil {
			t.Error(err)
		}
	})
}

// TestConflictsAreSurvived has a third of all commits come too late for an hour, in
// which services are changed, and two planes depose each other.
func TestConflictsAreSurvived(t *testing.T) {
	s := chaos(3)
	s.Random, s.Always = orchestratetest.Random{}, orchestratetest.Ready()
	s.Script = []orchestratetest.Step{
		{At: time.Minute, Do: orchestratetest.StoreConflicts{Share: 0.3, For: time.Hour}},
		{At: 10 * time.Minute, Do: orchestratetest.Apply{Objects: []orchestrate.Object{revised(web(12))}}},
		{At: 20 * time.Minute, Do: orchestratetest.Drain{Node: "n3"}},
		{At: 30 * time.Minute, Do: orchestratetest.Scale{Name: "probed", Replicas: 5}},
		{At: 40 * time.Minute, Do: orchestratetest.Remove{Names: []string{"db"}}},
	}
	r := orchestratetest.Run(t, s)
	if n := r.Counts[orchestratetest.LeaderMade]; n < 5 {
		t.Errorf("%d times one came to lead, want it deposed often", n)
	}
	for _, e := range r.Events {
		if e.Kind == orchestratetest.Acted && e.Detail != "done" {
			t.Errorf("%v, want what conflicts to be tried again", e)
		}
	}
}
