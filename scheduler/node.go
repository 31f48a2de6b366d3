package scheduler

import (
	"fmt"
	"math"
	"strings"
)

// Node is a machine that tasks can be placed on: plain data, given whole to
// [Cluster.SetNode] each time it changes.
type Node struct {
	// ID names the node for ever; no other node may have it.
	ID       string   `json:"id"`
	Hostname string   `json:"hostname,omitempty"`
	Platform Platform `json:"platform,omitzero"`
	// Labels are what constraints, spreading and affinity look at.
	Labels map[string]string `json:"labels,omitempty"`
	// Capacity is what the node has for tasks, before Overcommit.
	Capacity Resources `json:"capacity,omitzero"`
	// Overcommit multiplies Capacity, resource by resource.
	Overcommit Overcommit `json:"overcommit,omitzero"`
	// Taints keep away tasks that do not tolerate them.
	Taints []Taint `json:"taints,omitempty"`
	// Ready is false for a node that is down or not heard of: it gets nothing.
	Ready bool `json:"ready,omitempty"`
	// Paused nodes get no new tasks and keep theirs.
	Paused bool `json:"paused,omitempty"`
	// Drained nodes get no new tasks, and the caller is moving theirs away.
	Drained bool `json:"drained,omitempty"`
	// Images are the references or digests already on the node's disk.
	Images []string `json:"images,omitempty"`
	// Drivers are the drivers that the node runs, such as volume/nfs.
	Drivers []string `json:"drivers,omitempty"`
	// Topology is where the node stands for storage: segment to value, as in
	// the CSI specification's NodeGetInfo.
	Topology map[string]string `json:"topology,omitempty"`
}

// Platform is an operating system and a processor, in Go's words (linux,
// amd64). In a request an empty field matches anything.
type Platform struct {
	OS   string `json:"os,omitempty"`
	Arch string `json:"arch,omitempty"`
}

// String is os/arch, such as linux/amd64.
func (p Platform) String() string { return p.OS + "/" + p.Arch }

// Overcommit is by how much more than a node has may be promised. 0 and 1 mean
// no more than there is; 1.5 means half as much again.
type Overcommit struct {
	CPU    float64 `json:"cpu,omitempty"`
	Memory float64 `json:"memory,omitempty"`
	Disk   float64 `json:"disk,omitempty"`
}

// Taint keeps tasks off a node unless they tolerate it.
type Taint struct {
	Key   string `json:"key"`
	Value string `json:"value,omitempty"`
}

// String is key=value.
func (t Taint) String() string { return t.Key + "=" + t.Value }

// MaxOvercommit bounds each factor of [Overcommit].
const MaxOvercommit = 1000

// Validate reports the first thing wrong with n as an *InvalidError.
func (n *Node) Validate() error {
	if n.ID == "" {
		return invalid("node.id", n.ID, "a name")
	}
	if err := n.Capacity.Validate(); err != nil {
		return fmt.Errorf("node %s: capacity: %w", n.ID, err)
	}
	for d, f := range n.Overcommit.factors() {
		if math.IsNaN(f) || f < 0 || f > MaxOvercommit {
			return fmt.Errorf("node %s: %w", n.ID, invalid("node.overcommit."+dimNames[d], f, fmt.Sprintf("a factor from 0 to %d", MaxOvercommit)))
		}
	}
	for i, t := range n.Taints {
		if t.Key == "" {
			return fmt.Errorf("node %s: %w", n.ID, invalid(fmt.Sprintf("node.taints[%d].key", i), t.Key, "a name"))
		}
	}
	return nil
}

func (o *Overcommit) factors() [dims]float64 { return [dims]float64{o.CPU, o.Memory, o.Disk} }

// allocatable is the capacity times the overcommit, in whole units.
func (n *Node) allocatable() vector {
	v := n.Capacity.vector()
	for d, f := range n.Overcommit.factors() {
		if f != 0 && f != 1 {
			v[d] = int64(min(float64(v[d])*f, 1<<60))
		}
	}
	return v
}

// attribute returns what the key of a constraint or of a topology stands for
// on n, and whether n has it.
func (n *Node) attribute(key string) (string, bool) {
	switch key {
	case "node.id":
		return n.ID, true
	case "node.hostname":
		return n.Hostname, n.Hostname != ""
	case "node.os", "node.platform.os":
		return n.Platform.OS, n.Platform.OS != ""
	case "node.arch", "node.platform.arch":
		return n.Platform.Arch, n.Platform.Arch != ""
	}
	v, ok := n.Labels[strings.TrimPrefix(key, labelPrefix)]
	return v, ok
}

const labelPrefix = "node.labels."
