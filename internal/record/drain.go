package record

import "time"

// Draining is how a node is drained.
type Draining struct {
	Since time.Time `json:"since"`
	// Deadline is when it ends, done or not; zero is never. What is left then
	// stays where it is, and the node takes no new tasks; with Force it is
	// stopped, whatever the budgets say.
	Deadline time.Time `json:"deadline,omitzero"`
	Force    bool      `json:"force,omitempty"`
}

// Evictions is the prefix of tasks that are to be moved, NODE/ID. The
// application writes it once; the leader deletes it when the task is gone.
const Evictions = "/evictions/"

// Eviction has a task moved.
type Eviction struct {
	At    time.Time `json:"at"`
	Actor string    `json:"actor,omitempty"`
}

// Reasons of events about drains and evictions.
const (
	ReasonEvicted = "evicted" // somebody asked for the task to be moved
	ReasonForced  = "forced"  // its node's drain has reached its deadline
)
