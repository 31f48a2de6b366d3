package orchestratetest

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate"
)

// Action is something that happens in a [Scenario]: what the application does,
// such as [Apply], or a fault, such as [NodeDies]. All are plain data, so that
// those that a failure needs can be found and printed.
type Action interface {
	fmt.Stringer
	do(w *world) // with world.mu held
}

// Apply applies objects.
type Apply struct{ Objects []orchestrate.Object }

// Remove removes services or jobs by name.
type Remove struct{ Names []string }

// Scale sets the number of a service's replicas.
type Scale struct {
	Name     string
	Replicas int
}

// Drain moves the tasks of a node away, and waits for that. Cordon keeps new ones
// away, and Uncordon ends both.
type Drain struct{ Node string }

// Cordon keeps new tasks off a node.
type Cordon struct{ Node string }

// Uncordon lets a node have tasks again.
type Uncordon struct{ Node string }

// RemoveNode has the fleet forget a node that is gone.
type RemoveNode struct{ Node string }

// Do is what else an application does.
type Do struct {
	Name string
	Func func(ctx context.Context, f *orchestrate.Fleet) error
}

func (a Apply) call(ctx context.Context, f *orchestrate.Fleet) error {
	return f.Apply(ctx, a.Objects...)
}

// String is what it does.
func (a Apply) String() string {
	var names []string
	for _, o := range a.Objects {
		switch o := o.(type) {
		case orchestrate.Service:
			names = append(names, o.Name)
		case orchestrate.Job:
			names = append(names, o.Name)
		case orchestrate.CronJob:
			names = append(names, o.Name)
		case orchestrate.Network:
			names = append(names, o.Name)
		}
	}
	return "apply " + strings.Join(names, ", ")
}
func (a Apply) do(w *world) { w.act(a.String(), a.call) }

// String is what it does.
func (a Remove) String() string { return "remove " + strings.Join(a.Names, ", ") }
func (a Remove) do(w *world) {
	w.act(a.String(), func(ctx context.Context, f *orchestrate.Fleet) error { return f.Remove(ctx, a.Names...) })
}

// String is what it does.
func (a Scale) String() string { return fmt.Sprintf("scale %s to %d", a.Name, a.Replicas) }
func (a Scale) do(w *world) {
	w.act(a.String(), func(ctx context.Context, f *orchestrate.Fleet) error { return f.Scale(ctx, a.Name, a.Replicas) })
}

// String is what it does.
func (a Drain) String() string { return "drain " + a.Node }
func (a Drain) do(w *world) {
	w.act(a.String(), func(ctx context.Context, f *orchestrate.Fleet) error { return f.Drain(ctx, a.Node) })
}

// String is what it does.
func (a Cordon) String() string { return "cordon " + a.Node }
func (a Cordon) do(w *world) {
	w.act(a.String(), func(ctx context.Context, f *orchestrate.Fleet) error { return f.Cordon(ctx, a.Node) })
}

// String is what it does.
func (a Uncordon) String() string { return "uncordon " + a.Node }
func (a Uncordon) do(w *world) {
	w.act(a.String(), func(ctx context.Context, f *orchestrate.Fleet) error { return f.Uncordon(ctx, a.Node) })
}

// String is what it does.
func (a RemoveNode) String() string { return "remove node " + a.Node }
func (a RemoveNode) do(w *world) {
	w.act(a.String(), func(ctx context.Context, f *orchestrate.Fleet) error { return f.RemoveNode(ctx, a.Node) })
}

// String is its name.
func (a Do) String() string { return a.Name }
func (a Do) do(w *world)    { w.act(a.Name, a.Func) }

// fault notes the begin of a fault and, when it lasts for a while, has it end. A
// fault without effect, such as the death of what is dead, is noted as that. mu
// is held.
func (w *world) fault(a Action, lasts time.Duration, begin func() (effect bool), end func()) {
	w.faults++
	if !begin() {
		w.note(Event{Kind: FaultBegan, Subject: a.String(), Detail: "without effect"})
		return
	}
	w.note(Event{Kind: FaultBegan, Subject: a.String()})
	if lasts > 0 && end != nil {
		w.after(lasts, -1, "end", func() {
			w.note(Event{Kind: FaultEnded, Subject: a.String()})
			end()
		})
	}
}

// plan puts all steps on the agenda. mu is held.
func (w *world) plan() {
	for _, s := range w.scenario.steps() {
		w.after(s.At, -1, "", func() { s.Do.do(w) })
	}
}
