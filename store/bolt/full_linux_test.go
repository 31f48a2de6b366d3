package bolt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/bolt"
)

// TestDiskFull fills a real file system. The store must say so and stop, and
// the file must have all that was acknowledged.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	ctx := context.Background()
	path := filepath.Join(dir, "state.db")
	s := open(t, path)
	lease, err := s.Lease(ctx, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	batches, err := s.Watch(ctx, "/", 0)
	if err != nil {
		t.Fatal(err)
	}
	acknowledged := 0
	var failure *bolt.WriteError
	for ; ; acknowledged++ {
		_, err := s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put(fmt.Sprintf("/k/%04d", acknowledged), bytes.Repeat([]byte("x"), 10_000))}})
		if err == nil {
			continue
		}
		if !errors.As(err, &failure) || !errors.Is(err, syscall.ENOSPC) || failure.Path != path {
			t.Fatalf("Commit on a full disk: %v, want a *WriteError of ENOSPC", err)
		}
		break
	}
	for call, err := range map[string]error{
		"Commit":    second(s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put("/x", nil)}})),
		"List":      second(s.List(ctx, "/")),
		"Watch":     second(s.Watch(ctx, "/", 0)),
		"Lease":     second(s.Lease(ctx, time.Second)),
		"KeepAlive": lease.KeepAlive(ctx),
	} {
		if !errors.Is(err, failure) {
			t.Errorf("%s after the failure: %v, want the failure again", call, err)
		}
	}
	for range batches { // ends, or the test does not
		continue
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close after the failure: %v", err)
	}
	s = open(t, path)
	snapshot, err := s.List(ctx, "/")
	if err != nil {
		t.Fatal(err)
	}
	// The commit that failed may have happened.
	if n := len(snapshot.Items); n < acknowledged || n > acknowledged+1 {
		t.Errorf("reopened with %d items, want the %d that were acknowledged", n, acknowledged)
	}
	if err := s.Close(); err != nil { // before the unmount
		t.Error(err)
	}
}

func second[T any](_ T, err error) error { return err }
