package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/orchestrate-go/orchestrate/store"
)

// explainBytes is how large a transaction may be to carry the question of why
// it conflicts with it. A larger one asks afterwards, so that the question does
// not push it over the server's limit.
const explainBytes = 1 << 20

// Commit applies txn if its conditions hold. If it does not come to an answer
// of etcd the error is [ErrUnavailable], and the change may have happened; only
// what certainly did not happen is tried again.
func (s *Store) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if err := txn.Validate(); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	request, bytes, ok := s.request(txn)
	if !ok {
		return 0, store.ErrLeaseExpired // no lease of etcd has such a name
	}
	explains := bytes <= explainBytes
	if explains {
		request.Failure = s.lookups(txn.If, 0)
	}
	op := fmt.Sprintf("commit %d writes", len(txn.Writes))
	if len(txn.Writes) > 0 {
		op += " from " + txn.Writes[0].Key
	}
	repeat, wait := false, patience*0
	if len(txn.Writes) == 0 {
		repeat, wait = true, patience
	}
	var response *etcdserverpb.TxnResponse
	err := s.call(ctx, op, repeat, wait, func(ctx context.Context) (err error) {
		response, err = s.kv.Txn(ctx, request, callOptions...)
		return err
	})
	switch {
	case is(err, rpctypes.ErrLeaseNotFound):
		return 0, store.ErrLeaseExpired
	case is(err, rpctypes.ErrTooManyOps):
		return 0, &ServerLimitError{What: "operations", Got: max(len(txn.If), len(txn.Writes)), Flag: "--max-txn-ops"}
	case is(err, rpctypes.ErrRequestTooLarge):
		return 0, &ServerLimitError{What: "bytes", Got: bytes, Flag: "--max-request-bytes"}
	case err != nil:
		return 0, err
	case response.Succeeded:
		return response.Header.Revision, nil
	case explains:
		return 0, conflict(txn.If, response)
	}
	return 0, s.explain(ctx, op, txn.If, response.Header.Revision)
}

// is reports whether err is one of the client's, in whichever form.
func is(err, target error) bool {
	var e *Error
	if errors.As(err, &e) {
		err = e.Err
	}
	return err != nil && errors.Is(rpctypes.Error(err), target)
}

// request is txn in etcd's words, and its size in bytes. Ok is false if a
// write's lease cannot exist.
func (s *Store) request(txn store.Txn) (r *etcdserverpb.TxnRequest, bytes int, ok bool) {
	r = &etcdserverpb.TxnRequest{}
	for _, c := range txn.If {
		r.Compare = append(r.Compare, &etcdserverpb.Compare{
			Result: etcdserverpb.Compare_EQUAL,
			Target: etcdserverpb.Compare_MOD, // of an absent key it is 0
			Key:    []byte(s.opts.Prefix + c.Key),
			TargetUnion: &etcdserverpb.Compare_ModRevision{
				ModRevision: c.Revision,
			},
		})
		bytes += len(s.opts.Prefix) + len(c.Key)
	}
	for _, w := range txn.Writes {
		key := []byte(s.opts.Prefix + w.Key)
		bytes += len(key) + len(w.Value)
		if w.Delete {
			r.Success = append(r.Success, &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestDeleteRange{
				RequestDeleteRange: &etcdserverpb.DeleteRangeRequest{Key: key},
			}})
			continue
		}
		lease, known := leaseNumber(w.Lease)
		if !known {
			return nil, 0, false
		}
		r.Success = append(r.Success, &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestPut{
			RequestPut: &etcdserverpb.PutRequest{Key: key, Value: w.Value, Lease: lease},
		}})
	}
	if len(txn.Writes) == 0 {
		// Without a read etcd answers from what this server happens to know.
		r.Success = s.lookups([]store.Condition{{Key: "/"}}, 0)
	}
	return r, bytes, true
}

// lookups read the revisions of the keys of conditions as of revision; 0 is now.
func (s *Store) lookups(conditions []store.Condition, revision int64) []*etcdserverpb.RequestOp {
	var ops []*etcdserverpb.RequestOp
	for _, c := range conditions {
		ops = append(ops, &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestRange{
			RequestRange: &etcdserverpb.RangeRequest{Key: []byte(s.opts.Prefix + c.Key), KeysOnly: true, Revision: revision},
		}})
	}
	return ops
}

// conflict names the first condition that did not hold, by lookups' answer.
func conflict(conditions []store.Condition, answer *etcdserverpb.TxnResponse) error {
	for i, c := range conditions {
		var got int64
		if kvs := answer.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			got = kvs[0].ModRevision
		}
		if got != c.Revision {
			return &store.ConflictError{Key: c.Key, Want: c.Revision, Got: got}
		}
	}
	return nil
}

// explain finds out which condition did not hold at revision, when the
// transaction conflicted.
func (s *Store) explain(ctx context.Context, op string, conditions []store.Condition, revision int64) error {
	var answer *etcdserverpb.TxnResponse
	err := s.call(ctx, op+": explain its conflict", true, patience, func(ctx context.Context) (err error) {
		answer, err = s.kv.Txn(ctx, &etcdserverpb.TxnRequest{Success: s.lookups(conditions, revision)}, callOptions...)
		return err
	})
	switch {
	case err == nil:
		if err := conflict(conditions, answer); err != nil {
			return err
		}
	case !is(err, rpctypes.ErrCompacted):
		return err
	}
	// It was compacted since, and by now all may be as it should have been.
	return fmt.Errorf("%s: %w, and the history that says with what is compacted", op, store.ErrConflict)
}

// Compact forgets the history of the whole etcd up to and including revision,
// and with it that of other fleets in it.
func (s *Store) Compact(ctx context.Context, revision int64) error {
	if revision < 0 {
		return s.outOfRange(ctx, revision)
	}
	if revision == 0 {
		_, done, err := s.begin(ctx)
		if err == nil {
			done()
		}
		return err
	}
	err := s.call(ctx, fmt.Sprintf("compact to %d", revision), true, 0, func(ctx context.Context) error {
		_, err := s.client.Compact(ctx, revision)
		return err
	})
	switch {
	case is(err, rpctypes.ErrCompacted):
		return nil
	case is(err, rpctypes.ErrFutureRev):
		return s.outOfRange(ctx, revision)
	}
	return err
}

// outOfRange is the error for a revision that cannot be meant.
func (s *Store) outOfRange(ctx context.Context, revision int64) error {
	current, err := s.Commit(ctx, store.Txn{})
	if err != nil {
		return err
	}
	return &store.RevisionError{Revision: revision, Current: current}
}
