package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

// forgetful loses history now and then, in both ways that a store may.
type forgetful struct {
	store.Store
	watches int
}

func (s *forgetful) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	switch s.watches++; s.watches {
	case 1:
		return nil, store.ErrCompacted
	case 2:
		in, err := s.Store.Watch(ctx, prefix, after)
		if err != nil {
			return nil, err
		}
		out := make(chan store.Batch, 2)
		out <- <-in
		out <- store.Batch{Err: fmt.Errorf("fell behind: %w", store.ErrCompacted)}
		close(out)
		return out, nil
	default:
		return s.Store.Watch(ctx, prefix, after)
	}
}

// diary writes down what a follower is told.
type diary struct {
	lines []string
	next  func() error // called after each line
}

func (d *diary) Reset(s store.Snapshot) error {
	d.lines = append(d.lines, fmt.Sprintf("reset at %d: %d items", s.Revision, len(s.Items)))
	return d.next()
}

func (d *diary) Apply(b store.Batch) error {
	d.lines = append(d.lines, fmt.Sprintf("apply %d", b.Revision))
	return d.next()
}

func TestFollowListsAgain(t *testing.T) {
	ctx := context.Background()
	s := &forgetful{Store: memory.New(memory.Options{})}
	defer s.Close()
	errEnough := errors.New("enough")
	d := &diary{}
	write := func() error {
		if len(d.lines) == 3 {
			return fmt.Errorf("%w, and not because of %w", errEnough, store.ErrCompacted)
		}
		_, err := s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put(fmt.Sprintf("/k%d", len(d.lines)), nil)}})
		return err
	}
	d.next = write
	if err := write(); err != nil {
		t.Fatal(err)
	}
	s.Store = &lateList{Store: s.Store}
	err := store.Follow(ctx, s, "/", d)
	if !errors.Is(err, errEnough) {
		t.Errorf("Follow = %v, want the follower's own error, even if it looks like lost history", err)
	}
	// 1 is written before, 2 by lateList, 3 and 4 by the follower itself. The
	// first watch fails before anything is told.
	want := []string{"reset at 1: 1 items", "apply 2", "reset at 4: 4 items"}
	if !slices.Equal(d.lines, want) {
		t.Errorf("follower was told %q, want %q", d.lines, want)
	}
	if s.watches != 3 {
		t.Errorf("%d watches, want 3: both losses of history answered by a new list", s.watches)
	}
}

// lateList commits one more key after the second list, so that the watch after
// it has something to tell.
type lateList struct {
	store.Store
	lists int
}

func (s *lateList) List(ctx context.Context, prefix string) (store.Snapshot, error) {
	snapshot, err := s.Store.List(ctx, prefix)
	if s.lists++; s.lists == 2 && err == nil {
		_, err = s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put("/late", nil)}})
	}
	return snapshot, err
}

func TestFollowTellsWhyItEnded(t *testing.T) {
	ctx := context.Background()
	s := memory.New(memory.Options{})
	d := &diary{next: s.Close}
	if err := store.Follow(ctx, s, "/", d); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Follow of a store that is closed = %v, want ErrClosed", err)
	}
	if err := store.Follow(ctx, s, "/", d); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Follow of a closed store = %v, want ErrClosed", err)
	}
}
