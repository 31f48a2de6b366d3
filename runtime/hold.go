package runtime

import (
	"context"
	"errors"
	"time"
)

// Holder is a Runtime that can end containers by itself, when nobody has said in
// time that they may go on. It binds what must not run twice to the lease of its
// node, also when the agent that would stop it is dead.
//
// It is about the containers that have the label [LabelHeld].
type Holder interface {
	// Hold lets them run for d from now. When that time is over, and no further
	// call has moved it, they are killed (SIGKILL): no later than [HoldMargin]
	// after it, and whatever has become of this process, unless the caller
	// knows that nothing can be decided without it. Until the first call, and
	// after that time, a Start of one is [ErrNotHeld].
	Hold(ctx context.Context, d time.Duration) error
}

// HoldMargin is how long after the end of a Hold the last of the containers
// that it was for may be alive.
const HoldMargin = 2 * time.Second

// LabelHeld marks, with any value, the containers that [Holder] is about.
const LabelHeld = "orchestrate.held"

// ErrNotHeld is the Start of a container that nobody says may run.
var ErrNotHeld = errors.New("nobody holds the container: the time for which it may run is over")
