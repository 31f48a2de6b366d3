package store

import (
	"context"
	"errors"
	"fmt"
)

// Get returns the item at key and whether there is one. It uses the store's
// own [Getter] if it has one.
func Get(ctx context.Context, s Store, key string) (item Item, found bool, err error) {
	if err := ValidateKey(key); err != nil {
		return Item{}, false, err
	}
	if g, ok := s.(Getter); ok {
		return g.Get(ctx, key)
	}
	snapshot, err := s.List(ctx, key)
	if err != nil {
		return Item{}, false, err
	}
	// The shortest key with this prefix is the key itself, and sorts first.
	if len(snapshot.Items) > 0 && snapshot.Items[0].Key == key {
		return snapshot.Items[0], true, nil
	}
	return Item{}, false, nil
}

// Follower mirrors a prefix; [Follow] calls it, from one goroutine. An error of
// either method ends Follow.
type Follower interface {
	// Reset gives the full state. Whatever was known before is void: it comes
	// first, and again whenever history was lost.
	Reset(Snapshot) error
	// Apply gives one later commit's changes. Its Err is always nil.
	Apply(Batch) error
}

// Follow lists prefix and hands the [Snapshot] to f.Reset, then watches it and
// hands each [Batch] to f.Apply, without gaps. When history was lost it starts
// again with a Reset. It returns the context's error when ctx ends, and
// otherwise the first error of the store or of f; after a passing error of the
// store just call it again.
func Follow(ctx context.Context, s Store, prefix string, f Follower) error {
	for {
		lost, err := followOnce(ctx, s, prefix, f)
		if !lost {
			return err
		}
	}
}

// followOnce lists and watches until something ends it. Lost says that it was
// the store's lack of history, which only a new list cures.
func followOnce(ctx context.Context, s Store, prefix string, f Follower) (lost bool, err error) {
	// The watch must end with this round, not with the caller's context.
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	snapshot, err := s.List(ctx, prefix)
	if err != nil {
		return false, fmt.Errorf("list %q: %w", prefix, err)
	}
	batches, err := s.Watch(watching, prefix, snapshot.Revision)
	if err != nil {
		return errors.Is(err, ErrCompacted), fmt.Errorf("watch %q: %w", prefix, err)
	}
	if err := f.Reset(snapshot); err != nil {
		return false, err
	}
	for batch := range batches {
		if batch.Err != nil {
			return errors.Is(batch.Err, ErrCompacted), fmt.Errorf("watch %q: %w", prefix, batch.Err)
		}
		if err := f.Apply(batch); err != nil {
			return false, err
		}
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	// The store ended it, and every call now says why: it was closed, or it
	// has failed.
	if _, err := s.List(ctx, prefix); err != nil {
		return false, fmt.Errorf("watch %q: %w", prefix, err)
	}
	return false, fmt.Errorf("watch %q: %w", prefix, ErrClosed)
}
