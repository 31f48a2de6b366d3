package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/orchestrate-go/orchestrate/store"
)

// Check waits for a server and finds out whether the store can work with it: it
// answers a linearizable read, allows as many operations in a transaction as
// store.MaxTxnOps, and no alarm is raised. A program that wants to fail at its
// start rather than at its first call calls it after Open. The error is an
// [*Error], of the kinds above, or a [*ServerLimitError].
func (s *Store) Check(ctx context.Context) error {
	// It is refused before anything is done about it, so this costs nothing.
	probe := make([]store.Condition, store.MaxTxnOps)
	for i := range probe {
		probe[i] = store.Condition{Key: "/"}
	}
	err := s.call(ctx, "check etcd", true, patience, func(ctx context.Context) error {
		_, err := s.kv.Txn(ctx, &etcdserverpb.TxnRequest{Success: s.lookups(probe, 0)}, callOptions...)
		return err
	})
	switch {
	case is(err, rpctypes.ErrTooManyOps):
		return &ServerLimitError{What: "operations", Got: len(probe), Flag: "--max-txn-ops"}
	case err != nil:
		return err
	}
	var alarms *clientv3.AlarmResponse
	err = s.call(ctx, "check etcd's alarms", true, patience, func(ctx context.Context) (err error) {
		alarms, err = s.client.AlarmList(ctx)
		return err
	})
	if errors.Is(err, ErrDenied) {
		return nil // they are not this user's to see
	}
	if err != nil {
		return err
	}
	for _, a := range alarms.Alarms {
		kind := ErrNoSpace
		if a.Alarm == etcdserverpb.AlarmType_CORRUPT {
			kind = ErrCorrupt
		}
		return &Error{Op: "check etcd's alarms", Kind: kind, Err: fmt.Errorf("member %x raised %s", a.MemberID, a.Alarm)}
	}
	return nil
}
