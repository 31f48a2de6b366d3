package orchestrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// ErrAlive is a node that is alive where only a dead one will do.
var ErrAlive = errors.New("the node is alive")

// AliveError is a node that was to be given up and is alive. It matches
// [ErrAlive].
type AliveError struct{ Node string }

func (e *AliveError) Error() string {
	return fmt.Sprintf("node %s is alive; drain it and stop its agent first", e.Node)
}

// Is reports whether target is [ErrAlive].
func (e *AliveError) Is(target error) bool { return target == ErrAlive }

// Fence vouches that nothing of a node runs any more: that its machine is off,
// or will never again reach a network or a disk that it shares with others. Its
// tasks are replaced at once, those too that must not run twice and that the
// node has not promised to stop by itself; see [Stateful]. Who fences a machine
// that still runs may make a slot run twice, on one volume.
//
// It holds until the node's agent registers again. A node that is alive is an
// [*AliveError], one that does not exist a [*NameError].
func (f *Fleet) Fence(ctx context.Context, node string) error {
	return f.setDead(ctx, node, func(b *batch, item store.Item, rec *record.Node) error {
		return f.stageNode(ctx, b, node, func(s *record.NodeSpec) { s.Fenced = rec.Registration })
	})
}

// RemoveNode forgets a node that will not come back, and all that only it had:
// its tasks are replaced, as after [Fleet.Fence], and slots whose volumes could
// be reached from it alone begin anew, with empty ones. The errors are those of
// Fence. An agent of that name that is started later is a new node.
func (f *Fleet) RemoveNode(ctx context.Context, node string) error {
	err := f.setDead(ctx, node, func(b *batch, item store.Item, rec *record.Node) error {
		b.tell(ctx, record.Event{Kind: record.NodeChanged, Node: node, Reason: record.ReasonRemoved})
		b.Writes = append(b.Writes, store.Delete(item.Key), store.Delete(record.Key(record.NodeSpecs, node)))
		return nil
	})
	if err != nil {
		return err
	}
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	for _, prefix := range []string{record.Volumes, record.Statuses} {
		snapshot, err := f.store.List(ctx, record.Key(prefix, node, ""))
		if err != nil {
			return err
		}
		for first := 0; first < len(snapshot.Items); first += store.MaxTxnOps / 2 {
			txn := store.Txn{If: []store.Condition{store.Absent(record.Key(record.Alive, node))}}
			for _, item := range snapshot.Items[first:min(first+store.MaxTxnOps/2, len(snapshot.Items))] {
				txn.Writes = append(txn.Writes, store.Delete(item.Key))
			}
			if _, err := f.store.Commit(ctx, txn); errors.Is(err, store.ErrConflict) {
				return &AliveError{node}
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// setDead changes something about a node on the condition that it is not alive.
func (f *Fleet) setDead(ctx context.Context, node string, stage func(*batch, store.Item, *record.Node) error) error {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	return f.change(ctx, func(b *batch) error {
		item, err := f.existing(ctx, "node", node, record.Key(record.Nodes, node))
		if err != nil {
			return err
		}
		var rec record.Node
		if err := json.Unmarshal(item.Value, &rec); err != nil {
			return fmt.Errorf("read %s: %w", item.Key, err)
		}
		key := record.Key(record.Alive, node)
		if _, alive, err := store.Get(ctx, f.store, key); err != nil {
			return err
		} else if alive {
			return &AliveError{node}
		}
		b.guard(store.Item{}, key) // it stays absent
		b.guard(item, item.Key)
		return stage(b, item, &rec)
	})
}
