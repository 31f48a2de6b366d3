package etcd

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/orchestrate-go/orchestrate/store"
)

// lease is a store.Lease in etcd.
type lease struct {
	store *Store
	id    int64
	ttl   time.Duration
}

// Lease grants a lease of ttl, rounded up to whole seconds and to the servers'
// minimum.
func (s *Store) Lease(ctx context.Context, ttl time.Duration) (store.Lease, error) {
	if ttl <= 0 {
		return nil, &store.TTLError{TTL: ttl}
	}
	seconds := int64((ttl + time.Second - 1) / time.Second)
	var granted *clientv3.LeaseGrantResponse
	// A grant whose answer was lost leaves a lease that nobody writes under,
	// and that ends by itself.
	err := s.call(ctx, fmt.Sprintf("lease of %v", ttl), true, patience, func(ctx context.Context) (err error) {
		granted, err = s.client.Grant(ctx, seconds)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &lease{store: s, id: int64(granted.ID), ttl: time.Duration(granted.TTL) * time.Second}, nil
}

// ID is the lease's number in etcd, in hexadecimal.
func (l *lease) ID() store.LeaseID { return leaseID(l.id) }

// TTL is what etcd granted.
func (l *lease) TTL() time.Duration { return l.ttl }

// KeepAlive renews the lease once. A server that does not answer within an
// eighth of the TTL is left for the next, so that one dead server costs no
// lease.
func (l *lease) KeepAlive(ctx context.Context) error {
	wait := min(patience, max(l.ttl/8, 100*time.Millisecond))
	return l.gone(l.store.call(ctx, "renew lease "+string(l.ID()), true, wait, l.renew))
}

// renew is one try. The client's own repeats without a pause for as long as a
// server has no leader.
func (l *lease) renew(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream
	stream, err := l.store.leases.LeaseKeepAlive(ctx, callOptions...)
	if err != nil {
		return err
	}
	if err := stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: l.id}); err != nil {
		return err
	}
	answer, err := stream.Recv()
	if err != nil {
		return err
	}
	if answer.TTL <= 0 {
		return rpctypes.ErrLeaseNotFound
	}
	return nil
}

// Revoke ends the lease.
func (l *lease) Revoke(ctx context.Context) error {
	err := l.store.call(ctx, "revoke lease "+string(l.ID()), true, patience, func(ctx context.Context) error {
		_, err := l.store.client.Revoke(ctx, clientv3.LeaseID(l.id))
		return err
	})
	if is(err, rpctypes.ErrLeaseNotFound) {
		return nil
	}
	return err
}

// gone turns etcd's word for a lease that is no more into the store's.
func (l *lease) gone(err error) error {
	if is(err, rpctypes.ErrLeaseNotFound) {
		return store.ErrLeaseExpired
	}
	return err
}
