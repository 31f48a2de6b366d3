//go:build linux

package cluster_test

import (
	"slices"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
)

// brisk are times at which little has to be waited for: the least that etcd gives
// a lease for.
var brisk = worldOptions{leaderTTL: 2 * time.Second, nodeTTL: 2 * time.Second, lostAfter: 2 * time.Second, fenceGrace: time.Second}

// answers asks a node until all tasks have answered it that should, and no others.
func (w *world) answers(patience time.Duration, node string, port uint16, want []string) {
	w.Helper()
	slices.Sort(want)
	var got []string
	var failed error
	defer func() {
		if w.Failed() {
			w.Logf("%s was answered by %v last, error %v; want %v", node, got, failed, want)
		}
	}()
	w.until(patience, node+" reaches just these tasks", func() bool {
		got, failed = nil, nil
		for range 8 * len(want) {
			who, err := w.get(node, port, "/")
			if err != nil {
				failed = err
				return false
			}
			if !slices.Contains(got, who) {
				got = append(got, who)
			}
		}
		slices.Sort(got)
		return slices.Equal(got, want)
	})
}

// Three machines: a control plane and two nodes that join by tokens, containers
// that answer over the overlay from whichever node is asked; one node is cut off,
// its task is replaced, and what was left there ends when it comes back.
func TestFleet(t *testing.T) {
	for name, opts := range map[string]worldOptions{"IPv4": {}, "IPv6": {v6: true}, "encrypted": {encrypt: true}} {
		t.Run(name, func(t *testing.T) {
			v6, encrypt := opts.v6, opts.encrypt
			opts := brisk
			opts.controls, opts.nodes, opts.v6, opts.encrypt = 1, 2, v6, encrypt
			w := newWorld(t, opts)
			w.up(w.web(2, 18080))
			place := func() (ids, nodes []string) {
				for _, task := range w.tasks("web") {
					if task.State == orchestrate.Ready && task.Stopping == "" {
						ids, nodes = append(ids, task.ID), append(nodes, task.Node)
					}
				}
				slices.Sort(nodes)
				return ids, nodes
			}
			ids, nodes := place()
			if want := []string{"n1", "n2"}; !slices.Equal(nodes, want) {
				t.Fatalf("the tasks are on %v, want %v", nodes, want)
			}
			for _, n := range w.nodes {
				w.answers(10*time.Second, n, 18080, ids)
			}
			if err := w.Host("n2").Cut(); err != nil {
				t.Fatal(err)
			}
			w.until(20*time.Second, "n2's task is replaced on n1", func() bool {
				ids, nodes = place()
				return slices.Equal(nodes, []string{"n1", "n1"})
			})
			w.answers(10*time.Second, "n1", 18080, ids)
			if err := w.Host("n2").Heal(); err != nil {
				t.Fatal(err)
			}
			w.until(30*time.Second, "what n2 had has ended", func() bool { return len(w.tasks("web")) == 2 })
			ids, _ = place()
			for _, n := range w.nodes {
				w.answers(20*time.Second, n, 18080, ids)
			}
		})
	}
}
