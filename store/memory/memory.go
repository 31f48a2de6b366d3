// Package memory is a store that lives in the process's memory and is gone with
// it: for unit tests and for fleets that are not meant to be remembered. Its
// leases expire by time.AfterFunc, so it works in the virtual time of
// testing/synctest.
//
//	s := memory.New(memory.Options{})
//	defer s.Close()
package memory

import (
	"context"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/internal/table"
)

// Options of a store; the zero value is ready for use.
type Options struct {
	// History is how many commits a watch can lag behind or start from before
	// it gets store.ErrCompacted. Default 10 000.
	History int
	// HistoryBytes bounds the keys and values in that history. Default 64 MiB.
	HistoryBytes int
}

// Store is a [store.Store], [store.Getter] and [store.Compacter].
type Store struct {
	table *table.Table

	writing sync.Mutex // held by the one writer of table
}

var (
	_ store.Store     = (*Store)(nil)
	_ store.Getter    = (*Store)(nil)
	_ store.Compacter = (*Store)(nil)
)

// New returns an empty store at revision 0.
func New(opts Options) *Store {
	if opts.History <= 0 {
		opts.History = 10_000
	}
	if opts.HistoryBytes <= 0 {
		opts.HistoryBytes = 64 << 20
	}
	return &Store{table: table.New(table.Options{History: opts.History, HistoryBytes: opts.HistoryBytes}, 0, nil)}
}

// List returns a consistent snapshot of prefix.
func (s *Store) List(ctx context.Context, prefix string) (store.Snapshot, error) {
	return s.table.List(ctx, prefix)
}

// Get returns the item at key and whether there is one.
func (s *Store) Get(ctx context.Context, key string) (store.Item, bool, error) {
	return s.table.Get(ctx, key)
}

// Watch delivers every change under prefix after a revision.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	return s.table.Watch(ctx, prefix, after)
}

// Commit applies txn if its conditions hold.
func (s *Store) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if err := txn.Validate(); err != nil {
		return 0, err
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.table.Check(ctx); err != nil {
		return 0, err
	}
	draft := s.table.Draft()
	revision, err := draft.Commit(table.Own(txn))
	if err != nil {
		return 0, err
	}
	s.table.Publish(draft)
	return revision, nil
}

// Lease grants a lease of exactly ttl.
func (s *Store) Lease(ctx context.Context, ttl time.Duration) (store.Lease, error) {
	return s.table.Grant(ctx, ttl, s.expire)
}

func (s *Store) expire(ctx context.Context, id store.LeaseID) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.table.Check(ctx); err != nil {
		return err
	}
	draft := s.table.Draft()
	draft.Expire(id)
	s.table.Publish(draft)
	return nil
}

// Compact forgets history up to and including revision.
func (s *Store) Compact(ctx context.Context, revision int64) error {
	return s.table.Compact(ctx, revision)
}

// Close ends all watches and makes all further calls return store.ErrClosed.
func (s *Store) Close() error {
	s.table.Close(store.ErrClosed)
	s.table.Wait()
	return nil
}
