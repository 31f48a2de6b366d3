package orchestrate

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// LossPolicy is what becomes of the tasks of a node that is not heard of: that
// is dead, or cut off with its tasks at work. It is part of [Service] and [Job].
// A change of it restarts nothing, and holds for what is silent already.
type LossPolicy struct {
	// LostAfter is how long a node may be silent, from when its lease has run
	// out, before its tasks are replaced elsewhere: the fleet's own when 0, which
	// is 30 s or what [WithLostAfter] says, and never when negative, as suits
	// tasks whose data is on their node alone. At least 1 ms and at most 7 days.
	//
	// A node's record that is deleted and a node that is fenced are waited for no
	// longer, whatever this says, see [Fleet.Fence]. So is a task that was told to
	// stop, for an update or a drain, after the fleet's own time. When more nodes
	// vanish than [WithLossLimit] allows, all wait. Not for [Global].
	LostAfter time.Duration `json:"lostAfter,omitempty"`
	// Returning says which task stays when a node comes back after its task was
	// replaced: [KeepReplacement] when empty. Not for [Global].
	Returning ReturnPolicy `json:"returning,omitempty"`
}

// ReturnPolicy says which task stays when a node that was lost comes back.
type ReturnPolicy string

// The policies. The slots of a [Stateful] service are run at most once whatever
// the policy: an original has ended for certain before its slot is given away, so
// of what was replaced the replacement stays.
const (
	// KeepReplacement stops the original, which reads that as soon as its node is
	// back.
	KeepReplacement ReturnPolicy = "keep-replacement"
	// KeepOriginal stops the replacement, once the original has been ready for
	// UpdatePolicy.Monitor and at least 5 s: both serve until then. An original
	// that comes back without serving has UpdatePolicy.ProgressDeadline for that;
	// then it goes. One that the spec does not want any more, since it was changed
	// in the meantime or the node is drained, is stopped. Of a job, whose tasks
	// serve nothing, the replacement goes at once.
	KeepOriginal ReturnPolicy = "keep-original"
)

// fill fills in the defaults.
func (l *LossPolicy) fill() { setDefault(&l.Returning, KeepReplacement) }

// loss checks a policy with its defaults filled in.
func (c *checks) loss(l *LossPolicy) {
	if l.LostAfter > 0 {
		c.duration("lostAfter", l.LostAfter, 0)
	}
	if l.Returning != KeepReplacement && l.Returning != KeepOriginal {
		c.add("returning", l.Returning, "is not a policy; use %q or %q", KeepReplacement, KeepOriginal)
	}
}

// globalLoss checks that of a global service.
func (c *checks) globalLoss(l *LossPolicy) {
	if l.LostAfter != 0 {
		c.add("lostAfter", l.LostAfter, "has no meaning for a global service, whose tasks have no other place; leave it out")
	}
	if l.Returning != "" {
		c.add("returning", l.Returning, "has no meaning for a global service, whose tasks are not replaced while their node is away; leave it out")
	}
}

// control has the planner know of the policy.
func (l *LossPolicy) control(w *control.Workload) {
	w.LostAfter, w.KeepOriginal = l.LostAfter, l.Returning == KeepOriginal
}

// whySilent says of a task whose node is not alive what is waited for.
func (f *Fleet) whySilent(ctx context.Context, x *Explanation, all []Event) error {
	t := x.Task
	if t == nil || t.State == Stopped || t.State == Completed || t.State == Failed {
		return nil
	}
	if _, alive, err := store.Get(ctx, f.store, record.Key(record.Alive, t.Node)); err != nil || alive {
		return err
	}
	x.Silent = "node " + t.Node + " is silent"
	for _, e := range all {
		if e.Node == t.Node && e.Kind == NodeLost {
			x.Silent = fmt.Sprintf("node %s is silent, and was given up at %s", t.Node, e.At.Format("2006-01-02 15:04:05"))
		}
		if e.Node == t.Node && (e.Kind == NodeHeld || e.Kind == NodeReturned) {
			x.Silent = "node " + t.Node + " is silent"
		}
	}
	if t.Stopping != "" {
		x.Silent += ": the task stops when it returns"
		return nil
	}
	policy, global, err := f.lossPolicy(ctx, t)
	switch wait := cmp.Or(policy.LostAfter, f.opts.lostAfter, control.DefaultLostAfter); {
	case err != nil:
		return err
	case global:
		x.Silent += ": a global service's task waits for it"
	case wait < 0:
		x.Silent += ": the task is replaced only when the node is fenced or deleted, since its lostAfter is never"
	default:
		x.Silent += fmt.Sprintf(": the task is replaced when that has lasted for %v", wait)
	}
	return nil
}

// lossPolicy is that of a task's service or job; none if that is gone.
func (f *Fleet) lossPolicy(ctx context.Context, t *Task) (policy LossPolicy, global bool, err error) {
	for _, prefix := range []string{record.Services, record.Jobs} {
		item, found, err := getKey(ctx, f.store, record.Key(prefix, t.Namespace, t.Service))
		if err != nil || !found {
			if err != nil {
				return policy, false, err
			}
			continue
		}
		var rec struct {
			Spec struct {
				LossPolicy
				Mode Mode `json:"mode"`
			} `json:"spec"`
		}
		if err := json.Unmarshal(item.Value, &rec); err != nil {
			return policy, false, fmt.Errorf("read %s: %w", item.Key, err)
		}
		return rec.Spec.LossPolicy, rec.Spec.Mode == Global, nil
	}
	return policy, false, nil
}
