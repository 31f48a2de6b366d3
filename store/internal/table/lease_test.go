package table

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
)

// A lease is over at its deadline, however long the timer's goroutine takes to come
// to it: whoever renews in between must not believe to have it.
func TestLeaseIsNotRenewedAfterItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		table := New(Options{History: 10, HistoryBytes: 1 << 20}, 0, nil)
		defer table.Close(store.ErrClosed)
		l, err := table.Grant(ctx, time.Second, func(context.Context, store.LeaseID) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		l.(*lease).timer.Stop() // as if its goroutine did not come to run
		time.Sleep(time.Second - 1)
		if err := l.KeepAlive(ctx); err != nil {
			t.Errorf("KeepAlive a moment before the deadline: %v", err)
		}
		l.(*lease).timer.Stop()
		time.Sleep(time.Second)
		if err := l.KeepAlive(ctx); err != store.ErrLeaseExpired {
			t.Errorf("KeepAlive at the deadline: %v, want ErrLeaseExpired", err)
		}
	})
}
