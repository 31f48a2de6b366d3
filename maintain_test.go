package orchestrate_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	networkmemory "github.com/orchestrate-go/orchestrate/network/memory"
	"github.com/orchestrate-go/orchestrate/node"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// addNode runs a second node over the store of a fleet, until stop or the end of
// the test.
func addNode(t *testing.T, s store.Store, id string) (stop func()) {
	t.Helper()
	rt := runtimememory.New(runtimememory.Options{})
	network := networkmemory.New(networkmemory.Options{})
	agent, err := node.New(s, node.Options{
		Node:    scheduler.Node{ID: id, Capacity: scheduler.Resources{CPU: 8000, Memory: 8 << 30}},
		Runtime: rt, Network: network, Namespaces: network, Balancer: network, Dir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := agent.Run(ctx); err != nil {
			t.Errorf("the agent of %s: Run returned %v", id, err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		rt.Close()
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		addNode(t, s, "n2")
		synctest.Wait()
		web := service("web", 0)
		web.Replicas = 4
		mustApply(t, f, web)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		on := func(node string) (n, ready int) {
			tasks, err := f.Tasks(t.Context(), "web")
			if err != nil {
				t.Fatal(err)
			}
			for _, task := range tasks {
				if task.State == orchestrate.Ready {
					ready++
				}
				if task.Node == node {
					n++
				}
			}
			return n, ready
		}
		if n, _ := on("n1"); n != 2 {
			t.Fatalf("%d tasks on n1, want the service spread over both nodes", n)
		}
		events, err := f.Watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for range events {
				if _, ready := on("n1"); ready < 4 {
					t.Errorf("%d tasks are ready while n1 is drained, want never less than 4", ready)
				}
			}
		}()
		if err := f.Drain(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		if n, ready := on("n1"); n != 0 || ready != 4 {
			t.Errorf("%d tasks on the drained node and %d ready, want 0 and 4", n, ready)
		}
		if err := f.Scale(t.Context(), "web", 6); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		if n, _ := on("n1"); n != 0 {
			t.Errorf("%d new tasks on the drained node, want none", n)
		}

		if err := f.Uncordon(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		if err := f.Cordon(t.Context(), "n2"); err != nil {
			t.Fatal(err)
		}
		if err := f.Scale(t.Context(), "web", 8); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		if n, _ := on("n1"); n != 2 {
			t.Errorf("%d tasks on n1, want the two new ones, since n2 is cordoned", n)
		}

		// With n2 cordoned there is nowhere to go.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := f.Drain(ctx, "n1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("draining to nowhere: %v, want that the context ended", err)
		}
		if err := f.Drain(t.Context(), "n3"); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("draining a node that is not there: %v, want not found", err)
		}
	})
}
