package etcd

import (
	"context"
	"errors"
	"strconv"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/orchestrate-go/orchestrate/store"
)

// Pages of a List. The first is of firstPage items; the next are as many as
// make pageBytes, so that neither side holds much more than that at once.
const (
	firstPage = 500
	maxPage   = 20_000
	pageBytes = 4 << 20
)

// listTries bounds how often a List starts anew because its revision was
// compacted between two pages.
const listTries = 5

// List returns a consistent snapshot of prefix. A large one is read page by
// page at one revision. If etcd compacts that revision meanwhile, it is read
// again; after five times the error is store.ErrCompacted.
func (s *Store) List(ctx context.Context, prefix string) (store.Snapshot, error) {
	if err := store.ValidatePrefix(prefix); err != nil {
		return store.Snapshot{}, err
	}
	var err error
	for range listTries {
		var snapshot store.Snapshot
		if snapshot, err = s.list(ctx, prefix); !errors.Is(err, rpctypes.ErrCompacted) {
			return snapshot, err
		}
	}
	return store.Snapshot{}, &Error{Op: "list " + prefix, Kind: store.ErrCompacted, Err: err}
}

func (s *Store) list(ctx context.Context, prefix string) (store.Snapshot, error) {
	start, end := s.span(prefix)
	var snapshot store.Snapshot
	limit, bytes := firstPage, 0
	for {
		var page *clientv3.GetResponse
		err := s.call(ctx, "list "+prefix, true, patience, func(ctx context.Context) (err error) {
			page, err = s.client.Get(ctx, start, clientv3.WithRange(end), clientv3.WithLimit(int64(limit)), clientv3.WithRev(snapshot.Revision))
			return err
		})
		if err != nil {
			return store.Snapshot{}, err
		}
		if snapshot.Revision == 0 {
			snapshot.Revision = page.Header.Revision
			snapshot.Items = make([]store.Item, 0, page.Count)
		}
		for _, kv := range page.Kvs {
			snapshot.Items = append(snapshot.Items, s.item(kv))
			bytes += len(kv.Key) + len(kv.Value)
		}
		if !page.More || len(page.Kvs) == 0 {
			return snapshot, nil
		}
		start = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
		limit = min(maxPage, max(1, len(snapshot.Items)*pageBytes/max(1, bytes)))
	}
}

// Get returns the item at key and whether there is one.
func (s *Store) Get(ctx context.Context, key string) (store.Item, bool, error) {
	if err := store.ValidateKey(key); err != nil {
		return store.Item{}, false, err
	}
	var got *clientv3.GetResponse
	err := s.call(ctx, "get "+key, true, patience, func(ctx context.Context) (err error) {
		got, err = s.client.Get(ctx, s.opts.Prefix+key)
		return err
	})
	if err != nil || len(got.Kvs) == 0 {
		return store.Item{}, false, err
	}
	return s.item(got.Kvs[0]), true, nil
}

// span is the range of etcd's keys that start with a prefix of the store's.
func (s *Store) span(prefix string) (start, end string) {
	if prefix == "" {
		prefix = "/" // and not what has the beginning of a name in common with ours
	}
	start = s.opts.Prefix + prefix
	return start, clientv3.GetPrefixRangeEnd(start)
}

// item turns etcd's word for it into ours.
func (s *Store) item(kv *mvccpb.KeyValue) store.Item {
	return store.Item{
		Key:      string(kv.Key[len(s.opts.Prefix):]),
		Value:    kv.Value,
		Revision: kv.ModRevision,
		Created:  kv.CreateRevision,
		Lease:    leaseID(kv.Lease),
	}
}

// A lease's name is its number in etcd, in hexadecimal as etcdctl prints it.
func leaseID(id int64) store.LeaseID {
	if id == 0 {
		return ""
	}
	return store.LeaseID(strconv.FormatInt(id, 16))
}

// leaseNumber is the reverse; ok is false for what is no name of a lease.
func leaseNumber(id store.LeaseID) (n int64, ok bool) {
	if id == "" {
		return 0, true
	}
	n, err := strconv.ParseInt(string(id), 16, 64)
	return n, err == nil && n != 0
}
