package scheduler

import (
	"fmt"
	"maps"
	"slices"
)

// Verify computes everything that c keeps up to date by deltas again from its
// nodes and tasks, and returns the first difference. It is for tests, and for
// whoever doubts; it costs as much as building the cluster anew.
func (c *Cluster) Verify() error {
	fresh := NewCluster()
	for id := range c.slots {
		if err := fresh.SetNode(*c.specs[c.slots[id]]); err != nil {
			return err
		}
	}
	// A task that found no model to choose, and so still has a choice, comes
	// after those that have chosen.
	for _, open := range []bool{false, true} {
		for t := range c.Tasks() {
			if c.shapes[c.tasks.entries[c.tasks.find(t.ID)].shape].anyWays != open {
				continue
			}
			if err := fresh.Bind(t.ID, t.Node, t.Request); err != nil {
				return err
			}
		}
	}
	if len(c.slots) != len(fresh.slots) || c.tasks.count != fresh.tasks.count {
		return fmt.Errorf("%d nodes and %d tasks, anew %d and %d", len(c.slots), c.tasks.count, len(fresh.slots), fresh.tasks.count)
	}
	if c.total != fresh.total || c.antiShapes != fresh.antiShapes || c.usedShapes != fresh.usedShapes {
		return fmt.Errorf("totals %v, %d shapes, %d with anti-affinity; anew %v, %d, %d",
			c.total, c.usedShapes, c.antiShapes, fresh.total, fresh.usedShapes, fresh.antiShapes)
	}
	for _, id := range slices.Sorted(maps.Keys(c.slots)) {
		if err := c.verifyNode(fresh, c.slots[id], fresh.slots[id]); err != nil {
			return fmt.Errorf("node %s: %w", id, err)
		}
	}
	return c.verifyServices(fresh)
}

func (c *Cluster) verifyNode(fresh *Cluster, at, anew int32) error {
	a, b := c.nodes[at], fresh.nodes[anew]
	if a.free != b.free || a.inverse != b.inverse || a.tasks != b.tasks {
		return fmt.Errorf("free %v, %d tasks; anew %v, %d", a.free, a.tasks, b.free, b.tasks)
	}
	x, y := NodeView{c: c, slot: at}.Free(), NodeView{c: fresh, slot: anew}.Free()
	if !slices.Equal(x.Devices, y.Devices) {
		return fmt.Errorf("devices free %v, anew %v", x.Devices, y.Devices)
	}
	ports := func(c *Cluster, slot int32) []string {
		var list []string
		if c.ports != nil {
			for _, p := range c.ports[slot] {
				list = append(list, p.String())
			}
		}
		slices.Sort(list)
		return list
	}
	if p, q := ports(c, at), ports(fresh, anew); !slices.Equal(p, q) {
		return fmt.Errorf("ports %v, anew %v", p, q)
	}
	listed := int32(0)
	for i := a.head; i != none; i = c.tasks.entries[i].next {
		listed++
	}
	if listed != a.tasks {
		return fmt.Errorf("%d tasks in its list of %d", listed, a.tasks)
	}
	return nil
}

func (c *Cluster) verifyServices(fresh *Cluster) error {
	for key, id := range c.serviceIDs {
		s := c.services[id]
		f, ok := fresh.serviceIDs[key]
		if !ok {
			if s.total != 0 || len(s.nodes) != 0 {
				return fmt.Errorf("service %v: counts %d tasks, anew none", key, s.total)
			}
			continue
		}
		t := fresh.services[f]
		if s.total != t.total || len(s.nodes) != len(t.nodes) {
			return fmt.Errorf("service %v: %d tasks on %d nodes, anew %d on %d", key, s.total, len(s.nodes), t.total, len(t.nodes))
		}
		for slot, n := range s.nodes {
			if anew := t.nodes[fresh.slots[c.specs[slot].ID]]; anew != n {
				return fmt.Errorf("service %v: %d tasks on %s, anew %d", key, n, c.specs[slot].ID, anew)
			}
		}
	}
	return nil
}
