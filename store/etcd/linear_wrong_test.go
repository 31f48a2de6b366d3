//go:build unix

package etcd_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/etcd"
)

// stale answers reads from what the server that it happens to ask knows, which
// is cheaper, and wrong.
type stale struct{ *etcd.Store }

func (s stale) Get(ctx context.Context, key string) (store.Item, bool, error) {
	got, err := s.Client().Get(ctx, key, clientv3.WithSerializable())
	if err != nil || len(got.Kvs) == 0 {
		return store.Item{}, false, unavailable(err)
	}
	kv := got.Kvs[0]
	return store.Item{Key: key, Value: kv.Value, Revision: kv.ModRevision, Created: kv.CreateRevision}, true, nil
}

func unavailable(err error) error {
	if err == nil {
		return nil
	}
	return &etcd.Error{Op: "planted", Kind: etcd.ErrUnavailable, Err: err}
}

// racy compares first and writes then.
type racy struct{ *etcd.Store }

func (s racy) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	for _, c := range txn.If {
		item, _, err := s.Get(ctx, c.Key)
		if err != nil {
			return 0, err
		}
		if item.Revision != c.Revision {
			return 0, &store.ConflictError{Key: c.Key, Want: c.Revision, Got: item.Revision}
		}
	}
	return s.Store.Commit(ctx, store.Txn{Writes: txn.Writes})
}

// torn writes each key by itself.
type torn struct{ *etcd.Store }

func (s torn) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	revision, err := s.Store.Commit(ctx, store.Txn{If: txn.If, Writes: txn.Writes[:1]})
	for _, w := range txn.Writes[1:] {
		if err != nil {
			return 0, err
		}
		revision, err = s.Store.Commit(ctx, store.Txn{Writes: []store.Write{w}})
	}
	return revision, err
}

// TestWrongStoresAreNotLinearizable shows that the check above can fail. A short
// history may be one in which the mistake was not met, so there are a few.
func TestWrongStoresAreNotLinearizable(t *testing.T) {
	for name, wrong := range map[string]func(*etcd.Store) store.Store{
		"stale reads":           func(s *etcd.Store) store.Store { return stale{s} },
		"conditions, then acts": func(s *etcd.Store) store.Store { return racy{s} },
		"torn transactions":     func(s *etcd.Store) store.Store { return torn{s} },
	} {
		if testing.Short() && name != "stale reads" {
			continue
		}
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			const histories = 6
			for range histories {
				seed := rand.Uint64()
				t.Log(fmt.Sprint("seed=", seed))
				if porcupine.CheckOperationsTimeout(model, history(t, seed, 5*time.Second, wrong), time.Minute) == porcupine.Illegal {
					return
				}
			}
			t.Errorf("%d histories of a store with %s are linearizable, want one that is not", histories, name)
		})
	}
}
