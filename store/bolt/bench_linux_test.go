package bolt_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/bolt"
)

// BenchmarkCommit compares, in one run and on one disk, for 1, 8 and 64
// concurrent writers of 500 bytes:
//
//   - store: Commit of this package;
//   - batch: bbolt's own DB.Batch, which also shares a sync, after waiting for
//     up to 10 ms for others to join;
//   - update: bbolt's DB.Update, one commit each;
//   - fsync: a write of 4 KiB and fdatasync of a plain file, under a lock, which
//     is the least that a durable commit without sharing can cost. One commit of
//     bbolt is two of these: its data pages, then its meta page.
func BenchmarkCommit(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			b.Run("store", func(b *testing.B) {
				s, err := bolt.Open(filepath.Join(b.TempDir(), "state.db"), bolt.Options{})
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				concurrently(b, writers, func(key string) error {
					_, err := s.Commit(context.Background(), store.Txn{Writes: []store.Write{store.Put(key, payload)}})
					return err
				})
			})
			for name, write := range map[string]func(*bbolt.DB, func(*bbolt.Tx) error) error{
				"batch": (*bbolt.DB).Batch, "update": (*bbolt.DB).Update,
			} {
				b.Run(name, func(b *testing.B) {
					db, err := bbolt.Open(filepath.Join(b.TempDir(), "plain.db"), 0o600, &bbolt.Options{FreelistType: bbolt.FreelistMapType})
					if err != nil {
						b.Fatal(err)
					}
					defer db.Close()
					if err := db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("b")); return err }); err != nil {
						b.Fatal(err)
					}
					concurrently(b, writers, func(key string) error {
						return write(db, func(tx *bbolt.Tx) error { return tx.Bucket([]byte("b")).Put([]byte(key), payload) })
					})
				})
			}
			b.Run("fsync", func(b *testing.B) {
				f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
				if err != nil {
					b.Fatal(err)
				}
				defer f.Close()
				// As bbolt does: the room is there, so that no metadata of the
				// file system has to be synced.
				if _, err := f.Write(make([]byte, 8<<20)); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
				var mu sync.Mutex
				page := make([]byte, 4096)
				n := int64(0)
				concurrently(b, writers, func(key string) error {
					mu.Lock()
					defer mu.Unlock()
					n++
					binary.LittleEndian.PutUint64(page, uint64(n))
					if _, err := f.WriteAt(page, n%2048*4096); err != nil {
						return err
					}
					return syscall.Fdatasync(int(f.Fd()))
				})
			})
		})
	}
}

var payload = bytes.Repeat([]byte("x"), 500)

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

// BenchmarkOpen measures opening a file of a hundred thousand items.
func BenchmarkOpen(b *testing.B) {
	path := filepath.Join(b.TempDir(), "state.db")
	s, err := bolt.Open(path, bolt.Options{})
	if err != nil {
		b.Fatal(err)
	}
	const items = 100_000
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w * store.MaxTxnOps; i < items; i += 8 * store.MaxTxnOps {
				var txn store.Txn
				for j := i; j < min(i+store.MaxTxnOps, items); j++ {
					txn.Writes = append(txn.Writes, store.Put(fmt.Sprintf("/tasks/node-%03d/%d", j%500, j), payload))
				}
				if _, err := s.Commit(context.Background(), txn); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := bolt.Open(path, bolt.Options{})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(items, "items")
}
