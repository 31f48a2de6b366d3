package orchestrate

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// Cordon keeps new tasks off a node; those it has stay. A node that does not
// exist is a [*NameError].
func (f *Fleet) Cordon(ctx context.Context, node string) error {
	return f.setNode(ctx, node, func(s *record.NodeSpec) { s.Cordoned = true })
}

// Uncordon lets new tasks onto a node again, also after [Fleet.Drain].
func (f *Fleet) Uncordon(ctx context.Context, node string) error {
	return f.setNode(ctx, node, func(s *record.NodeSpec) { s.Cordoned, s.Drain = false, false })
}

// Drain keeps new tasks off a node and moves its own to others, by each
// service's way of updating: where tasks start first, no service has fewer
// ready tasks than replicas in the meantime. It returns when none is left on
// the node, or with ctx's error; the node is being drained then, until
// [Fleet.Uncordon].
func (f *Fleet) Drain(ctx context.Context, node string) error {
	if err := f.setNode(ctx, node, func(s *record.NodeSpec) { s.Drain = true }); err != nil {
		return err
	}
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	prefix := record.Key(record.Tasks, node, "")
	for {
		snapshot, err := f.store.List(ctx, prefix)
		if err != nil {
			return err
		}
		if len(snapshot.Items) == 0 {
			return nil
		}
		if err := f.next(ctx, []string{prefix}, snapshot.Revision); err != nil {
			return fmt.Errorf("drain node %s, which has %d tasks left: %w", node, len(snapshot.Items), err)
		}
	}
}

func (f *Fleet) setNode(ctx context.Context, node string, set func(*record.NodeSpec)) error {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	return f.change(ctx, func(b *batch) error {
		if _, found, err := getKey(ctx, f.store, record.Key(record.Nodes, node)); err != nil || !found {
			if err == nil {
				err = &NameError{"node", node}
			}
			return err
		}
		return f.stageNode(ctx, b, node, set)
	})
}

// stageNode changes what the application wants of a node that exists.
func (f *Fleet) stageNode(ctx context.Context, b *batch, node string, set func(*record.NodeSpec)) error {
	key := record.Key(record.NodeSpecs, node)
	item, found, err := store.Get(ctx, f.store, key)
	if err != nil {
		return err
	}
	var spec record.NodeSpec
	if found {
		if err := json.Unmarshal(item.Value, &spec); err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
	}
	was := spec
	set(&spec)
	spec.Actor = actorOf(ctx)
	b.tell(ctx, record.Event{Kind: record.NodeChanged, Node: node, Reason: nodeReason(was, spec)})
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	b.guard(item, key)
	b.Writes = append(b.Writes, store.Put(key, data))
	return nil
}

// nodeReason says in a word what a change of a node's spec is.
func nodeReason(old, new record.NodeSpec) string {
	switch {
	case new.Drain && !old.Drain:
		return record.ReasonDrained
	case new.Cordoned && !old.Cordoned && !old.Drain:
		return "cordoned"
	case !new.Cordoned && !new.Drain && (old.Cordoned || old.Drain):
		return "uncordoned"
	case new.Fenced != old.Fenced:
		return record.ReasonFenced
	}
	return "changed"
}
