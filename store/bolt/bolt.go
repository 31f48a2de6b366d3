package bolt

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"go.etcd.io/bbolt"

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

// Store is a [store.Store], [store.Getter] and [store.Compacter] in a file.
type Store struct {
	path     string
	db       *bbolt.DB
	table    *table.Table
	requests chan *request
	writer   chan struct{} // closed when the writer has ended

	close    sync.Once
	closeErr error
}

var (
	_ store.Store     = (*Store)(nil)
	_ store.Getter    = (*Store)(nil)
	_ store.Compacter = (*Store)(nil)
)

// Open opens the store in the file at path, which it creates if there is none;
// its folder must exist. All leased items are deleted, see the package's
// documentation. The error is a [*FileError] if the file cannot be used.
func Open(path string, opts Options) (*Store, error) {
	if opts.History <= 0 {
		opts.History = 10_000
	}
	if opts.HistoryBytes <= 0 {
		opts.HistoryBytes = 64 << 20
	}
	db, state, err := openFile(path)
	if err != nil {
		return nil, err
	}
	s := &Store{
		path: path,
		db:   db,
		table: table.New(table.Options{
			History:      opts.History,
			HistoryBytes: opts.HistoryBytes,
			// A lease of an earlier process must not be taken for a new one.
			LeasePrefix: rand.Text()[:8] + "-",
		}, state.revision, state.items),
		requests: make(chan *request),
		writer:   make(chan struct{}),
	}
	if err := s.dropLeased(state.items); err != nil {
		_ = db.Close()
		return nil, err
	}
	go s.write()
	return s, nil
}

// dropLeased deletes the items of leases that ended with their process.
func (s *Store) dropLeased(items []store.Item) error {
	var keys []string
	for _, item := range items {
		if item.Lease != "" {
			keys = append(keys, item.Key)
		}
	}
	draft := s.table.Draft()
	draft.Remove(keys)
	if err := s.persist(draft); err != nil {
		return err
	}
	s.table.Publish(draft)
	return nil
}

// Path returns the path of the store's file, as given to Open.
func (s *Store) Path() string { return s.path }

// List returns a consistent snapshot of prefix. It does not touch the disk.
func (s *Store) List(ctx context.Context, prefix string) (store.Snapshot, error) {
	return s.table.List(ctx, prefix)
}

// Get returns the item at key and whether there is one. It does not touch the
// disk.
func (s *Store) Get(ctx context.Context, key string) (store.Item, bool, error) {
	return s.table.Get(ctx, key)
}

// Watch delivers every change under prefix after a revision.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	return s.table.Watch(ctx, prefix, after)
}

// Commit applies txn if its conditions hold, and returns when it is on the
// disk. If ctx ends while it waits for that, the change may have happened.
func (s *Store) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if err := txn.Validate(); err != nil {
		return 0, err
	}
	return s.do(&request{ctx: ctx, txn: table.Own(txn)})
}

// Lease grants a lease of exactly ttl.
func (s *Store) Lease(ctx context.Context, ttl time.Duration) (store.Lease, error) {
	return s.table.Grant(ctx, ttl, func(ctx context.Context, id store.LeaseID) error {
		_, err := s.do(&request{ctx: ctx, expire: id})
		return err
	})
}

// Compact forgets history up to and including revision. It does not change the
// file.
func (s *Store) Compact(ctx context.Context, revision int64) error {
	return s.table.Compact(ctx, revision)
}

// Close waits for commits that are on their way, ends all watches, unlocks the
// file, and makes all further calls return store.ErrClosed.
func (s *Store) Close() error {
	first := false
	s.close.Do(func() {
		first = true
		s.table.Close(store.ErrClosed)
		<-s.writer
		s.table.Wait()
		s.closeErr = s.db.Close()
	})
	if !first {
		return nil
	}
	return s.closeErr
}
