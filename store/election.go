package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

var (
	// ErrNoLeader says that nobody leads at the moment.
	ErrNoLeader = errors.New("no leader")
	// ErrDeposed is the end of a leadership that was lost: it could not be
	// renewed in time, or its key was deleted or overwritten.
	ErrDeposed = errors.New("deposed")
	// ErrResigned is the end of a leadership that was given up.
	ErrResigned = errors.New("resigned")
)

// Election makes at most one of many candidates the leader: the one whose
// leased key exists. It is a plain value; all candidates use the same Key.
//
// No clock can promise that a leader knows in time that it is one no more: a
// paused process wakes up and believes it still leads. Its writes do not believe
// it. Put [Leadership.Fence] into the conditions of every transaction, and one
// of a former leader conflicts. (The fencing token of M. Kleppmann, "How to do
// distributed locking", 2016; here the store itself checks it.)
type Election struct {
	Store Store
	Key   string        // default "/leader"
	ID    string        // of this candidate; not empty; what [Election.Leader] tells others
	TTL   time.Duration // of the leader's lease: a dead leader is replaced within this time. Default 10 s
}

// Leader is who leads.
type Leader struct {
	ID   string
	Term int64 // the revision at which it was elected; greater than that of all leaders before
}

// Campaign waits until this candidate leads. Waiting costs one watch and no
// polling. Ctx bounds the campaign, not the leadership, which lasts until
// Resign, or until it is lost.
func (e Election) Campaign(ctx context.Context) (*Leadership, error) {
	e = e.withDefaults()
	if e.ID == "" {
		return nil, fmt.Errorf("campaign for %s: %w: the candidate has no ID", e.Key, ErrInvalid)
	}
	for {
		leadership, err := e.try(ctx)
		if err == nil {
			return leadership, nil
		}
		if !errors.Is(err, ErrConflict) && !errors.Is(err, ErrLeaseExpired) {
			return nil, fmt.Errorf("campaign for %s: %w", e.Key, err)
		}
		if err := e.vacancy(ctx); err != nil {
			return nil, fmt.Errorf("campaign for %s: %w", e.Key, err)
		}
	}
}

// Leader tells who leads, or [ErrNoLeader].
func (e Election) Leader(ctx context.Context) (Leader, error) {
	e = e.withDefaults()
	item, found, err := Get(ctx, e.Store, e.Key)
	if err != nil {
		return Leader{}, fmt.Errorf("leader at %s: %w", e.Key, err)
	}
	if !found {
		return Leader{}, ErrNoLeader
	}
	return Leader{ID: string(item.Value), Term: item.Revision}, nil
}

func (e Election) withDefaults() Election {
	if e.Key == "" {
		e.Key = "/leader"
	}
	if e.TTL == 0 {
		e.TTL = 10 * time.Second
	}
	return e
}

// try takes the key if nobody has it.
func (e Election) try(ctx context.Context) (*Leadership, error) {
	// Without this look every candidate would take a lease to learn that it
	// lost.
	if item, found, err := Get(ctx, e.Store, e.Key); err != nil {
		return nil, err
	} else if found {
		return nil, &ConflictError{Key: e.Key, Got: item.Revision}
	}
	sent := time.Now() // the lease lasts from later than this
	lease, err := e.Store.Lease(ctx, e.TTL)
	if err != nil {
		return nil, err
	}
	term, err := e.Store.Commit(ctx, Txn{
		If:     []Condition{Absent(e.Key)},
		Writes: []Write{PutLeased(e.Key, []byte(e.ID), lease.ID())},
	})
	if err != nil {
		// The commit may have happened nevertheless, and a leader that does
		// not know of it must not keep the others waiting. If the revocation
		// fails too, they wait for the TTL.
		revoke, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.TTL)
		defer cancel()
		_ = lease.Revoke(revoke)
		return nil, err
	}
	return lead(e, lease, term, sent), nil
}

// vacancy waits until the key does not exist.
func (e Election) vacancy(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := Follow(ctx, e.Store, e.Key, untilAbsent{e.Key})
	if errors.Is(err, errAbsent) {
		return nil
	}
	return err
}

var (
	errAbsent  = errors.New("its key was deleted")
	errChanged = errors.New("its key was overwritten")
)

// untilAbsent ends Follow when key does not exist.
type untilAbsent struct{ key string }

func (u untilAbsent) Reset(s Snapshot) error {
	if len(s.Items) == 0 || s.Items[0].Key != u.key {
		return errAbsent
	}
	return nil
}

func (u untilAbsent) Apply(b Batch) error {
	for _, c := range b.Changes {
		if c.Item.Key == u.key && c.Deleted {
			return errAbsent
		}
	}
	return nil
}

// untilLost ends Follow when key is no longer as it was at term.
type untilLost struct {
	key  string
	term int64
}

func (u untilLost) Reset(s Snapshot) error {
	if len(s.Items) == 0 || s.Items[0].Key != u.key {
		return errAbsent
	}
	if s.Items[0].Revision != u.term {
		return errChanged
	}
	return nil
}

func (u untilLost) Apply(b Batch) error {
	for _, c := range b.Changes {
		switch {
		case c.Item.Key != u.key || c.Item.Revision <= u.term:
		case c.Deleted:
			return errAbsent
		default:
			return errChanged
		}
	}
	return nil
}

// Leadership is one won election, until it ends.
type Leadership struct {
	election Election
	lease    Lease
	term     int64
	ctx      context.Context // ends with the leadership; its cause is Err
	end      context.CancelCauseFunc
	expiry   *time.Timer
	wg       sync.WaitGroup
}

// patience is how long after its last successful renewal a leader believes that
// it leads. It is less than the lease's TTL, so it stops before the store can
// make anybody else the leader, also if its clock is slow by up to a quarter.
func patience(ttl time.Duration) time.Duration { return ttl - ttl/4 }

func lead(e Election, lease Lease, term int64, sent time.Time) *Leadership {
	l := &Leadership{election: e, lease: lease, term: term}
	l.ctx, l.end = context.WithCancelCause(context.Background())
	wait := patience(lease.TTL())
	// The timer, not the renewing goroutine, deposes: a call into the store
	// that hangs must not keep a leader in office.
	l.expiry = time.AfterFunc(time.Until(sent.Add(wait)), func() {
		l.end(fmt.Errorf("%w: no renewal for %v", ErrDeposed, wait))
	})
	l.wg.Go(func() {
		err := keep(l.ctx, lease, 0, sent, wait, func(sent time.Time) {
			l.expiry.Reset(time.Until(sent.Add(wait)))
		})
		l.end(fmt.Errorf("%w: %w", ErrDeposed, err))
	})
	l.wg.Go(func() {
		l.end(fmt.Errorf("%w: %w", ErrDeposed, l.watchKey()))
	})
	context.AfterFunc(l.ctx, func() { l.expiry.Stop() })
	return l
}

// watchKey returns when the key is lost or the leadership has ended otherwise.
func (l *Leadership) watchKey() error {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return l.ctx.Err()
		case <-pause.C:
		}
		err := Follow(l.ctx, l.election.Store, l.election.Key, untilLost{l.election.Key, l.term})
		if errors.Is(err, errAbsent) || errors.Is(err, errChanged) || errors.Is(err, ErrClosed) {
			return err
		}
		// The store cannot be reached. As long as the lease is renewed that
		// is no reason to resign.
		pause.Reset(l.lease.TTL() / 10)
	}
}

// Fence is the condition that this leadership still lasts, for the transactions
// of its holder. Its Revision is the fencing token: the term.
func (l *Leadership) Fence() Condition { return Condition{Key: l.election.Key, Revision: l.term} }

// Done is closed when the leadership has ended. That is before anybody else can
// be elected, as far as clocks can promise it; see [Election].
func (l *Leadership) Done() <-chan struct{} { return l.ctx.Done() }

// Err is nil while the leadership lasts. Then it is [ErrDeposed], with the
// reason in its text and chain, or [ErrResigned].
func (l *Leadership) Err() error { return context.Cause(l.ctx) }

// Context returns a context that ends with parent or with the leadership; in
// the latter case its cause is Err. The function frees it.
func (l *Leadership) Context(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	stop := context.AfterFunc(l.ctx, func() { cancel(l.Err()) })
	return ctx, func() {
		stop()
		cancel(context.Canceled)
	}
}

// Resign ends the leadership and wakes the other candidates. Resigning again,
// or after having been deposed, does no harm. The error is that of revoking the
// lease; the leadership has ended nevertheless, and the others wait for at most
// the TTL.
func (l *Leadership) Resign(ctx context.Context) error {
	l.end(ErrResigned)
	l.wg.Wait()
	if err := l.lease.Revoke(ctx); err != nil {
		return fmt.Errorf("resign from %s: %w", l.election.Key, err)
	}
	return nil
}
