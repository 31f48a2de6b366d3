package memory_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

func BenchmarkCommit(b *testing.B) {
	for _, items := range []int{1000, 100_000} {
		b.Run(fmt.Sprintf("items=%d", items), func(b *testing.B) {
			ctx := context.Background()
			s := filled(b, items)
			defer s.Close()
			value := make([]byte, 500)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				if _, err := s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put(key(i*7919%items), value)}}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func key(i int) string { return fmt.Sprintf("/tasks/node-%04d/%d", i%1000, i) }

func filled(b *testing.B, items int) *memory.Store {
	b.Helper()
	s := memory.New(memory.Options{})
	value := make([]byte, 500)
	for i := 0; i < items; i += store.MaxTxnOps {
		var txn store.Txn
		for j := i; j < min(i+store.MaxTxnOps, items); j++ {
			txn.Writes = append(txn.Writes, store.Put(key(j), value))
		}
		if _, err := s.Commit(context.Background(), txn); err != nil {
			b.Fatal(err)
		}
	}
	return s
}

// BenchmarkList lists one node's hundred items among a hundred thousand, and
// all.
func BenchmarkList(b *testing.B) {
	s := filled(b, 100_000)
	defer s.Close()
	for _, prefix := range []string{"/tasks/node-0500/", "/tasks/"} {
		b.Run(prefix, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				snapshot, err := s.List(context.Background(), prefix)
				if err != nil || len(snapshot.Items) == 0 {
					b.Fatal(len(snapshot.Items), err)
				}
			}
		})
	}
}

// BenchmarkWatch measures one commit and its delivery: to so many watchers of
// the whole, or beside so many watchers each of a node of its own, of which one
// is concerned.
func BenchmarkWatch(b *testing.B) {
	for _, watchers := range []int{1, 100, 1000} {
		for _, shared := range []bool{true, false} {
			b.Run(fmt.Sprintf("watchers=%d/shared=%v", watchers, shared), func(b *testing.B) {
				ctx, cancel := context.WithCancel(context.Background())
				s := memory.New(memory.Options{})
				defer s.Close()
				defer cancel()
				var delivered sync.WaitGroup
				for w := range watchers {
					prefix := "/tasks/"
					if !shared {
						prefix = fmt.Sprintf("/tasks/node-%04d/", w)
					}
					batches, err := s.Watch(ctx, prefix, 0)
					if err != nil {
						b.Fatal(err)
					}
					go func() {
						for range batches {
							delivered.Done()
						}
					}()
				}
				txn := store.Txn{Writes: []store.Write{store.Put("/tasks/node-0000/web.1", make([]byte, 500))}}
				b.ReportAllocs()
				for b.Loop() {
					if shared {
						delivered.Add(watchers)
					} else {
						delivered.Add(1)
					}
					if _, err := s.Commit(ctx, txn); err != nil {
						b.Fatal(err)
					}
					delivered.Wait()
				}
			})
		}
	}
}
