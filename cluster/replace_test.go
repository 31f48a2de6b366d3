//go:build linux

package cluster_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
)

// applies are services that are applied one after another, and those of which the
// fleet has said that it has them.
type applies struct {
	mu   sync.Mutex // guards what follows
	kept []string
	last time.Time     // of an acknowledgement
	gap  time.Duration // the longest without one

	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (w *world) applies(pace time.Duration) *applies {
	ctx, cancel := context.WithCancel(context.Background())
	a := &applies{cancel: cancel, last: time.Now()}
	a.wg.Go(func() {
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			s := orchestrate.Service{Name: fmt.Sprint("s", i), Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: w.image}}}}
			if w.fleet.Apply(ctx, s) != nil {
				continue // it may be there or not
			}
			a.mu.Lock()
			now := time.Now()
			a.kept, a.gap, a.last = append(a.kept, s.Name), max(a.gap, now.Sub(a.last)), now
			a.mu.Unlock()
		}
	})
	return a
}

func (a *applies) stop() {
	a.cancel()
	a.wg.Wait()
}

// known returns what was acknowledged, and the longest pause since the last call.
func (a *applies) known() (names []string, gap time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	gap = max(a.gap, time.Since(a.last))
	a.gap, a.last = 0, time.Now()
	return slices.Clone(a.kept), gap
}

// TestReplace has one of three control planes lose its machine for good, under
// steady Applies. Another takes its place by a call, catches up, and then bears the
// loss of a further one. No Apply that was acknowledged is lost.
func TestReplace(t *testing.T) {
	opts := brisk
	opts.controls, opts.here = 3, true
	w := newWorld(t, opts)
	a := w.applies(20 * time.Millisecond)
	defer a.stop()
	more := func(patience time.Duration) {
		t.Helper()
		before, _ := a.known()
		w.until(patience, "ten more Applies are acknowledged", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return len(a.kept) >= len(before)+10
		})
	}
	more(20 * time.Second)

	if err := w.process("b").Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(w.Host("b").Dir, "state")); err != nil {
		t.Fatal(err)
	}
	more(20 * time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	began := time.Now()
	invitation, err := w.control.Replace(ctx, "b", "b", w.address("b"))
	if err != nil {
		t.Fatal(err)
	}
	w.startJoining("b", invitation)
	w.until(time.Minute, "the new b takes part", func() bool { return w.said("b", "ready\n") == 2 })
	_, gap := a.known()
	t.Logf("replaced after %v; the longest without an acknowledged Apply was %v", time.Since(began).Round(10*time.Millisecond), gap.Round(10*time.Millisecond))
	members, err := w.control.Etcd().Members(ctx)
	if err != nil || len(members) != 3 {
		t.Fatalf("etcd has the members %+v, %v; want three", members, err)
	}
	for _, m := range members {
		if m.Learner || m.Name == "" {
			t.Errorf("%+v has no vote, want three that have one", m)
		}
	}

	// Now c may be lost: a and the new b are more than half.
	more(20 * time.Second)
	before, _ := a.known()
	if err := w.process("c").Kill(); err != nil {
		t.Fatal(err)
	}
	more(20 * time.Second)
	after, gap := a.known()
	t.Logf("after c was killed the longest without an acknowledged Apply was %v", gap.Round(10*time.Millisecond))
	a.stop()
	if after, _ = a.known(); len(after) <= len(before) {
		t.Errorf("%d Applies were acknowledged before and %d after", len(before), len(after))
	}

	// Asked of the new member alone.
	alone := w.dial([]string{"b"})
	defer alone.Close()
	services, err := alone.List(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{}
	for _, s := range services {
		has[s.Name] = true
	}
	for _, name := range after {
		if !has[name] {
			t.Errorf("%s was acknowledged and is lost", name)
		}
	}
	t.Logf("%d Applies were acknowledged", len(after))
}
