package etcd

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/orchestrate-go/orchestrate/store"
)

const (
	// askEvery is how often a store with watches asks how far they are. The
	// answer lets an idle watch go on from there when it must connect again,
	// which by then may be the only history that is left.
	askEvery = 3 * time.Second
	// pendingBytes is how much a watch holds for a receiver that does not
	// receive. More stays in etcd: the watch gives its stream up, and takes it
	// up again where it was when the receiver has caught up.
	pendingBytes = 8 << 20
)

// Watch delivers every change under prefix after a revision. While no server
// can be reached it waits, for as long as ctx lasts.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	if err := store.ValidatePrefix(prefix); err != nil {
		return nil, err
	}
	if after < 0 {
		return nil, s.outOfRange(ctx, after)
	}
	ctx, done, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	w := &watch{store: s, out: make(chan store.Batch, 16), seen: after}
	w.start, w.end = s.span(prefix)
	s.watching()
	go func() {
		defer done()
		defer s.unwatching()
		defer close(w.out)
		w.run(ctx)
	}()
	return w.out, nil
}

// watch is one call of Watch.
type watch struct {
	store      *Store
	start, end string
	out        chan store.Batch // closed by run's caller
	seen       int64            // everything up to this revision was read from etcd

	pending []store.Batch // read, and not yet taken by the receiver
	bytes   int           // of pending
}

// errFull ends a stream whose receiver is behind.
var errFull = errors.New("the receiver is behind")

// run opens one stream after the other until something final happens.
func (w *watch) run(ctx context.Context) {
	pause := firstPause
	for {
		before := w.seen
		streaming := w.store.near.mark(clientv3.WithRequireLeader(ctx))
		err := w.stream(streaming)
		if ctx.Err() != nil {
			return
		}
		if final := w.final(err); final != nil {
			// What came before it is still to be delivered.
			w.pending = append(w.pending, store.Batch{Err: final})
			w.drain(ctx)
			return
		}
		if errors.Is(err, errFull) {
			if !w.drain(ctx) {
				return
			}
			continue
		}
		w.store.near.failed(streaming)
		w.store.opts.Logger.Debug("watch lost its server", "prefix", w.start, "after", w.seen, "error", err)
		if w.seen > before {
			pause = firstPause
		}
		if !w.wait(ctx, pause) {
			return
		}
		pause = min(2*pause, maxPause)
	}
}

// final is the error with which the watch must end; nil if another stream may
// go on where err left this one.
func (w *watch) final(err error) error {
	if is(err, rpctypes.ErrCompacted) {
		return store.ErrCompacted
	}
	switch kindOf(err) {
	case ErrDenied, ErrUnauthenticated, ErrCorrupt:
		return w.store.error("watch "+w.start, err)
	}
	return nil
}

// stream reads from one of etcd's watches until it ends. The client lets it go
// on over lost connections by itself; what it cannot do is leave a server that
// has no leader, bound what it holds for a slow receiver, or tell a gap.
func (w *watch) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// From seen itself and not after it, although that is not delivered again:
	// etcd lets a watch begin at the very revision up to which it is compacted,
	// where older servers have forgotten the deletions.
	in := w.store.client.Watch(ctx, w.start,
		clientv3.WithRange(w.end), clientv3.WithRev(max(w.seen, 1)),
		clientv3.WithProgressNotify(), clientv3.WithFragment())
	for {
		var out chan store.Batch
		var next store.Batch
		if len(w.pending) > 0 {
			out, next = w.out, w.pending[0]
		}
		select {
		case out <- next:
			w.taken()
		case response, open := <-in:
			if !open {
				return errors.New("the stream was closed")
			}
			if err := response.Err(); err != nil {
				return err
			}
			w.read(response)
			if w.bytes > pendingBytes {
				return errFull
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// read takes in what a response tells.
func (w *watch) read(response clientv3.WatchResponse) {
	if response.IsProgressNotify() {
		w.seen = max(w.seen, response.Header.Revision)
		return
	}
	events := response.Events
	for len(events) > 0 {
		// One commit's events come together and in its order.
		revision, n := events[0].Kv.ModRevision, 1
		for n < len(events) && events[n].Kv.ModRevision == revision {
			n++
		}
		if revision > w.seen {
			w.push(revision, events[:n])
		}
		events = events[n:]
	}
}

func (w *watch) push(revision int64, events []*clientv3.Event) {
	batch := store.Batch{Revision: revision, Changes: make([]store.Change, 0, len(events))}
	for _, e := range events {
		change := store.Change{Item: w.store.item(e.Kv), Deleted: e.Type == clientv3.EventTypeDelete}
		if change.Deleted {
			change.Item = store.Item{Key: change.Item.Key, Revision: revision}
		}
		batch.Changes = append(batch.Changes, change)
	}
	w.pending = append(w.pending, batch)
	w.bytes += size(batch)
	w.seen = revision
}

func size(b store.Batch) int {
	n := 0
	for i := range b.Changes {
		n += len(b.Changes[i].Item.Key) + len(b.Changes[i].Item.Value) + 64
	}
	return n
}

// taken removes the first pending batch, which the receiver has.
func (w *watch) taken() {
	w.bytes -= size(w.pending[0])
	w.pending[0] = store.Batch{}
	if w.pending = w.pending[1:]; len(w.pending) == 0 {
		w.pending = nil
	}
}

// drain delivers all that is pending, and reports whether it could.
func (w *watch) drain(ctx context.Context) bool {
	for len(w.pending) > 0 {
		select {
		case w.out <- w.pending[0]:
			w.taken()
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// wait lets a pause go by, delivering meanwhile.
func (w *watch) wait(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		var out chan store.Batch
		var next store.Batch
		if len(w.pending) > 0 {
			out, next = w.out, w.pending[0]
		}
		select {
		case out <- next:
			w.taken()
		case <-timer.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// watching counts a watch, and starts to ask for progress with the first. All
// watches of a store share one stream to a server, so one question is enough.
func (s *Store) watching() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watches++; s.asking || s.ended {
		return
	}
	s.asking = true
	s.calls.Add(1)
	go func() {
		defer s.calls.Done()
		s.ask()
	}()
}

func (s *Store) unwatching() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watches--
}

// ask asks for progress until there is no watch any more.
func (s *Store) ask() {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.closed.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		if s.watches == 0 {
			s.asking = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		// While there is no stream the question waits for one, or for nothing.
		ctx, cancel := context.WithTimeout(s.closed, askEvery)
		_ = s.client.RequestProgress(clientv3.WithRequireLeader(ctx))
		cancel()
	}
}
