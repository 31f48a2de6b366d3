package scheduler

import "slices"

// NodeView is a node as it stands in the middle of a decision. It is valid
// until the call that it was given to returns.
type NodeView struct {
	c    *Cluster
	slot int32
	svc  int32  // the service being placed, or none
	ix   *index // of the group being placed, or nil
}

// Spec is the node as it was given to SetNode. Read it only.
func (n NodeView) Spec() *Node { return n.c.specs[n.slot] }

// ID is the node's id.
func (n NodeView) ID() string { return n.c.specs[n.slot].ID }

// Allocatable is the capacity times the overcommit.
func (n NodeView) Allocatable() Resources {
	spec := n.Spec()
	v := spec.allocatable()
	return Resources{CPU: v[0], Memory: v[1], Disk: v[2], Devices: spec.Capacity.Devices}
}

// Free is what is left of Allocatable; below 0 where too much is bound.
func (n NodeView) Free() Resources {
	v := n.c.nodes[n.slot].free
	r := Resources{CPU: v[0], Memory: v[1], Disk: v[2]}
	if n.c.devices != nil {
		for _, d := range n.c.devices[n.slot] {
			r.Devices = append(r.Devices, Device{Kind: d.kind, Model: d.model, Count: d.have - d.used})
		}
	}
	return r
}

// Load is the used share of the scarcest of CPU, memory and disk: 0 is empty,
// 1 is full.
func (n NodeView) Load() float64 {
	load, _ := n.c.nodes[n.slot].load(&vector{})
	return load
}

// Tasks is the number of tasks on the node.
func (n NodeView) Tasks() int { return int(n.c.nodes[n.slot].tasks) }

// ServiceTasks is the number of tasks on the node of the service that is being
// placed.
func (n NodeView) ServiceTasks() int {
	if n.ix != nil && n.ix.counting {
		return int(n.ix.count[n.slot])
	}
	if n.svc == none {
		return 0
	}
	return int(n.c.services[n.svc].nodes[n.slot])
}

// HasImage reports whether the image is on the node's disk.
func (n NodeView) HasImage(ref string) bool { return slices.Contains(n.Spec().Images, ref) }

// load returns the largest and the mean share of CPU, memory and disk in use
// once need is taken too. What the node has nothing of does not count.
func (n *nodeState) load(need *vector) (most, mean float64) {
	sum, of := 0.0, 0.0
	for d := range dims {
		if n.inverse[d] == 0 {
			continue
		}
		used := 1 - float64(n.free[d]-need[d])*n.inverse[d]
		most = max(most, used)
		sum += used
		of++
	}
	if of > 1 {
		sum /= of
	}
	return most, sum
}

// LeastLoaded prefers the node whose scarcest resource would be used least.
type LeastLoaded struct{}

// Name is least-loaded.
func (LeastLoaded) Name() string { return "least-loaded" }

// Score is 1 minus the share of the scarcest of CPU, memory and disk in use
// after the replica is there.
func (LeastLoaded) Score(r *Request, n NodeView) float64 {
	need := r.Resources.vector()
	most, _ := n.c.nodes[n.slot].load(&need)
	return 1 - clamp(most)
}

// MostLoaded packs: it prefers the node that would be fullest.
type MostLoaded struct{}

// Name is most-loaded.
func (MostLoaded) Name() string { return "most-loaded" }

// Score is the mean share of CPU, memory and disk in use after the replica is
// there.
func (MostLoaded) Score(r *Request, n NodeView) float64 {
	need := r.Resources.vector()
	_, mean := n.c.nodes[n.slot].load(&need)
	return clamp(mean)
}

// FewestTasks prefers nodes with few tasks, of whatever service.
type FewestTasks struct{}

// Name is fewest-tasks.
func (FewestTasks) Name() string { return "fewest-tasks" }

// Score is 16/(16+tasks): 1 for none, a half for 16.
func (FewestTasks) Score(_ *Request, n NodeView) float64 {
	return fewest(n.c.nodes[n.slot].tasks)
}

func fewest(tasks int32) float64 { return 16 / (16 + float64(tasks)) }

// ImagePresent prefers nodes that need not pull.
type ImagePresent struct{}

// Name is image.
func (ImagePresent) Name() string { return "image" }

// Score is the share of the request's images that the node has.
func (ImagePresent) Score(r *Request, n NodeView) float64 {
	if len(r.Images) == 0 {
		return 0
	}
	have := 0
	for _, ref := range r.Images {
		if n.HasImage(ref) {
			have++
		}
	}
	return float64(have) / float64(len(r.Images))
}

// TaskAffinity follows the preferred affinity and anti-affinity of a request.
type TaskAffinity struct{}

// Name is affinity.
func (TaskAffinity) Name() string { return "affinity" }

// Score is a half when there are no such tasks; more in neighbourhoods with
// many of the tasks wanted near, less in those with many wanted far. It is
// judged when the group's turn comes, and not again for each replica.
func (TaskAffinity) Score(_ *Request, n NodeView) float64 {
	if n.ix == nil || n.ix.near == nil {
		return 0.5
	}
	return n.ix.near[n.slot]
}

func clamp(f float64) float64 {
	if !(f > 0) { // NaN too
		return 0
	}
	return min(f, 1)
}
