// Package moment lets code handle at once all that happens at one moment. In
// the real world a moment has no length, and nothing here waits. In a simulated
// one, where many things happen at the same instant of virtual time and are
// told one after another, whoever gathers (what it writes, what it plans for)
// waits for the last of them: so what it does does not depend on the order in
// which goroutines happen to run, and is done once.
package moment

import "context"

// World is a simulated world.
type World interface {
	// Settle returns when nothing else is under way at this moment, or when ctx
	// ends, with its error. Who is one of the constants of this package: of two
	// that wait, the one with the lower goes first.
	Settle(ctx context.Context, who Order) error
}

// Order is in which order those who wait are served: what one does may be what
// the next gathers.
type Order int

// Who waits.
const (
	Traffic Order = iota // a node's balancer
	Outbox               // a node's records
	Planner              // the leader
)

type key struct{}

// In returns a context that is in a simulated world.
func In(ctx context.Context, w World) context.Context { return context.WithValue(ctx, key{}, w) }

type subject struct{}

// About says what the calls under a context are about, such as a task, where
// their arguments do not: a simulated world serves those of one subject in one
// order. In the real world it returns ctx.
func About(ctx context.Context, what string) context.Context {
	if ctx.Value(key{}) == nil {
		return ctx
	}
	return context.WithValue(ctx, subject{}, what)
}

// Subject is what the calls under ctx are about; empty where nobody said.
func Subject(ctx context.Context) string {
	what, _ := ctx.Value(subject{}).(string)
	return what
}

// Settle waits until the moment is over, in a simulated world, and takes the
// token off wake, if there is one: what it stands for has happened before.
// Elsewhere it returns nil at once. The error is that of ctx.
func Settle(ctx context.Context, who Order, wake <-chan struct{}) error {
	w, ok := ctx.Value(key{}).(World)
	if !ok {
		return nil
	}
	if err := w.Settle(ctx, who); err != nil {
		return err
	}
	select {
	case <-wake:
	default:
	}
	return nil
}
