//go:build unix

package etcd_test

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/bolt"
	"github.com/orchestrate-go/orchestrate/store/etcd"
)

var payload = bytes.Repeat([]byte("x"), 500)

// BenchmarkCommit compares, in one run and on one disk, for 1, 8 and 64 writers
// of 500 bytes:
//
//   - store: Commit of this package, to one member in the same process;
//   - fenced: the same under one condition, as the leader's are;
//   - client: a put by etcd's own client to the same member;
//   - bolt: Commit of store/bolt.
func BenchmarkCommit(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := open(b, start(b, alone(b.TempDir())), etcd.Options{})
			ctx := context.Background()
			fence, err := s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put("/leader", nil)}})
			if err != nil {
				b.Fatal(err)
			}
			b.Run("store", func(b *testing.B) {
				concurrently(b, writers, func(key string) error {
					_, err := s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put(key, payload)}})
					return err
				})
			})
			b.Run("fenced", func(b *testing.B) {
				concurrently(b, writers, func(key string) error {
					_, err := s.Commit(ctx, store.Txn{
						If:     []store.Condition{{Key: "/leader", Revision: fence}},
						Writes: []store.Write{store.Put(key, payload)},
					})
					return err
				})
			})
			b.Run("client", func(b *testing.B) {
				concurrently(b, writers, func(key string) error {
					_, err := s.Client().Put(ctx, key, string(payload))
					return err
				})
			})
			b.Run("bolt", func(b *testing.B) {
				s, err := bolt.Open(filepath.Join(b.TempDir(), "state.db"), bolt.Options{})
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				concurrently(b, writers, func(key string) error {
					_, err := s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put(key, payload)}})
					return err
				})
			})
		})
	}
}

// concurrently calls write b.N times from so many goroutines, with keys from a
// thousand that stay and are written again and again.
func concurrently(b *testing.B, writers int, write func(key string) error) {
	b.Helper()
	b.ReportAllocs()
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range writers {
		wg.Go(func() {
			for {
				i := next.Add(1)
				if i > int64(b.N) {
					return
				}
				if err := write(fmt.Sprintf("/tasks/node-%02d/%d", i%10, i%1000)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
}

// BenchmarkWatchLag measures from a commit's return to the watch's delivery of
// it, negative where the watch was faster, one commit at a time.
func BenchmarkWatchLag(b *testing.B) {
	s := open(b, start(b, alone(b.TempDir())), etcd.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	commit := func(b *testing.B) time.Time {
		if _, err := s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put("/w/x", payload)}}); err != nil {
			b.Fatal(err)
		}
		return time.Now()
	}
	b.Run("store", func(b *testing.B) {
		snapshot, err := s.List(ctx, "/w/")
		if err != nil {
			b.Fatal(err)
		}
		watching, stop := context.WithCancel(ctx)
		defer stop()
		batches, err := s.Watch(watching, "/w/", snapshot.Revision)
		if err != nil {
			b.Fatal(err)
		}
		lag(b, commit, func() { <-batches })
	})
	b.Run("client", func(b *testing.B) {
		watching, stop := context.WithCancel(ctx)
		defer stop()
		responses := s.Client().Watch(watching, s.Prefix()+"/w/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		<-responses
		lag(b, commit, func() {
			for r := range responses {
				if len(r.Events) > 0 {
					return
				}
			}
		})
	})
}

func lag(b *testing.B, commit func(*testing.B) time.Time, receive func()) {
	var lags []time.Duration
	arrived := make(chan time.Time)
	for b.Loop() {
		go func() {
			receive()
			arrived <- time.Now()
		}()
		returned := commit(b)
		lags = append(lags, (<-arrived).Sub(returned))
	}
	slices.Sort(lags)
	at := func(q float64) float64 { return float64(lags[int(q*float64(len(lags)-1))].Microseconds()) }
	b.ReportMetric(at(0.5), "p50-µs")
	b.ReportMetric(at(0.99), "p99-µs")
}

// BenchmarkList lists ten thousand items of 500 bytes.
func BenchmarkList(b *testing.B) {
	s := open(b, start(b, alone(b.TempDir())), etcd.Options{})
	ctx := context.Background()
	const items = 10_000
	for i := 0; i < items; i += store.MaxTxnOps {
		var txn store.Txn
		for j := i; j < min(i+store.MaxTxnOps, items); j++ {
			txn.Writes = append(txn.Writes, store.Put(fmt.Sprintf("/tasks/node-%03d/%d", j%500, j), payload))
		}
		if _, err := s.Commit(ctx, txn); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("store", func(b *testing.B) {
		for b.Loop() {
			if snapshot, err := s.List(ctx, "/tasks/"); err != nil || len(snapshot.Items) != items {
				b.Fatal(len(snapshot.Items), err)
			}
		}
	})
	b.Run("client", func(b *testing.B) {
		for b.Loop() {
			if got, err := s.Client().Get(ctx, s.Prefix()+"/tasks/", clientv3.WithPrefix()); err != nil || len(got.Kvs) != items {
				b.Fatal(err)
			}
		}
	})
}
