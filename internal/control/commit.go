package control

import (
	"context"
	"fmt"
	"sync"

	"github.com/orchestrate-go/orchestrate/store"
)

// framing is what the store adds to the size of a write; see
// store.MaxTxnBytes. It is taken too large rather than too small.
const framing = 128

// commit makes writes in as few transactions as the store allows, each under
// the fence, and returns the revision of the last; 0 if there was none.
func (l *Loop) commit(ctx context.Context, fence store.Condition, writes []store.Write) (revision int64, err error) {
	for len(writes) > 0 {
		n := fits(writes, len(fence.Key))
		revision, err = l.opts.Store.Commit(ctx, store.Txn{If: []store.Condition{fence}, Writes: writes[:n]})
		if err != nil {
			return 0, fmt.Errorf("commit %d writes from %s: %w", n, writes[0].Key, err)
		}
		writes = writes[n:]
	}
	return revision, nil
}

// fits is how many of writes go into one transaction, at least one.
func fits(writes []store.Write, fence int) int {
	size := fence + framing
	for i, w := range writes {
		size += len(w.Key) + len(w.Value) + framing
		if i > 0 && (i == store.MaxTxnOps || size > store.MaxTxnBytes) {
			return i
		}
	}
	return len(writes)
}

// queue takes batches off a watch as they come, so that all that piled up
// while the loop was busy is planned for at once.
type queue struct {
	// ready has one element when there is something to take.
	ready chan struct{}
	done  chan struct{}

	mu      sync.Mutex
	batches []store.Batch
	closed  bool
}

// newQueue starts to read in, until it is closed.
func newQueue(in <-chan store.Batch) *queue {
	q := &queue{ready: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		defer close(q.done)
		for b := range in {
			q.put(b, false)
		}
		q.put(store.Batch{}, true)
	}()
	return q
}

func (q *queue) put(b store.Batch, closed bool) {
	q.mu.Lock()
	if closed {
		q.closed = true
	} else {
		q.batches = append(q.batches, b)
	}
	q.mu.Unlock()
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// take returns what has come since the last take, and whether more can come.
func (q *queue) take() (batches []store.Batch, open bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	batches, q.batches = q.batches, nil
	return batches, !q.closed
}

// wait returns when the watch has been closed and read.
func (q *queue) wait() { <-q.done }
