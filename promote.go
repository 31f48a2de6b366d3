package orchestrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// Phase is what a rollout is at.
type Phase string

// The phases. A canary goes from PhaseCanary over PhaseBake or PhaseWaiting to
// PhaseRolling; a blue/green change from PhaseGreen, over PhaseWaiting if it is
// Manual, and PhaseBake to PhaseRetiring; every other rollout is PhaseRolling.
const (
	// PhaseRolling: tasks are started, stopped and replaced, a few at a time.
	PhaseRolling Phase = "rolling"
	// PhaseCanary: the canaries are started beside the old tasks, and are not
	// all ready yet, or not any more.
	PhaseCanary Phase = "canary"
	// PhaseGreen: the second set is started, and takes no traffic.
	PhaseGreen Phase = "green"
	// PhaseWaiting: all that is tried is ready and waits for [Fleet.Promote] or
	// [Fleet.Abort], for however long. No deadline runs.
	PhaseWaiting Phase = "waiting"
	// PhaseBake: it is ready, and is to stay so until Rollout.Until. A second
	// set has the traffic.
	PhaseBake Phase = "bake"
	// PhaseRetiring: the old set is stopped.
	PhaseRetiring Phase = "retiring"
)

// ErrPhase is matched by every [*PhaseError].
var ErrPhase = errors.New("the rollout is in no phase for that")

// PhaseError is a rollout that cannot be promoted or aborted as it is. It
// matches [ErrPhase].
type PhaseError struct {
	Service string // NAMESPACE/NAME
	Action  string // "promote" or "abort"
	Phase   Phase  // empty when no rollout goes on
}

func (e *PhaseError) Error() string {
	switch {
	case e.Phase == "":
		return fmt.Sprintf("%s %s: no rollout of it goes on", e.Action, e.Service)
	case e.Action == string(record.Abort):
		return fmt.Sprintf("%s %s: its rollout has failed already and goes back", e.Action, e.Service)
	}
	return fmt.Sprintf("%s %s: its rollout is in phase %q; only what is in %q or %q can be promoted", e.Action, e.Service, e.Phase, PhaseWaiting, PhaseBake)
}

// Is reports whether target is [ErrPhase].
func (e *PhaseError) Is(target error) bool { return target == ErrPhase }

// Promote ends what a canary or blue/green change waits for: canaries that are
// ready become replicas, and the rest of them follow; a second set that waits
// gets the traffic; the old set of one that bakes goes. It returns once that is
// stored; [Fleet.Wait] says what became of it. A rollout in another phase than
// [PhaseWaiting] or [PhaseBake] is a [*PhaseError], and a service that does not
// exist a [*NameError].
func (f *Fleet) Promote(ctx context.Context, name string) error {
	return f.direct(ctx, name, record.Promote)
}

// Abort ends a rollout that goes on, of whatever strategy and in whatever phase:
// it fails with [ReasonAborted], and the service goes back to its last completed
// revision, whatever its policy says of failures. The old tasks of a canary or
// a blue/green change are all there, so it is over as soon as the new ones have
// stopped; traffic that was switched is switched back before that. It returns
// once it is stored; [Fleet.Wait] says what became of it. The spec stays as it
// was applied: [Fleet.Rollback] makes the earlier one the spec. When no rollout
// goes on it is a [*PhaseError], and a service that does not exist a
// [*NameError].
func (f *Fleet) Abort(ctx context.Context, name string) error {
	return f.direct(ctx, name, record.Abort)
}

// direct tells the leader what to do with the rollout of a service.
func (f *Fleet) direct(ctx context.Context, name string, action record.DirectiveAction) error {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	return f.change(ctx, func(b *batch) error {
		ns, base := splitName(name)
		key := record.Key(record.Services, ns, base)
		service, err := f.existing(ctx, "service", name, key)
		if err != nil {
			return err
		}
		b.guard(service, key)
		item, found, err := store.Get(ctx, f.store, record.Key(record.Rollouts, ns, base))
		if err != nil {
			return err
		}
		var r record.Rollout
		if found {
			if err := json.Unmarshal(item.Value, &r); err != nil {
				return fmt.Errorf("read %s: %w", item.Key, err)
			}
		}
		refused := &PhaseError{Service: ns + "/" + base, Action: string(action)}
		switch {
		case r.Spec != service.Revision:
			// The leader has not seen it. Nothing of it can be promoted yet.
			if refused.Phase = PhaseRolling; action == record.Promote {
				return refused
			}
		case r.Current().State != record.Progressing:
			return refused
		case r.Rollback != nil, action == record.Promote && r.Phase != record.PhaseWaiting && r.Phase != record.PhaseBake:
			refused.Phase = Phase(r.Phase)
			return refused
		}
		d := record.Directive{Spec: service.Revision, Action: action, From: r.Phase, At: time.Now().UTC(), Actor: actorOf(ctx)}
		data, err := json.Marshal(d)
		if err != nil {
			return err
		}
		key = record.Key(record.Directives, ns, base)
		last, _, err := store.Get(ctx, f.store, key)
		if err != nil {
			return err
		}
		b.guard(last, key)
		b.Writes = append(b.Writes, store.Put(key, data))
		return nil
	})
}
