package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Keep renews lease every third of its TTL until ctx ends, and then returns the
// context's error, or until the lease is lost, and then returns an error that
// is [ErrLeaseExpired] or [ErrClosed]. A renewal that fails otherwise is tried
// again, more often, for as long as the lease can still be alive. Keep does not
// revoke the lease.
func Keep(ctx context.Context, lease Lease) error {
	// Unknown is when the lease was last renewed. That it is alive now is the
	// best guess, and if it is wrong the first renewal says so.
	return keep(ctx, lease, 0, time.Now(), lease.TTL(), func(time.Time) {})
}

// KeepTold is Keep with a call of renewed after each success, with the time at
// which the renewal was sent: the lease lasts for its TTL from later than that.
// Sent is that of the grant.
func KeepTold(ctx context.Context, lease Lease, sent time.Time, renewed func(sent time.Time)) error {
	return keep(ctx, lease, 0, sent, lease.TTL(), renewed)
}

// KeepEvery is KeepTold at an interval of the caller's, a third of the TTL when
// 0, so that many do not come at once. It should be well below the TTL.
func KeepEvery(ctx context.Context, lease Lease, interval time.Duration, sent time.Time, renewed func(sent time.Time)) error {
	return keep(ctx, lease, interval, sent, lease.TTL(), renewed)
}

// Keeper is implemented by leases that are renewed without being asked. [Keep]
// and [KeepTold] then leave it to them.
type Keeper interface {
	// Keep returns when the lease is lost, with an error that is
	// [ErrLeaseExpired] or [ErrClosed], or when ctx has ended, with its error.
	// It calls renewed with the time of a renewal, as KeepTold does. A time that
	// is yet to come says that the lease is renewed until then at least, unless
	// an earlier one is told later. The lease counts as lost when patience has
	// gone by since the last renewal.
	Keep(ctx context.Context, patience time.Duration, renewed func(sent time.Time)) error
}

// keep renews lease, whose last renewal was sent at sent, and gives up once
// patience has gone by since the last renewal that succeeded was sent. That is
// on the safe side: the store counts from when it received it, which is later.
// It calls renewed after each success, with the time at which it was sent.
func keep(ctx context.Context, lease Lease, interval time.Duration, sent time.Time, patience time.Duration, renewed func(sent time.Time)) error {
	if k, ok := lease.(Keeper); ok {
		return k.Keep(ctx, patience, renewed)
	}
	const steps = 3 // renewals in one TTL, so that two may be lost
	if interval <= 0 {
		interval = lease.TTL() / steps
	}
	timer := time.NewTimer(time.Until(sent.Add(interval)))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		now := time.Now()
		call, cancel := context.WithDeadline(ctx, sent.Add(patience))
		err := lease.KeepAlive(call)
		cancel()
		switch {
		case err == nil:
			sent = now
			renewed(sent)
			timer.Reset(interval)
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrLeaseExpired), errors.Is(err, ErrClosed):
			return err
		case time.Since(sent) >= patience:
			return fmt.Errorf("%w: no renewal for %v: %w", ErrLeaseExpired, patience, err)
		default:
			timer.Reset(min(interval/4, patience-time.Since(sent)))
		}
	}
}
