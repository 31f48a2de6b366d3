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
	return f.setNode(ctx, node, func(s *record.NodeSpec) { s.Cordoned, s.Drain, s.Draining = false, false, nil })
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
