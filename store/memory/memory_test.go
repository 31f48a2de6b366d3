package memory_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSmoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		s := memory.New(memory.Options{})
		defer s.Close()
		w, err := s.Watch(ctx, "/a/", 0)
		if err != nil {
			t.Fatal(err)
		}
		l, err := s.Lease(ctx, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Commit(ctx, store.Txn{Writes: []store.Write{store.PutLeased("/a/1", []byte("x"), l.ID()), store.Put("/b", nil)}}); err != nil {
			t.Fatal(err)
		}
		if b := <-w; b.Revision != 1 || len(b.Changes) != 1 {
			t.Fatalf("%+v", b)
		}
		start := time.Now()
		b := <-w
		if time.Since(start) != time.Second || !b.Changes[0].Deleted {
			t.Fatalf("%+v", b)
		}
		if err := l.KeepAlive(ctx); !errors.Is(err, store.ErrLeaseExpired) {
			t.Fatal(err)
		}
	})
}
