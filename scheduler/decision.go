package scheduler

import (
	"fmt"
	"strings"
)

// The names of the built-in filters, as Refusal.Filter has them.
const (
	FilterReady        = "ready"
	FilterPlatform     = "platform"
	FilterDrivers      = "drivers"
	FilterTaint        = "taint"
	FilterVolume       = "volume"
	FilterSpreadKey    = "spread-key"
	FilterCPU          = "cpu"
	FilterMemory       = "memory"
	FilterDisk         = "disk"
	FilterDevice       = "device"
	FilterPort         = "port"
	FilterMaxPerNode   = "max-per-node"
	FilterAffinity     = "affinity"
	FilterAntiAffinity = "anti-affinity"
	FilterConstraint   = "constraint"
	FilterSkew         = "max-skew"
)

// Decision says what became of one Request, and why.
type Decision struct {
	Namespace string `json:"namespace,omitempty"`
	Service   string `json:"service"`
	// Count is how many replicas were asked for; Unplaced how many of them,
	// the last ones, got no node.
	Count    int `json:"count"`
	Unplaced int `json:"unplaced,omitempty"`
	// Tasks are the ids of the placed replicas, and Nodes their nodes.
	Tasks []string `json:"tasks,omitempty"`
	Nodes []string `json:"nodes,omitempty"`
	// Evaluated is the number of nodes looked at.
	Evaluated int `json:"evaluated"`
	// Refused counts the nodes by the filter that refused them: before the
	// first replica was placed, or for the first that was not.
	Refused []Refusal `json:"refused,omitempty"`
	// Winner is the node of the first replica as it was before, and
	// RunnersUp the next best.
	Winner    *Candidate  `json:"winner,omitempty"`
	RunnersUp []Candidate `json:"runnersUp,omitempty"`
	// Victims are tasks of lower priority that must stop to make room. Place
	// has released them from the cluster.
	Victims []Victim `json:"victims,omitempty"`
	// Fixes are the smallest changes found that would place one more replica.
	Fixes []Fix `json:"fixes,omitempty"`
	// Gang is set when replicas had nodes and were not placed because a gang
	// was not complete.
	Gang *GangShort `json:"gang,omitempty"`
}

// Refusal is what one filter did.
type Refusal struct {
	Filter string `json:"filter"`
	// Rule is the constraint, where there may be several.
	Rule  string `json:"rule,omitempty"`
	Nodes int    `json:"nodes"`
	// Examples name a few of the nodes with numbers; only given when replicas
	// were not placed.
	Examples []Example `json:"examples,omitempty"`
}

// Example is one node refused. Need and Have are set where there are amounts,
// in the units of Resources.
type Example struct {
	Node   string `json:"node"`
	Reason string `json:"reason"`
	Need   int64  `json:"need,omitempty"`
	Have   int64  `json:"have,omitempty"`
}

// Candidate is a node with its score and what that is made of.
type Candidate struct {
	Node  string  `json:"node"`
	Score float64 `json:"score"`
	Parts []Part  `json:"parts,omitempty"`
}

// Part is one scorer's share: Score is from 0 to 1, and Weight its part of 1.
type Part struct {
	Scorer string  `json:"scorer"`
	Score  float64 `json:"score"`
	Weight float64 `json:"weight"`
}

// Victim is a task that makes room for one of higher priority.
type Victim struct {
	Task     string `json:"task"`
	Node     string `json:"node"`
	Priority int32  `json:"priority"`
	// For is the id of the task that takes its place.
	For string `json:"for"`
}

// FixKind is what kind of change a Fix is.
type FixKind string

// The kinds of fixes.
const (
	// FixFree: free Amount of Resource on Node.
	FixFree FixKind = "free"
	// FixDrop: drop Rule; Nodes nodes would then fit.
	FixDrop FixKind = "drop"
	// FixPreempt: stop Tasks, of lower priority, on Node.
	FixPreempt FixKind = "preempt"
)

// Fix is a change that would place one more replica.
type Fix struct {
	Kind     FixKind  `json:"kind"`
	Node     string   `json:"node,omitempty"`
	Resource string   `json:"resource,omitempty"`
	Amount   int64    `json:"amount,omitempty"`
	Rule     string   `json:"rule,omitempty"`
	Nodes    int      `json:"nodes,omitempty"`
	Tasks    []string `json:"tasks,omitempty"`
}

// GangShort says which member of a gang did not reach its quorum.
type GangShort struct {
	Name    string `json:"name,omitempty"`
	Service string `json:"service"`
	Need    int    `json:"need"`
	Fit     int    `json:"fit"`
}

// Placed is the number of replicas that got a node.
func (d *Decision) Placed() int { return len(d.Nodes) }

// Err is nil when every replica was placed, and otherwise an *UnplacedError.
func (d *Decision) Err() error {
	if d.Unplaced == 0 {
		return nil
	}
	return &UnplacedError{Decision: d}
}

// UnplacedError is a Decision that left replicas without a node. It matches
// ErrUnplaced.
type UnplacedError struct{ Decision *Decision }

func (e *UnplacedError) Error() string { return e.Decision.String() }

// Is makes an UnplacedError match ErrUnplaced.
func (e *UnplacedError) Is(target error) bool { return target == ErrUnplaced }

// String tells the decision as a compiler tells an error: what, why with
// numbers, and what would help.
func (d *Decision) String() string {
	var b strings.Builder
	name := d.Service
	if d.Namespace != "" {
		name = d.Namespace + "/" + d.Service
	}
	if d.Unplaced == 0 {
		fmt.Fprintf(&b, "%s: placed %s on %s", name, plural(d.Count, "replica"), plural(distinct(d.Nodes), "node"))
		if d.Winner != nil {
			fmt.Fprintf(&b, "\n  best: %s", d.Winner)
			for i := range d.RunnersUp {
				fmt.Fprintf(&b, "\n  then: %s", &d.RunnersUp[i])
			}
		}
	} else {
		fmt.Fprintf(&b, "%s: %d of %s not placed: ", name, d.Unplaced, plural(d.Count, "replica"))
		switch {
		case d.Gang != nil:
			fmt.Fprintf(&b, "the gang needs %d of %s and %d fit", d.Gang.Need, d.Gang.Service, d.Gang.Fit)
		case d.Evaluated == 0:
			b.WriteString("there are no nodes")
		default:
			fmt.Fprintf(&b, "none of %s fits", plural(d.Evaluated, "node"))
		}
		for i := range d.Refused {
			d.Refused[i].write(&b)
		}
	}
	for _, v := range d.Victims {
		fmt.Fprintf(&b, "\n  stops: %s on %s (priority %d) for %s", v.Task, v.Node, v.Priority, v.For)
	}
	for i := range d.Fixes {
		fmt.Fprintf(&b, "\n  help: %s", &d.Fixes[i])
	}
	return b.String()
}

func (r *Refusal) write(b *strings.Builder) {
	fmt.Fprintf(b, "\n  %s", r.Filter)
	if r.Rule != "" {
		fmt.Fprintf(b, " %s", r.Rule)
	}
	fmt.Fprintf(b, ": refused %s", plural(r.Nodes, "node"))
	for i, e := range r.Examples {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(b, "%s%s %s", sep, e.Node, e.Reason)
	}
	if more := r.Nodes - len(r.Examples); more > 0 && len(r.Examples) > 0 {
		fmt.Fprintf(b, ", and %d more", more)
	}
}

// String is the node, its score and the parts of it.
func (c *Candidate) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s score %.3f", c.Node, c.Score)
	for i, p := range c.Parts {
		sep := ", "
		if i == 0 {
			sep = " = "
		} else {
			sep = " + "
		}
		fmt.Fprintf(&b, "%s%s %.3f × %.2f", sep, p.Scorer, p.Score, p.Weight)
	}
	return b.String()
}

// String is the fix as advice.
func (f *Fix) String() string {
	switch f.Kind {
	case FixFree:
		for d, name := range dimNames {
			if name == f.Resource {
				return fmt.Sprintf("free %s %s on %s", amount(d, f.Amount), f.Resource, f.Node)
			}
		}
		return fmt.Sprintf("free %d %s on %s", f.Amount, f.Resource, f.Node)
	case FixDrop:
		return fmt.Sprintf("drop %s: %s would fit", f.Rule, plural(f.Nodes, "node"))
	case FixPreempt:
		return fmt.Sprintf("stop %s on %s", strings.Join(f.Tasks, ", "), f.Node)
	}
	return string(f.Kind)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func distinct(list []string) int {
	set := map[string]struct{}{}
	for _, s := range list {
		set[s] = struct{}{}
	}
	return len(set)
}
