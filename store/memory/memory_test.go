package memory_test

import (
	"context"
	"errors"
	"testing"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/memory"
	"github.com/orchestrate-go/orchestrate/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		Open:    func(testing.TB) store.Store { return memory.New(memory.Options{}) },
		Virtual: true,
	})
}

// TestConformanceSmallHistory is the same with watchers that fall behind.
func TestConformanceSmallHistory(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		Open:    func(testing.TB) store.Store { return memory.New(memory.Options{History: 300}) },
		Virtual: true,
	})
}

// TestHistoryIsBounded shows both bounds, to who comes late and to who is slow.
func TestHistoryIsBounded(t *testing.T) {
	for name, opts := range map[string]memory.Options{
		"commits": {History: 10},
		"bytes":   {HistoryBytes: 10_000},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			s := memory.New(opts)
			defer s.Close()
			slow, err := s.Watch(ctx, "/", 0)
			if err != nil {
				t.Fatal(err)
			}
			const commits = 1000
			for range commits {
				if _, err := s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put("/k", make([]byte, 1000))}}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.Watch(ctx, "/", commits-100); !errors.Is(err, store.ErrCompacted) {
				t.Errorf("Watch after what the history has forgotten: %v, want ErrCompacted", err)
			}
			if _, err := s.Watch(ctx, "/", commits-5); err != nil {
				t.Errorf("Watch after what the history keeps: %v", err)
			}
			received := int64(0)
			for batch := range slow {
				if batch.Err != nil {
					if !errors.Is(batch.Err, store.ErrCompacted) {
						t.Errorf("slow watch ended with %v, want ErrCompacted", batch.Err)
					}
					return
				}
				if received++; batch.Revision != received {
					t.Fatalf("slow watch got revision %d after %d", batch.Revision, received-1)
				}
			}
			t.Errorf("slow watch got all of %d batches: they were kept for it alone", received)
		})
	}
}
