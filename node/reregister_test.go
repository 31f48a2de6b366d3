package node_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// A node that has lost its lease many times in its life registers as fast as the
// first time.
func TestRegistersAgainEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		g := &granter{Store: m.store, leases: map[store.LeaseID]*granted{}}
		m.agentStore = g
		m.agent()
		alive := func() bool {
			_, found, err := store.Get(context.Background(), m.store, record.Key(record.Alive, "n1"))
			if err != nil {
				t.Fatal(err)
			}
			return found
		}
		for round := range 10 {
			time.Sleep(time.Minute)
			if !alive() {
				t.Fatalf("round %d: the node is not registered", round)
			}
			l, _ := g.of(t, record.Key(record.Alive, "n1"))
			if err := l.Lease.Revoke(context.Background()); err != nil {
				t.Fatal(err)
			}
			// It hears of it by its next renewal, within a third of 5 s.
			time.Sleep(2500 * time.Millisecond)
			if !alive() {
				t.Errorf("round %d: the node is not registered again 2.5 s after it lost its lease", round)
			}
		}
	})
}
