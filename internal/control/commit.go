package control

import (
	"context"
	"fmt"
	"sort"
	"sync"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// framing is what the store adds to the size of a write; see
// store.MaxTxnBytes. It is taken too large rather than too small.
const framing = 128

// commit makes a plan true in as few transactions as the store allows, each
// under the fence and with the events of its own writes, and returns the
// revision of the last; 0 if there was none. Told counts the records of events
// of this term, without a gap: who knows the next one's key can make sure that
// nothing has been decided since.
func (l *Loop) commit(ctx context.Context, fence store.Condition, p Plan, told *int) (revision int64, err error) {
	for p.more() {
		txn, events := p.next(fence, told)
		if len(txn.Writes) > 0 {
			// gofail: var planBegun struct{}
			// die()
			revision, err = l.opts.Store.Commit(ctx, txn)
			if err != nil {
				return 0, fmt.Errorf("commit %d writes from %s: %w", len(txn.Writes), txn.Writes[0].Key, err)
			}
		}
		// gofail: var planStored struct{}
		// die()
		l.tell(events)
	}
	return revision, nil
}

// maxEvents bounds the record of the events of one commit. It leaves room for
// the largest write there can be.
const maxEvents = 256 << 10

// more reports whether something is left to commit.
func (p *Plan) more() bool { return len(p.Writes)+len(p.Events) > 0 }

// next takes the next transaction off p, with the events that it makes true,
// which its last write keeps.
func (p *Plan) next(fence store.Condition, n *int) (txn store.Txn, told []Event) {
	writes := fits(p.Writes, len(fence.Key))
	events := p.toldBy(writes)
	value := keep(p.Events[:events])
	for len(value) > maxEvents && events > 1 {
		if writes > 1 {
			writes /= 2
			events = p.toldBy(writes)
		} else {
			// Thousands of tasks failed at the same moment, which one write
			// counts: the rest of what is to be told follows it.
			events /= 2
		}
		value = keep(p.Events[:events])
	}
	txn = store.Txn{If: []store.Condition{fence}, Writes: p.Writes[:writes:writes]}
	if value != nil {
		txn.Writes = append(txn.Writes, store.Put(record.LeaderEvents(fence.Revision, *n), value))
		*n++
	}
	told = p.Events[:events]
	p.Writes, p.Events, p.after = p.Writes[writes:], p.Events[events:], p.after[events:]
	for i := range p.after {
		p.after[i] -= writes
	}
	return txn, told
}

// toldBy is how many of the events tell of the first writes.
func (p *Plan) toldBy(writes int) int {
	return sort.Search(len(p.after), func(i int) bool { return p.after[i] > writes })
}

// keep is the record of those events that are kept; nil if there are none.
func keep(events []Event) []byte {
	var kept []Event
	for i := range events {
		if Kept(&events[i]) {
			kept = append(kept, events[i])
		}
	}
	if kept == nil {
		return nil
	}
	return record.EncodeEvents(kept)
}

// fits is how many of writes go into one transaction with their events, at
// least one if there is any.
func fits(writes []store.Write, fence int) int {
	size := fence + framing
	for i, w := range writes {
		size += len(w.Key) + len(w.Value) + framing
		if i > 0 && (i == store.MaxTxnOps-1 || size > store.MaxTxnBytes-maxEvents-framing) {
			return i
		}
	}
	return len(writes)
}

// arrival is a batch, read.
type arrival struct {
	store.Batch
	parsed []parsed
}

// queue takes batches off a watch as they come, and reads them, so that all that
// piled up while the loop was busy is planned for at once.
type queue struct {
	// ready has one element when there is something to take.
	ready chan struct{}
	done  chan struct{}

	mu      sync.Mutex
	batches []arrival
	closed  bool
}

// newQueue starts to read in, until it is closed.
func newQueue(in <-chan store.Batch) *queue {
	q := &queue{ready: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		defer close(q.done)
		for b := range in {
			q.put(arrival{b, parseAll(b.Changes)}, false)
		}
		q.put(arrival{}, true)
	}()
	return q
}

func (q *queue) put(a arrival, closed bool) {
	q.mu.Lock()
	if closed {
		q.closed = true
	} else {
		q.batches = append(q.batches, a)
	}
	q.mu.Unlock()
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// take returns what has come since the last take, and whether more can come.
func (q *queue) take() (batches []arrival, open bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	batches, q.batches = q.batches, nil
	return batches, !q.closed
}

// wait returns when the watch has been closed and read.
func (q *queue) wait() { <-q.done }
