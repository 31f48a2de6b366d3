package record

import "time"

// Directives are of the form NS/NAME; the application writes a Directive.
const Directives = "/directives/"

// Strategy is how a new template takes the place of another.
type Strategy string

// The strategies.
const (
	Rolling   Strategy = ""
	Canary    Strategy = "canary"
	BlueGreen Strategy = "blue-green"
)

// Phase is what a rollout is at.
type Phase string

// The phases. A canary goes Canary, Bake or Waiting, PhaseRolling; a blue/green
// PhaseGreen, perhaps Waiting, then Bake with the traffic switched, Retiring.
const (
	PhaseRolling  Phase = "rolling"  // tasks are replaced, a few at a time
	PhaseCanary   Phase = "canary"   // canaries get ready beside the others
	PhaseGreen    Phase = "green"    // the second set gets ready, without traffic
	PhaseWaiting  Phase = "waiting"  // they are, and wait for a call
	PhaseBake     Phase = "bake"     // they are, and are to stay so for a time
	PhaseRetiring Phase = "retiring" // the old set goes
)

// Directive is what the application tells the leader to do with a rollout that
// is under way.
type Directive struct {
	// Spec is the store revision of the service's record that the rollout is
	// of: no later one obeys.
	Spec   int64           `json:"spec"`
	Action DirectiveAction `json:"action"`
	// From is the phase that a Promote ends.
	From  Phase     `json:"from,omitempty"`
	At    time.Time `json:"at"`
	Actor string    `json:"actor,omitempty"` // who asked for it
}

// DirectiveAction is what a Directive asks for.
type DirectiveAction string

// The actions.
const (
	Promote DirectiveAction = "promote"
	Abort   DirectiveAction = "abort"
)
