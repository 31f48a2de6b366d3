package scheduler

import (
	"fmt"
	"slices"
)

// VerifyIndexes brings every index that c keeps up to date and compares it with
// one built anew.
func (c *Cluster) VerifyIndexes() error {
	for _, ix := range c.indexes {
		ix.sync(ix.sh)
		fresh := &index{c: c}
		fresh.build(ix.sh, ix.st, ix.counting)
		if err := ix.compare(fresh); err != nil {
			return fmt.Errorf("index of service %v: %w", c.services[ix.svc].key, err)
		}
	}
	return nil
}

func (ix *index) compare(fresh *index) error {
	if !slices.Equal(ix.why, fresh.why) {
		return fmt.Errorf("refuses %v, anew %v", ix.why, fresh.why)
	}
	if ix.refused != fresh.refused {
		return fmt.Errorf("counts refusals %v, anew %v", ix.refused, fresh.refused)
	}
	if ix.counting && !slices.Equal(ix.count, fresh.count) {
		return fmt.Errorf("counts tasks %v, anew %v", ix.count, fresh.count)
	}
	if len(ix.domains) != len(fresh.domains) {
		return fmt.Errorf("%d domains, anew %d", len(ix.domains), len(fresh.domains))
	}
	for d := range ix.domains {
		a, b := &ix.domains[d], &fresh.domains[d]
		if a.count != b.count || a.allowed != b.allowed || a.closed || b.closed {
			return fmt.Errorf("domain %d: %d tasks, %d nodes; anew %d, %d", d, a.count, a.allowed, b.count, b.allowed)
		}
		if err := sameHeap(a.nodes, b.nodes, ix.pos); err != nil {
			return fmt.Errorf("domain %d: nodes: %w", d, err)
		}
		if err := sameHeap(a.subs, b.subs, ix.inHeap); err != nil {
			return fmt.Errorf("domain %d: subdomains: %w", d, err)
		}
	}
	return nil
}

func sameHeap(a, b heap, pos []int32) error {
	for i := range a {
		if pos[a[i].id] != int32(i) {
			return fmt.Errorf("entry %d is thought to be at %d", i, pos[a[i].id])
		}
		if i > 0 && a[i].less(&a[(i-1)/4]) {
			return fmt.Errorf("entry %d is before its parent", i)
		}
	}
	sorted := func(h heap) heap {
		h = slices.Clone(h)
		slices.SortFunc(h, func(x, y entry) int {
			if x.less(&y) {
				return -1
			}
			return 1
		})
		return h
	}
	if x, y := sorted(a), sorted(b); !slices.Equal(x, y) {
		return fmt.Errorf("holds %v, anew %v", x, y)
	}
	return nil
}

// Shapes is how many shapes and services c remembers.
func (c *Cluster) Shapes() int { return len(c.shapeIDs) + len(c.serviceIDs) }
