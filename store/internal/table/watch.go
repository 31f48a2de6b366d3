package table

import (
	"context"
	"strings"

	"github.com/orchestrate-go/orchestrate/store"
)

// audience is all watchers of one prefix. They get the same batches, so these
// are filtered once.
type audience struct {
	prefix   string
	watchers map[*watcher]struct{}
	changes  []store.Change // of the batch that is being told
}

// watcher is one call of Watch. Its goroutine takes what is pending and sends
// it; the publisher only appends, and so never waits for a receiver.
type watcher struct {
	audience *audience
	out      chan store.Batch // closed by run
	wake     chan struct{}    // has one token when pending or behind changed

	// guarded by Table.mu
	pending []store.Batch
	behind  bool // fell behind the history; nothing is pending any more
}

// Watch is store.Store's.
func (t *Table) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	if err := store.ValidatePrefix(prefix); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reason != nil {
		return nil, t.reason
	}
	if after < 0 {
		return nil, &store.RevisionError{Revision: after, Current: t.revision}
	}
	if after < t.history.compacted {
		return nil, store.ErrCompacted
	}
	w := &watcher{out: make(chan store.Batch, 16), wake: make(chan struct{}, 1)}
	for _, batch := range t.history.after(after) {
		if changes := under(prefix, batch.Changes); len(changes) > 0 {
			w.pending = append(w.pending, store.Batch{Revision: batch.Revision, Changes: changes})
		}
	}
	t.join(w, prefix)
	t.wg.Go(func() { t.run(ctx, w, after) })
	return w.out, nil
}

// under returns the changes whose key starts with prefix: changes itself if all
// do, since nobody may modify it.
func under(prefix string, changes []store.Change) []store.Change {
	n := 0
	for i := range changes {
		if strings.HasPrefix(changes[i].Item.Key, prefix) {
			n++
		}
	}
	if n == len(changes) {
		return changes
	}
	filtered := make([]store.Change, 0, n)
	for i := range changes {
		if strings.HasPrefix(changes[i].Item.Key, prefix) {
			filtered = append(filtered, changes[i])
		}
	}
	return filtered
}

// run sends what is pending until the watch ends. Batches up to after are left
// out: a watch may start at a revision that is yet to come.
func (t *Table) run(ctx context.Context, w *watcher, after int64) {
	defer close(w.out)
	defer t.leave(w)
	for {
		t.mu.Lock()
		pending, behind := w.pending, w.behind
		w.pending = nil
		t.mu.Unlock()
		for _, batch := range pending {
			if batch.Revision > after && !t.send(ctx, w, batch) {
				return
			}
		}
		if behind {
			t.send(ctx, w, store.Batch{Err: store.ErrCompacted})
			return
		}
		if len(pending) > 0 {
			continue
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		case <-t.closed:
			return
		}
	}
}

func (t *Table) send(ctx context.Context, w *watcher, batch store.Batch) bool {
	select {
	case w.out <- batch:
		return true
	case <-ctx.Done():
	case <-t.closed:
	}
	return false
}

// join and leave keep the audiences; mu is held by join's caller.
func (t *Table) join(w *watcher, prefix string) {
	a := t.prefixes[prefix]
	if a == nil {
		a = &audience{prefix: prefix, watchers: map[*watcher]struct{}{}}
		t.prefixes[prefix] = a
		t.lengths[len(prefix)]++
	}
	a.watchers[w] = struct{}{}
	w.audience = a
}

func (t *Table) leave(w *watcher) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := w.audience
	delete(a.watchers, w)
	if len(a.watchers) > 0 {
		return
	}
	delete(t.prefixes, a.prefix)
	if t.lengths[len(a.prefix)]--; t.lengths[len(a.prefix)] == 0 {
		delete(t.lengths, len(a.prefix))
	}
}

// tell gives batch to everybody who watches one of its keys. It looks up each
// key's beginnings of the lengths that are watched, rather than each watcher:
// a fleet has one watcher a node, and most commits concern one node.
func (t *Table) tell(batch store.Batch) {
	var told []*audience
	for _, c := range batch.Changes {
		for n := range t.lengths {
			if n > len(c.Item.Key) {
				continue
			}
			a := t.prefixes[c.Item.Key[:n]]
			if a == nil {
				continue
			}
			if a.changes == nil {
				told = append(told, a)
			}
			a.changes = append(a.changes, c)
		}
	}
	for _, a := range told {
		part := store.Batch{Revision: batch.Revision, Changes: a.changes}
		a.changes = nil
		if len(part.Changes) == len(batch.Changes) {
			part.Changes = batch.Changes // the same in all audiences: one copy
		}
		for w := range a.watchers {
			w.push(part, t.history.compacted)
		}
	}
}

// push appends batch, unless what the watcher has not taken yet begins before
// the kept history: the same bound for the slow as for the newly come, and so
// for the memory that they hold.
func (w *watcher) push(batch store.Batch, compacted int64) {
	if w.behind {
		return
	}
	if len(w.pending) > 0 && w.pending[0].Revision <= compacted {
		w.pending, w.behind = nil, true
	} else {
		w.pending = append(w.pending, batch)
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
