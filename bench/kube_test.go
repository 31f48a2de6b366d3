//go:build kube

package main

import "testing"

// TestKube places a small load of each kind.
func TestKube(t *testing.T) {
	for _, l := range []load{{identical, 100, 300}, {constrained, 100, 300}, {mixed, 100, 1500}} {
		m, err := runKube(l)
		if err != nil {
			t.Errorf("%s: %v", l, err)
		}
		t.Log(l, m.whole, m.cpu, m.allocs, m.bytes)
	}
}
