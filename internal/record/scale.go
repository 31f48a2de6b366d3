package record

import (
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate/autoscale"
)

// Scales is the prefix of how many tasks services with an autoscaler are to
// have, NS/NAME. The leader writes it: the spec is the application's.
const Scales = "/scales/"

// Scale is the number of tasks that a service is to have, in place of its
// spec's, for as long as that has a policy.
type Scale struct {
	Created  time.Time            `json:"created"` // of the service
	Replicas int                  `json:"replicas"`
	Wanted   int                  `json:"wanted"` // before windows, limits and bounds
	Reason   autoscale.Reason     `json:"reason"`
	Message  string               `json:"message,omitempty"`
	Metrics  []autoscale.Proposal `json:"metrics,omitempty"`
	At       time.Time            `json:"at"`               // of the decision
	Changed  time.Time            `json:"changed,omitzero"` // when Replicas last changed
	// History is what the next decision needs to know of those before.
	History autoscale.History `json:"history,omitzero"`
}

// Usages is the prefix of what nodes measure for autoscalers, NODE: one leased
// record of each node that has something to measure, written by its agent.
const Usages = "/usage/"

// Usage is what one node measured.
type Usage struct {
	// Tasks are its tasks that are to be measured, by ID.
	Tasks map[string]TaskUsage `json:"tasks,omitempty"`
	// Requests are new connections a second to services on this node, by
	// NS/NAME.
	Requests map[string]float64 `json:"requests,omitempty"`
}

// TaskUsage is what the containers of a task used, by name.
type TaskUsage struct {
	Begin      time.Time                 `json:"begin"` // of the time that CPU is measured over
	Containers map[string]ContainerUsage `json:"containers"`
}

// ContainerUsage is what a container used.
type ContainerUsage struct {
	CPU    float64 `json:"cpu"`    // thousandths of a core
	Memory int64   `json:"memory"` // bytes
}

// ActorAutoscaler changes numbers of tasks by itself.
const ActorAutoscaler = "autoscaler"

// ServiceScaled is the kind of event of a change that an autoscaler made.
const ServiceScaled EventKind = "service-scaled"

// Scaling is a change of the number of tasks by an autoscaler.
type Scaling struct {
	From    int                  `json:"from"`
	To      int                  `json:"to"`
	Wanted  int                  `json:"wanted"`
	Metrics []autoscale.Proposal `json:"metrics,omitempty"`
}

// ScalerEvents is the key of the n-th record of events of the autoscalers in a
// leader's term.
func ScalerEvents(term, n int64) string {
	return fmt.Sprintf("%sscaler/%016x-%08x", Kept, term, n)
}
