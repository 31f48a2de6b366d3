//go:build linux

package embed_test

import (
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/etcd"
	"github.com/orchestrate-go/orchestrate/store/etcd/embed"
)

// The member that leads hands the lead on, and no commit is lost by it; alone it
// keeps it.
func TestYield(t *testing.T) {
	members := cluster(t, options(t, "a", embed.TLS{}), options(t, "b", embed.TLS{}), options(t, "c", embed.TLS{}))
	leads := func(not *embed.Member) *embed.Member {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			for _, m := range members {
				if m != not && m.Leads() {
					return m
				}
			}
		}
		t.Fatal("nobody leads for a minute")
		return nil
	}
	first := leads(nil)
	for _, m := range members {
		if m != first {
			if err := m.Yield(); err != nil {
				t.Errorf("Yield of %s, which does not lead: %v", m.Name(), err)
			}
		}
	}
	if err := first.Yield(); err != nil {
		t.Fatal(err)
	}
	if second := leads(first); first.Leads() {
		t.Errorf("%s leads, and %s too, which has yielded", second.Name(), first.Name())
	}
	commit(t, open(t, first, etcd.Options{}), store.Put("/x", nil))

	// It is handed to one that is there.
	third, gone := leads(nil), members[0]
	if gone == third {
		gone = members[1]
	}
	closed(t, gone)
	if err := third.Yield(); err != nil {
		t.Errorf("Yield of %s while %s is gone: %v", third.Name(), gone.Name(), err)
	}
	if next := leads(third); next == gone {
		t.Errorf("%s leads, which is gone", next.Name())
	}

	opts := options(t, "alone", embed.TLS{})
	alone := cluster(t, opts)[0]
	if err := alone.Yield(); err != nil || !alone.Leads() {
		t.Errorf("Yield of a member that is alone: %v, and it leads: %v; want nil and true", err, alone.Leads())
	}
}
