package node_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/store"
)

// guarded is a store that lets a node's agent do what it has a right to, and
// notes what else it tried.
type guarded struct {
	store.Store
	read, write []string

	mu     sync.Mutex // guards denied
	denied []string
}

func covers(rights []string, key string) bool {
	return slices.ContainsFunc(rights, func(r string) bool {
		return key == r || strings.HasSuffix(r, "/") && strings.HasPrefix(key, r)
	})
}

func (g *guarded) check(rights []string, what, key string) error {
	if covers(rights, key) {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.denied = append(g.denied, what+" "+key)
	return fmt.Errorf("%s %s: permission denied", what, key)
}

func (g *guarded) Get(ctx context.Context, key string) (store.Item, bool, error) {
	if err := g.check(slices.Concat(g.read, g.write), "read", key); err != nil {
		return store.Item{}, false, err
	}
	return store.Get(ctx, g.Store, key)
}

func (g *guarded) List(ctx context.Context, prefix string) (store.Snapshot, error) {
	if err := g.check(slices.Concat(g.read, g.write), "list", prefix); err != nil {
		return store.Snapshot{}, err
	}
	return g.Store.List(ctx, prefix)
}

func (g *guarded) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	if err := g.check(slices.Concat(g.read, g.write), "watch", prefix); err != nil {
		return nil, err
	}
	return g.Store.Watch(ctx, prefix, after)
}

func (g *guarded) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	for _, c := range txn.If {
		if err := g.check(slices.Concat(g.read, g.write), "compare", c.Key); err != nil {
			return 0, err
		}
	}
	for _, w := range txn.Writes {
		if err := g.check(g.write, "write", w.Key); err != nil {
			return 0, err
		}
	}
	return g.Store.Commit(ctx, txn)
}

// An agent does all of its work with the rights that NodeKeys names.
func TestAgentsRights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		g := &guarded{Store: m.store}
		g.read, g.write = orchestrate.NodeKeys("n1")
		m.agentStore = g
		kill := m.agent()
		s := web(2)
		m.apply(s)
		m.wait("web", orchestrate.RolloutCompleted)
		time.Sleep(10 * time.Minute) // what it says now and then
		kill()
		time.Sleep(10 * time.Minute)
		m.agent()
		s.Containers[0].Env = map[string]string{"VERSION": "2"}
		m.apply(s)
		m.wait("web", orchestrate.RolloutCompleted)
		if err := m.fleet.Remove(context.Background(), "web"); err != nil {
			t.Fatal(err)
		}
		m.wait("web", orchestrate.RolloutRemoved)
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, d := range g.denied {
			t.Errorf("the agent tried to %s, which it has no right to", d)
		}
	})
}

// The rights of one node have nothing of another's, and nothing of what the
// application and the leader write.
func TestRightsAreNarrow(t *testing.T) {
	read, write := orchestrate.NodeKeys("n1")
	for _, key := range []string{"/tasks/n2/x", "/tasks/n10/x", "/status/n2/x", "/services/default/web", "/secrets/default/x", "/leader", "/nodespecs/n1", "/rollouts/default/web", "/nodes/n2", "/identity/members/node:n1"} {
		if covers(write, key) {
			t.Errorf("a node may write %s", key)
		}
		if covers(read, key) {
			t.Errorf("a node may read %s", key)
		}
	}
	for _, key := range []string{"/tasks/n1/x", "/frontends/default/web", "/networks/default", "/endpoints/n2/default/default/web/x", "/endpoints/n10/x", "/acks/n2", "/acks/n10", "/events/node/n2/1", "/events/leader/1-1", "/events/application/x"} {
		if covers(write, key) {
			t.Errorf("a node may write %s", key)
		}
	}
}
