package orchestratetest

import (
	"context"
	"errors"
	"testing"

	"github.com/orchestrate-go/orchestrate/store"
)

// Tamper changes each commit, as a mistake in the code would.
func (s Scenario) Tamper(change func(actor string, txn store.Txn) store.Txn) Scenario {
	s.tamper = change
	return s
}

// Trace has each call at the gate told.
func (s Scenario) Trace(each func(string)) Scenario {
	s.trace = each
	return s
}

// OpenStore returns the store of a simulated world in which there is nothing
// else, as its application reaches it. The world goes on until it is closed.
func OpenStore(t testing.TB, s Scenario) store.Store {
	t.Helper()
	s = s.withDefaults()
	s.ControlPlanes, s.Nodes, s.For = 0, nil, always
	w, err := newWorld(s)
	if err != nil {
		t.Fatal(err)
	}
	o := &openStore{Store: client{w.shared, w.app.actor}, world: w, over: make(chan struct{})}
	go func() {
		defer close(o.over)
		if err := w.run(); err != nil {
			t.Error(err)
		}
		w.close()
	}()
	return o
}

type openStore struct {
	store.Store
	world *world
	over  chan struct{}
}

var errOver = errors.New("the test is over")

// Get is store.Getter's.
func (o *openStore) Get(ctx context.Context, key string) (store.Item, bool, error) {
	return o.Store.(store.Getter).Get(ctx, key)
}

// Close closes the store, and then ends the world.
func (o *openStore) Close() error {
	select {
	case <-o.over:
		return nil
	default:
	}
	if err := o.Store.Close(); err != nil {
		return err
	}
	o.world.mu.Lock()
	o.world.after(0, -1, "over", func() { o.world.violated("the world lasts", errOver) })
	o.world.mu.Unlock()
	o.world.ring()
	<-o.over
	return nil
}
