package orchestratetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/moment"
)

// Everything that a component asks of the world goes through the gate: it parks
// there, and when all goroutines are parked the driver lets one in, by an order
// that has nothing to do with how the scheduler of Go ran them. Of several nodes,
// which have nothing in common but the store, it lets in one each.
//
// What is of a lower class goes first, all of it, so that those who gather
// (balancers, outboxes, the leader) are served when all is there.
type class int

const (
	doing      class = iota // what concerns the caller's own node, and reading the store
	delivering              // batches of watches; nobody parks for it
	programming
	reporting
	committing
	planning
	classes
)

// op is one call at the gate.
type op struct {
	actor *actor
	class class
	key   string        // what is called, of what: the order within one actor
	takes time.Duration // of virtual time
	exec  func() error  // done by the driver when it lets the call in; may be nil
	done  chan struct{} // closed when it is let in, or refused
	err   error

	// Guarded by world.mu.
	late bool // it has taken its time, or takes it
	gone bool // its caller has given up
	in   bool
}

// lag is how much longer a call takes because its actor is slow.
func (o *op) lag() time.Duration {
	if o.class == doing || o.class == committing {
		return o.actor.lag
	}
	return 0
}

// actor is who parks: a node, a control plane or the application.
type actor struct {
	world *world
	id    string
	order int

	// Guarded by world.mu.
	dead   bool
	cut    bool // from the store
	hung   bool
	closed bool          // it has closed its store
	lag    time.Duration // how much longer everything takes
	clock  clock         // what is wrong with its; nil is nothing
	queues [classes][]*op
	held   []*op // while it is hung
	leases []*lease
	calls  int // that a fault of the store could have concerned
}

// errDead ends the calls of a process that was killed.
var errDead = errors.New("orchestratetest: the process was killed")

// ErrUnreachable is what the store answers who is cut off from it.
var ErrUnreachable = errors.New("orchestratetest: the store cannot be reached")

// enter parks until the driver lets the call in.
func (a *actor) enter(ctx context.Context, c class, key string, takes time.Duration, exec func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w := a.world
	o := &op{actor: a, class: c, key: key, takes: takes, exec: exec, done: make(chan struct{})}
	w.mu.Lock()
	if a.dead {
		w.mu.Unlock()
		return errDead
	}
	w.arrived = append(w.arrived, o)
	w.mu.Unlock()
	w.ring()
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if o.in {
		return o.err
	}
	o.gone = true
	return ctx.Err()
}

// Settle is moment.World's.
func (a *actor) Settle(ctx context.Context, who moment.Order) error {
	c := map[moment.Order]class{moment.Traffic: programming, moment.Outbox: reporting, moment.Planner: planning}[who]
	return a.enter(ctx, c, "", 0, nil)
}

// ring tells the driver that there is something at the gate.
func (w *world) ring() {
	select {
	case w.bell <- struct{}{}:
	default:
	}
}

// sort puts what has arrived where it waits. mu is held.
func (w *world) sort() {
	for _, o := range w.arrived {
		switch a := o.actor; {
		case a.dead:
			w.refuse(o, errDead)
		case a.hung:
			a.held = append(a.held, o)
		case !o.late && o.takes+o.lag() > 0:
			o.late = true
			w.after(o.takes+o.lag(), a.order, o.key, func() { w.arrived = append(w.arrived, o) })
		default:
			w.queue(o)
		}
	}
	w.arrived = w.arrived[:0]
}

// queue puts a call among those to be let in. mu is held.
func (w *world) queue(o *op) {
	a := o.actor
	if len(a.queues[o.class]) == 0 {
		w.active[o.class] = append(w.active[o.class], a)
	}
	a.queues[o.class] = append(a.queues[o.class], o)
}

func (w *world) refuse(o *op, err error) {
	if o.gone || o.in {
		return
	}
	o.in, o.err = true, err
	close(o.done)
}

// admit lets in what is next, and reports whether there was anything. All
// goroutines are parked.
func (w *world) admit() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sort()
	for c := range classes {
		if c == delivering {
			if w.deliver() {
				return true
			}
			continue
		}
		if w.admitClass(c) {
			return true
		}
	}
	return false
}

func (w *world) admitClass(c class) bool {
	actors := w.active[c]
	if len(actors) == 0 {
		return false
	}
	w.active[c] = nil
	slices.SortFunc(actors, func(a, b *actor) int { return cmp.Compare(a.order, b.order) })
	var in []*op
	for _, a := range actors {
		q := slices.DeleteFunc(a.queues[c], func(o *op) bool { return o.gone })
		if len(q) > 1 {
			slices.SortStableFunc(q, func(x, y *op) int { return cmp.Compare(x.key, y.key) })
		}
		n := min(1, len(q))
		for n > 0 && n < len(q) && q[n].key == q[0].key {
			n++ // which is which nobody can tell, so they go together
		}
		for _, o := range q[:n] {
			if o.exec != nil {
				o.err = o.exec()
			}
			o.in = true
			in = append(in, o)
			if w.scenario.trace != nil {
				w.scenario.trace(fmt.Sprintf("%v %s %d %s %v", w.since(), a.id, c, o.key, o.err))
			}
		}
		rest := q[n:]
		a.queues[c] = append(a.queues[c][:0:0], rest...)
		if len(rest) > 0 {
			w.active[c] = append(w.active[c], a)
		}
	}
	for _, o := range in {
		close(o.done)
	}
	w.admitted += len(in)
	return len(in) > 0
}

// drop refuses all calls of an actor that is dead. mu is held.
func (w *world) drop(a *actor) {
	for c := range classes {
		for _, o := range a.queues[c] {
			w.refuse(o, errDead)
		}
		a.queues[c] = nil
		w.active[c] = slices.DeleteFunc(w.active[c], func(b *actor) bool { return a == b })
	}
	for _, o := range a.held {
		w.refuse(o, errDead)
	}
	a.held = nil
}

// hang holds all that is queued of an actor; unhang lets go of it. mu is held.
func (w *world) hang(a *actor) {
	a.hung = true
	for c := range classes {
		a.held = append(a.held, a.queues[c]...)
		a.queues[c] = nil
		w.active[c] = slices.DeleteFunc(w.active[c], func(b *actor) bool { return a == b })
	}
}

func (w *world) unhang(a *actor) {
	a.hung = false
	w.arrived = append(w.arrived, a.held...)
	a.held = nil
	w.ring()
}
