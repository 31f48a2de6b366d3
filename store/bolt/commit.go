package bolt

import (
	"context"
	"runtime"
	"slices"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/internal/table"
)

// Bounds of one group of commits. They are there for latency and memory; the
// sync costs the same for one and for all.
const (
	groupRequests = 1024
	groupBytes    = 8 << 20
)

// request is a commit, or the end of a lease, on its way to the writer.
type request struct {
	ctx    context.Context
	txn    store.Txn
	expire store.LeaseID // if set, txn is empty
	result chan result   // has room for the one answer
}

type result struct {
	revision int64
	err      error
}

// do hands r to the writer and waits for its answer.
func (s *Store) do(r *request) (int64, error) {
	if err := s.table.Check(r.ctx); err != nil {
		return 0, err
	}
	r.result = make(chan result, 1)
	select {
	case s.requests <- r:
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	case <-s.table.Closed():
		return 0, s.table.Check(context.Background())
	}
	// The writer answers whatever it has taken, also while it is closing.
	select {
	case got := <-r.result:
		return got.revision, got.err
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	}
}

// write is the one writer. It ends when the store is closed or the disk fails.
func (s *Store) write() {
	defer close(s.writer)
	for {
		select {
		case first := <-s.requests:
			s.commit(s.group(first))
		case <-s.table.Closed():
			return
		}
	}
}

// group collects first and all requests that wait by now: those that came while
// the disk was busy with the group before.
func (s *Store) group(first *request) []*request {
	// Those that were just answered may be about to come again.
	runtime.Gosched()
	group, bytes := []*request{first}, first.bytes()
	for len(group) < groupRequests && bytes < groupBytes {
		select {
		case r := <-s.requests:
			group = append(group, r)
			bytes += r.bytes()
		default:
			return group
		}
	}
	return group
}

func (r *request) bytes() int {
	n := 0
	for i := range r.txn.Writes {
		n += len(r.txn.Writes[i].Value)
	}
	return n
}

// commit drafts the group, makes it durable, publishes it, and only then
// answers, so that nobody acts on what a crash can take back: neither a writer,
// nor a watcher, nor who lost against a change in the same group.
func (s *Store) commit(group []*request) {
	draft := s.table.Draft()
	results := make([]result, len(group))
	for i, r := range group {
		results[i].revision, results[i].err = drafted(draft, r)
	}
	// gofail: var commitDrafted struct{}
	// die()
	if err := s.persist(draft); err != nil {
		s.table.Close(err)
		for _, r := range group {
			r.result <- result{err: err}
		}
		return
	}
	// gofail: var commitPersisted struct{}
	// die()
	s.table.Publish(draft)
	for i, r := range group {
		r.result <- results[i]
	}
}

func drafted(draft *table.Draft, r *request) (int64, error) {
	if r.expire != "" {
		return draft.Expire(r.expire), nil
	}
	if err := r.ctx.Err(); err != nil {
		return 0, err // nobody waits for it any more
	}
	return draft.Commit(r.txn)
}

// persist writes a draft to the disk, as one transaction of the file.
func (s *Store) persist(draft *table.Draft) error {
	changed := draft.Items()
	if len(draft.Batches()) == 0 {
		return nil
	}
	keys := make([]string, 0, len(changed))
	for key := range changed {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, strings.Compare) // neighbours share pages
	err := s.db.Update(func(tx *bbolt.Tx) error {
		items := tx.Bucket(itemsBucket)
		for _, key := range keys {
			var err error
			if item := changed[key]; item != nil {
				err = items.Put([]byte(key), encodeRecord(item))
			} else {
				err = items.Delete([]byte(key))
			}
			if err != nil {
				return err
			}
		}
		// gofail: var commitWritten struct{}
		// die()
		return tx.Bucket(metaBucket).Put(headerKey, encodeHeader(draft.Revision(), draft.Count()))
	})
	if err != nil {
		return &WriteError{Path: s.path, Err: err}
	}
	return nil
}
