package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
)

// Mirror is what a leader would decide by, for rehearsals where none is at hand.
// The first that asks has it loaded, which reads the whole store. From then on it
// follows the store, so that the next copies cost no reading, until nobody has
// asked for a while. It decides nothing. It may be used by many goroutines.
type Mirror struct {
	store  store.Store
	config Config

	asking sync.Mutex // one loads it, and the others wait

	mu    sync.Mutex // guards what follows
	state *State     // nil while it does not follow
	err   error      // why it follows no more
	moved chan struct{}
	idle  *time.Timer
	stop  context.CancelFunc
	ended chan struct{} // closed when the goroutine that follows has
}

// NewMirror returns a mirror that has read nothing yet.
func NewMirror(s store.Store, config Config) *Mirror { return &Mirror{store: s, config: config} }

const (
	// mirrorIdle is for how long a mirror follows the store after the last that
	// asked.
	mirrorIdle = time.Minute
	// patience is for how long a revision is waited for that may not come: etcd
	// counts the writes of all who share it.
	patience = 500 * time.Millisecond
)

// Fork returns a copy of the state at a revision of the store or later.
func (m *Mirror) Fork(ctx context.Context, after int64) (*State, error) {
	m.asking.Lock()
	defer m.asking.Unlock()
	state, err := m.fork(ctx, after)
	if err == nil || ctx.Err() != nil {
		return state, err
	}
	// It has lost touch. What is read now is as late as it has to be.
	m.Close()
	if err := m.follow(ctx); err != nil {
		return nil, err
	}
	return m.fork(ctx, 0)
}

var errBehind = errors.New("the mirror is behind its store")

func (m *Mirror) fork(ctx context.Context, after int64) (*State, error) {
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		m.mu.Lock()
		state, err, moved := m.state, m.err, m.moved
		if state != nil && err == nil && state.Revision() >= after {
			m.idle.Reset(mirrorIdle)
			state.Rest()
			defer m.mu.Unlock()
			return state.Clone(), nil
		}
		m.mu.Unlock()
		if state == nil || err != nil {
			return nil, cmp.Or(err, errBehind)
		}
		select {
		case <-moved:
		case <-late.C:
			return nil, errBehind
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// follow loads the state and follows the store from there.
func (m *Mirror) follow(ctx context.Context) error {
	snapshot, err := m.store.List(ctx, "")
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	// It outlives the call that began it.
	following, stop := context.WithCancel(context.WithoutCancel(ctx))
	batches, err := m.store.Watch(following, "", snapshot.Revision)
	if err != nil {
		stop()
		return fmt.Errorf("watch: %w", err)
	}
	now := newClock()
	state := NewState(m.config)
	state.Load(snapshot, now())
	ended := make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state, m.err, m.moved, m.stop, m.ended = state, nil, make(chan struct{}), stop, ended
	m.idle = time.AfterFunc(mirrorIdle, stop)
	go func() {
		defer close(ended)
		for b := range batches {
			m.take(b, now())
		}
		m.take(store.Batch{Err: cmp.Or(context.Cause(following), store.ErrClosed)}, now())
	}()
	return nil
}

// take takes in what the watch brings.
func (m *Mirror) take(b store.Batch, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b.Err != nil {
		m.err, m.state = cmp.Or(m.err, b.Err), nil
	} else if m.state != nil {
		m.state.Apply(b, now)
	}
	close(m.moved)
	m.moved = make(chan struct{})
}

// Close has the mirror follow no more, and waits until it does not. It may be
// asked again.
func (m *Mirror) Close() {
	m.mu.Lock()
	stop, ended, idle := m.stop, m.ended, m.idle
	m.mu.Unlock()
	if stop == nil {
		return
	}
	idle.Stop()
	stop()
	<-ended
}
