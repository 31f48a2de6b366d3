package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

// lossy is a store whose leases cannot be renewed while it is cut off.
type lossy struct {
	store.Store
	err   atomic.Pointer[error] // of renewals; nil: they work
	hangs atomic.Bool           // renewals do not even return, nor listen to their context
	done  chan struct{}         // frees those that hang
	tries atomic.Int32
}

func (s *lossy) cut(err error) { s.err.Store(&err) }

func (s *lossy) Lease(ctx context.Context, ttl time.Duration) (store.Lease, error) {
	l, err := s.Store.Lease(ctx, ttl)
	return &lossyLease{Lease: l, store: s}, err
}

type lossyLease struct {
	store.Lease
	store *lossy
}

func (l *lossyLease) KeepAlive(ctx context.Context) error {
	l.store.tries.Add(1)
	if l.store.hangs.Load() {
		<-l.store.done
	}
	if err := l.store.err.Load(); err != nil {
		return *err
	}
	return l.Lease.KeepAlive(ctx)
}

// TestDeposedBeforeSuccessor cuts a leader off from its store, at every phase of
// its renewals and in two ways. It must know that it leads no more before the
// other candidate leads.
func TestDeposedBeforeSuccessor(t *testing.T) {
	for _, hang := range []bool{false, true} {
		for phase := range 12 {
			t.Run(fmt.Sprintf("hang=%v/phase=%d", hang, phase), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ctx := context.Background()
					shared := memory.New(memory.Options{})
					defer shared.Close()
					mine := &lossy{Store: shared, done: make(chan struct{})}
					const ttl = 12 * time.Second
					first, err := store.Election{Store: mine, ID: "a", TTL: ttl}.Campaign(ctx)
					if err != nil {
						t.Fatal(err)
					}
					var second *store.Leadership
					var campaign sync.WaitGroup
					campaign.Go(func() {
						second, err = store.Election{Store: shared, ID: "b", TTL: ttl}.Campaign(ctx)
						select {
						case <-first.Done():
						default:
							t.Errorf("b leads while a believes to lead")
						}
					})
					time.Sleep(30*time.Second + time.Duration(phase)*time.Second/2)
					if first.Err() != nil {
						t.Fatalf("leader that renews was deposed: %v", first.Err())
					}
					cutOff := time.Now()
					mine.hangs.Store(hang)
					mine.cut(errors.New("network is down"))
					<-first.Done()
					if took := time.Since(cutOff); took > ttl {
						t.Errorf("leader noticed after %v, want within its TTL of %v", took, ttl)
					}
					if !errors.Is(first.Err(), store.ErrDeposed) {
						t.Errorf("Err = %v, want ErrDeposed", first.Err())
					}
					campaign.Wait()
					if err != nil {
						t.Fatal(err)
					}
					if took := time.Since(cutOff); took > ttl {
						t.Errorf("successor leads after %v, want within the TTL of %v", took, ttl)
					}
					_, err = shared.Commit(ctx, store.Txn{If: []store.Condition{first.Fence()}, Writes: []store.Write{store.Put("/x", nil)}})
					if !errors.Is(err, store.ErrConflict) {
						t.Errorf("commit of the deposed leader: %v, want ErrConflict", err)
					}
					close(mine.done)
					if err := second.Resign(ctx); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

// TestShortLossIsSurvived cuts a leader off for less than it can bear, which is
// a third of its TTL when the loss begins just before a renewal.
func TestShortLossIsSurvived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		s := &lossy{Store: memory.New(memory.Options{}), done: make(chan struct{})}
		defer s.Close()
		l, err := store.Election{Store: s, ID: "a", TTL: 12 * time.Second}.Campaign(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for phase := range 20 {
			s.cut(errors.New("network is down"))
			time.Sleep(3900 * time.Millisecond)
			s.err.Store(nil)
			time.Sleep(12*time.Second + time.Duration(phase)*300*time.Millisecond)
		}
		if l.Err() != nil {
			t.Errorf("deposed by losses of 3.9 s with a TTL of 12 s: %v", l.Err())
		}
		if err := l.Resign(ctx); err != nil {
			t.Error(err)
		}
	})
}

// TestOneLeaderAtATime has many candidates that lead for a while and resign or
// just stop renewing. The fence must let through exactly one at a time.
func TestOneLeaderAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		shared := memory.New(memory.Options{})
		defer shared.Close()
		const candidates, turns = 5, 6
		var leading atomic.Int32
		var terms atomic.Int64
		var wg sync.WaitGroup
		for c := range candidates {
			wg.Go(func() {
				for turn := range turns {
					s := &lossy{Store: shared, done: make(chan struct{})}
					l, err := store.Election{Store: s, ID: fmt.Sprint(c), TTL: 10 * time.Second}.Campaign(ctx)
					if err != nil {
						t.Errorf("Campaign: %v", err)
						return
					}
					if n := leading.Add(1); n != 1 {
						t.Errorf("%d leaders at once", n)
					}
					if term := l.Fence().Revision; term <= terms.Swap(term) {
						t.Errorf("term %d is not greater than the one before", term)
					}
					time.Sleep(time.Duration(c+turn) * time.Second)
					if (c+turn)%2 == 0 {
						leading.Add(-1)
						if err := l.Resign(ctx); err != nil {
							t.Errorf("Resign: %v", err)
						}
						continue
					}
					s.cut(errors.New("network is down"))
					<-l.Done()
					leading.Add(-1)
				}
			})
		}
		wg.Wait()
		if _, err := (store.Election{Store: shared}).Leader(ctx); err == nil {
			time.Sleep(10 * time.Second) // the last one may have been cut off
		}
		if leader, err := (store.Election{Store: shared}).Leader(ctx); !errors.Is(err, store.ErrNoLeader) {
			t.Errorf("Leader = %+v, %v; want ErrNoLeader when all are gone", leader, err)
		}
	})
}

func TestCampaignEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New(memory.Options{})
		ctx := context.Background()
		l, err := store.Election{Store: s, ID: "a"}.Campaign(ctx)
		if err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if _, err := (store.Election{Store: s, ID: "b"}).Campaign(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Campaign beside a leader: %v, want its context's error", err)
		}
		if _, err := (store.Election{Store: s}).Campaign(ctx); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Campaign without ID: %v, want ErrInvalid", err)
		}
		result := make(chan error, 1)
		go func() {
			_, err := store.Election{Store: s, ID: "b"}.Campaign(ctx)
			result <- err
		}()
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-result; !errors.Is(err, store.ErrClosed) {
			t.Errorf("Campaign in a store that is closed: %v, want ErrClosed", err)
		}
		<-l.Done() // and with it all its goroutines, or the bubble complains
	})
}

// TestKeep shows how a lease is kept through failures, and given up.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		s := &lossy{Store: memory.New(memory.Options{}), done: make(chan struct{})}
		defer s.Close()
		l, err := s.Lease(ctx, 12*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		result := make(chan error, 1)
		go func() { result <- store.Keep(ctx, l) }()
		time.Sleep(time.Minute)
		if n := s.tries.Load(); n < 13 || n > 15 {
			t.Errorf("%d renewals in a minute, want 15: one each third of 12 s", n)
		}
		down := errors.New("network is down")
		s.cut(down)
		start, before := time.Now(), s.tries.Load()
		err = <-result
		if n := s.tries.Load() - before; n < 8 {
			t.Errorf("%d renewals were tried while the lease could be alive, want one each second from the first failure", n)
		}
		if !errors.Is(err, store.ErrLeaseExpired) || !errors.Is(err, down) {
			t.Errorf("Keep = %v, want ErrLeaseExpired and the reason", err)
		}
		if took := time.Since(start); took > 12*time.Second || took < 8*time.Second {
			t.Errorf("Keep gave up after %v, want when the lease is over", took)
		}
	})
}

// unsure does what it is told and then says that it may not have.
type unsure struct{ store.Store }

func (s unsure) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if _, err := s.Store.Commit(ctx, txn); err != nil {
		return 0, err
	}
	return 0, context.DeadlineExceeded
}

// TestCampaignLeavesNoUnknownLeader has a candidate whose victory is lost on the
// way back to it. It must not keep others from leading.
func TestCampaignLeavesNoUnknownLeader(t *testing.T) {
	ctx := context.Background()
	s := memory.New(memory.Options{})
	defer s.Close()
	e := store.Election{Store: unsure{s}, ID: "a", TTL: time.Hour}
	if _, err := e.Campaign(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Campaign: %v, want the store's error", err)
	}
	if leader, err := e.Leader(ctx); !errors.Is(err, store.ErrNoLeader) {
		t.Errorf("Leader = %+v, %v; want ErrNoLeader", leader, err)
	}
}
