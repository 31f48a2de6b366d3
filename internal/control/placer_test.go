package control_test

import (
	"fmt"
	"slices"

	"github.com/orchestrate-go/orchestrate/scheduler"
)

// evenly is a placer for stories: on the node with the fewest tasks, the first
// by name among equals. So the stories do not change when the scheduler's
// choice among equals does.
type evenly struct{}

func (evenly) Place(c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error) {
	var out []scheduler.Decision
	for i := range reqs {
		r := &reqs[i]
		d := scheduler.Decision{Namespace: r.Namespace, Service: r.Service, Count: r.Count}
		here := map[string]int{}
		for _, id := range r.Tasks {
			var full []scheduler.Example
			var best *scheduler.NodeView
			var bestCost int
			d.Evaluated = 0
			for n := range c.Nodes() {
				d.Evaluated++
				spec := n.Spec()
				if r.Allows(spec) != nil || r.MaxPerNode > 0 && here[spec.ID] >= r.MaxPerNode {
					continue
				}
				if n.Free().Memory < r.Resources.Memory {
					full = append(full, scheduler.Example{Node: spec.ID, Reason: "memory"})
					continue
				}
				cost := n.Tasks()
				if slices.Contains(r.Avoid, n.ID()) {
					cost += 1000
				}
				if best == nil || cost < bestCost {
					best, bestCost = &n, cost
				}
			}
			if best == nil {
				d.Unplaced++
				if full != nil && len(r.Constraints) > 0 {
					d.Refused = []scheduler.Refusal{{Filter: scheduler.FilterMemory, Nodes: len(full), Examples: full}}
				}
				continue
			}
			if err := c.Bind(id, best.ID(), r); err != nil {
				return nil, fmt.Errorf("bind %s: %w", id, err)
			}
			here[best.ID()]++
			d.Tasks, d.Nodes = append(d.Tasks, id), append(d.Nodes, best.ID())
		}
		if r.Gang != nil && d.Unplaced > 0 { // all or nothing
			for _, id := range d.Tasks {
				if err := c.Release(id); err != nil {
					return nil, fmt.Errorf("release %s: %w", id, err)
				}
			}
			d.Tasks, d.Nodes, d.Unplaced = nil, nil, r.Count
		}
		out = append(out, d)
	}
	return out, nil
}
