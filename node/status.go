package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/moment"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// maxWrites bounds one commit, below the default limit of etcd (128
// operations in a transaction).
const maxWrites = 100

// outbox writes this node's records. Only the latest value of a key is worth
// writing, so values that wait are replaced; everything that waits goes out in
// one commit.
type outbox struct {
	store store.Store
	log   *slog.Logger
	lease func() store.LeaseID // the current one, for leased records

	mu      sync.Mutex // guards what follows
	pending map[string]pending
	leased  map[string]leased // the leased records that there are to be
	waiters []waiter
	seq     uint64
	written uint64 // every entry up to this seq is in the store
	wake    chan struct{}

	journal journal // its queue is guarded by mu too
}

type pending struct {
	record any // is not written to any more; nil deletes
	leased bool
	seq    uint64
}

type leased struct {
	record any
	under  store.LeaseID // that it was last written under, or is about to be
}

type waiter struct {
	seq  uint64
	done chan struct{}
}

func newOutbox(s store.Store, log *slog.Logger, node string, lease func() store.LeaseID) *outbox {
	return &outbox{store: s, log: log, lease: lease, pending: map[string]pending{}, leased: map[string]leased{}, wake: make(chan struct{}, 1), journal: journal{node: node}}
}

// put queues a record, which is not to be written to after. Leased records vanish
// with the agent's lease.
func (o *outbox) put(key string, rec any, leased bool) uint64 {
	return o.queue(key, pending{record: rec, leased: leased})
}

// encode makes a value of a record when it is written: most are replaced before.
func encode(rec any) []byte {
	data, err := json.Marshal(rec)
	if err != nil {
		panic("node: a record does not marshal: " + err.Error()) // records are plain data
	}
	return data
}

// delete queues a deletion.
func (o *outbox) delete(key string) uint64 { return o.queue(key, pending{}) }

func (o *outbox) queue(key string, p pending) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if p.leased {
		o.leased[key] = leased{record: p.record}
	} else {
		delete(o.leased, key)
	}
	return o.enqueue(key, p)
}

// relet queues the leased records anew that are not under a lease.
func (o *outbox) relet(lease store.LeaseID) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(o.leased)) {
		if l := o.leased[key]; l.under != lease {
			o.enqueue(key, pending{record: l.record, leased: true})
		}
	}
	return o.seq
}

// unlet notes that no record is under a lease any more: even one with the same ID
// is another, in a store that was opened anew.
func (o *outbox) unlet() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for key, l := range o.leased {
		o.leased[key] = leased{record: l.record}
	}
}

// under notes that a record is about to be written under a lease.
func (o *outbox) under(key string, lease store.LeaseID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if l, ok := o.leased[key]; ok {
		l.under = lease
		o.leased[key] = l
	}
}

// enqueue is queue with the lock held.
func (o *outbox) enqueue(key string, p pending) uint64 {
	o.seq++
	p.seq = o.seq
	o.pending[key] = p
	o.kick()
	return o.seq
}

// tell queues an event, for the commit that writes what is queued with it.
func (o *outbox) tell(e record.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.journal.add(e)
	o.kick()
}

func (o *outbox) kick() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// flushed waits until what was queued up to seq is in the store.
func (o *outbox) flushed(ctx context.Context, seq uint64) error {
	o.mu.Lock()
	if o.written >= seq {
		o.mu.Unlock()
		return nil
	}
	w := waiter{seq: seq, done: make(chan struct{})}
	o.waiters = append(o.waiters, w)
	o.mu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run writes until ctx ends. While the store cannot be reached, records wait
// and are replaced by newer ones.
func (o *outbox) run(ctx context.Context) error {
	delay := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-o.wake:
		case <-after(delay):
		}
		if err := o.flush(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			o.log.Warn("cannot write this node's records; trying again", "error", err)
			delay = min(max(2*delay, 50*time.Millisecond), 5*time.Second)
			continue
		}
		delay = 0
	}
}

// after is time.After, but never for 0.
func after(d time.Duration) <-chan time.Time {
	if d == 0 {
		return nil
	}
	return time.After(d)
}

// flush writes everything that waits.
func (o *outbox) flush(ctx context.Context) error {
	for {
		o.mu.Lock()
		waiting := len(o.pending) > 0 || o.journal.waits()
		o.mu.Unlock()
		if waiting {
			if err := moment.Settle(ctx, moment.Outbox, o.wake); err != nil {
				return err
			}
		}
		if err := o.journal.open(ctx, o.store, &o.mu); err != nil {
			return err
		}
		o.mu.Lock()
		all, upTo := o.pending, o.seq
		o.pending = map[string]pending{}
		next := o.journal.next()
		o.mu.Unlock()
		if len(all) == 0 && next == nil {
			o.settle(upTo)
			return nil
		}
		// gofail: var recordsTaken struct{}
		// die()

		// Of one task in the order in which they were queued, so that its status
		// never appears before what it relies on. Between tasks, whose goroutines
		// queue them in any order, by their names: so the same records make the
		// same commits.
		keys := slices.SortedFunc(maps.Keys(all), func(a, b string) int {
			return cmp.Or(cmp.Compare(subject(a), subject(b)), cmp.Compare(all[a].seq, all[b].seq))
		})
		for len(keys) > 0 || next != nil {
			chunk := keys[:min(len(keys), maxWrites)]
			keys = keys[len(chunk):]
			var told *page
			if len(keys) == 0 {
				told, next = next, nil
			}
			if err := o.commit(ctx, chunk, all, told); err != nil {
				o.putBack(all)
				return err
			}
			for _, k := range chunk {
				delete(all, k)
			}
		}
		o.settle(upTo)
	}
}

// subject is the last part of a key: the task, of what is about one.
func subject(key string) string { return key[strings.LastIndexByte(key, '/')+1:] }

// commit writes records, and a page of the journal with them if there is one.
func (o *outbox) commit(ctx context.Context, keys []string, all map[string]pending, told *page) error {
	var txn store.Txn
	lease := o.lease()
	for _, k := range keys {
		p := all[k]
		switch {
		case p.record == nil:
			txn.Writes = append(txn.Writes, store.Delete(k))
		case p.leased && lease == "":
			// Not registered yet: all leased records are written when we are.
		case p.leased:
			o.under(k, lease)
			txn.Writes = append(txn.Writes, store.PutLeased(k, encode(p.record), lease))
		default:
			txn.Writes = append(txn.Writes, store.Put(k, encode(p.record)))
		}
	}
	if told == nil {
		// gofail: var recordsQueued struct{}
		// die()
		_, err := o.store.Commit(ctx, txn)
		return err
	}
	plain := txn.Writes
	txn.If, txn.Writes = told.conditions(), slices.Concat(plain, told.writes())
	revision, err := o.store.Commit(ctx, txn)
	if errors.Is(err, store.ErrConflict) {
		// It was written by a commit of which that was not known; what else was in
		// it may be older than what is to be written now.
		item, _, err := store.Get(ctx, o.store, told.key)
		if err != nil {
			return err
		}
		o.journal.close(told, item.Revision)
		if len(plain) > 0 {
			_, err = o.store.Commit(ctx, store.Txn{Writes: plain})
		}
		return err
	}
	if err == nil {
		o.journal.close(told, revision)
	}
	return err
}

// putBack returns unwritten records to the queue, behind newer ones.
func (o *outbox) putBack(all map[string]pending) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for k, p := range all {
		if _, newer := o.pending[k]; !newer {
			o.pending[k] = p
		}
	}
}

func (o *outbox) settle(upTo uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.written = max(o.written, upTo)
	o.waiters = slices.DeleteFunc(o.waiters, func(w waiter) bool {
		if w.seq > o.written {
			return false
		}
		close(w.done)
		return true
	})
}

// statusKey and endpointKey are the keys of a task's records.
func statusKey(node, task string) string { return record.Key(record.Statuses, node, task) }

func endpointKey(node, network string, t *record.Task) string {
	return record.Key(record.Endpoints, node, network, t.Namespace, t.Service, t.ID)
}
