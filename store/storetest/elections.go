package storetest

import (
	"context"
	"errors"
	"testing"

	"github.com/orchestrate-go/orchestrate/store"
)

// campaign runs one in the background.
func campaign(ctx context.Context, e store.Election) <-chan *store.Leadership {
	won := make(chan *store.Leadership, 1)
	go func() {
		defer close(won)
		if l, err := e.Campaign(ctx); err == nil {
			won <- l
		}
	}()
	return won
}

func testElection(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	a := store.Election{Store: s, Key: "/e/leader", ID: "a", TTL: h.TTL}
	b := store.Election{Store: s, Key: "/e/leader", ID: "b", TTL: h.TTL}
	if _, err := a.Leader(ctx); !errors.Is(err, store.ErrNoLeader) {
		t.Errorf("Leader before anybody campaigned: %v, want ErrNoLeader", err)
	}
	first, err := a.Campaign(ctx)
	if err != nil {
		t.Fatalf("Campaign: %v", err)
	}
	if leader, err := b.Leader(ctx); err != nil || leader.ID != "a" || leader.Term != first.Fence().Revision {
		t.Errorf("Leader = %+v, %v; want a at term %d", leader, err, first.Fence().Revision)
	}
	waiting := campaign(ctx, b)
	pause(ctx, 3*h.TTL)
	select {
	case <-first.Done():
		t.Fatalf("leader that renews was deposed: %v", first.Err())
	case <-waiting:
		t.Fatalf("second candidate leads beside the first")
	default:
	}
	if _, err := s.Commit(ctx, store.Txn{If: []store.Condition{first.Fence()}, Writes: []store.Write{put("/e/state", "a")}}); err != nil {
		t.Errorf("leader's commit: %v", err)
	}
	if err := first.Resign(ctx); err != nil {
		t.Errorf("Resign: %v", err)
	}
	if !errors.Is(first.Err(), store.ErrResigned) {
		t.Errorf("Err after Resign: %v, want ErrResigned", first.Err())
	}
	second, won := <-waiting
	if !won {
		t.Fatalf("second candidate did not win after the leader resigned")
	}
	defer func() { _ = second.Resign(ctx) }()
	if second.Fence().Revision <= first.Fence().Revision {
		t.Errorf("terms %d and then %d, want them to grow", first.Fence().Revision, second.Fence().Revision)
	}
	if err := first.Resign(ctx); err != nil {
		t.Errorf("second Resign: %v", err)
	}
	if leader, err := a.Leader(ctx); err != nil || leader.ID != "b" {
		t.Errorf("Leader = %+v, %v; want b: resigning again must not depose a successor", leader, err)
	}
}

func testElectionFence(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	a := store.Election{Store: s, ID: "a", TTL: h.TTL}
	first, err := a.Campaign(ctx)
	if err != nil {
		t.Fatalf("Campaign: %v", err)
	}
	if err := first.Resign(ctx); err != nil {
		t.Fatalf("Resign: %v", err)
	}
	stale := store.Txn{If: []store.Condition{first.Fence()}, Writes: []store.Write{put("/state", "stale")}}
	if _, err := s.Commit(ctx, stale); !errors.Is(err, store.ErrConflict) {
		t.Errorf("commit of a former leader, nobody leads: %v, want ErrConflict", err)
	}
	second, err := a.Campaign(ctx) // the same ID: a fence is not about names
	if err != nil {
		t.Fatalf("Campaign: %v", err)
	}
	defer func() { _ = second.Resign(ctx) }()
	if _, err := s.Commit(ctx, stale); !errors.Is(err, store.ErrConflict) {
		t.Errorf("commit of a former leader, another leads: %v, want ErrConflict", err)
	}
}

// testElectionDeposed takes the key from a leader, which must notice.
func testElectionDeposed(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	e := store.Election{Store: s, ID: "a", TTL: 100 * h.TTL}
	for _, w := range []store.Write{store.Delete("/leader"), put("/leader", "usurper")} {
		l, err := e.Campaign(ctx)
		if err != nil {
			t.Fatalf("Campaign: %v", err)
		}
		leading, free := l.Context(ctx)
		pause(ctx, h.TTL) // until it watches its key, and does not find it taken at once
		commit(ctx, t, s, w)
		wait(t, l.Done(), "the end of a leadership whose key was taken by "+describe([]store.Write{w}))
		wait(t, leading.Done(), "the end of the leadership's context")
		if !errors.Is(l.Err(), store.ErrDeposed) || !errors.Is(context.Cause(leading), store.ErrDeposed) {
			t.Errorf("Err = %v, cause of the context = %v; want ErrDeposed", l.Err(), context.Cause(leading))
		}
		free()
		if err := l.Resign(ctx); err != nil {
			t.Errorf("Resign after being deposed: %v", err)
		}
	}
	if leader, err := e.Leader(ctx); err != nil || leader.ID != "usurper" {
		t.Errorf("Leader = %+v, %v; want usurper: resigning must not touch what is no longer ours", leader, err)
	}
}
