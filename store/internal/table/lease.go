package table

import (
	"context"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
)

// lease implements store.Lease.
type lease struct {
	table  *Table
	id     store.LeaseID
	ttl    time.Duration
	expire func(context.Context, store.LeaseID) error

	// guarded by table.mu
	timer    *time.Timer
	deadline time.Time
	keys     map[string]struct{} // published items under the lease
	gone     bool                // expired or revoked; its items may be there for a moment more
}

func (l *lease) ID() store.LeaseID  { return l.id }
func (l *lease) TTL() time.Duration { return l.ttl }

func (l *lease) KeepAlive(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t := l.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reason != nil {
		return t.reason
	}
	now := time.Now()
	// The deadline counts, not whether the timer's goroutine was quick.
	if l.gone || !now.Before(l.deadline) {
		return store.ErrLeaseExpired
	}
	l.deadline = now.Add(l.ttl)
	l.timer.Reset(l.ttl)
	return nil
}

func (l *lease) Revoke(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t := l.table
	t.mu.Lock()
	if err := t.reason; err != nil {
		t.mu.Unlock()
		return err
	}
	l.gone = true
	l.timer.Stop()
	t.mu.Unlock()
	// Also if it was gone: its items must be deleted when this returns, and the
	// writer may not have come to it yet.
	return l.expire(ctx, l.id)
}

// due is called by the timer.
func (l *lease) due() {
	t := l.table
	t.mu.Lock()
	if t.reason != nil || l.gone {
		t.mu.Unlock()
		return
	}
	// A renewal may have come between the timer's firing and this.
	if left := time.Until(l.deadline); left > 0 {
		l.timer.Reset(left)
		t.mu.Unlock()
		return
	}
	l.gone = true
	t.mu.Unlock()
	// It fails only if the store is closed or broken, and then everybody who
	// uses it is told.
	_ = l.expire(context.Background(), l.id)
}
