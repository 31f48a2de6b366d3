package bolt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/bolt"
	"github.com/orchestrate-go/orchestrate/store/storetest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		child(path)
		return
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, path string) *bolt.Store {
	t.Helper()
	s, err := bolt.Open(path, bolt.Options{})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		Open: func(t testing.TB) store.Store { return open(t, filepath.Join(t.TempDir(), "state.db")) },
		Reopen: func(t testing.TB, s store.Store) store.Store {
			if err := s.Close(); err != nil {
				t.Fatalf("Close: %v", err)
			}
			return open(t, s.(*bolt.Store).Path())
		},
		Virtual: true,
	})
}

// TestGroup has many writers at once, of which every second must conflict, and
// checks that who shares a sync shares nothing else.
func TestGroup(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	if _, err := s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put("/there", nil)}}); err != nil {
		t.Fatal(err)
	}
	const writers = 200
	revisions := make([]int64, writers)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			txn := store.Txn{Writes: []store.Write{store.Put(fmt.Sprintf("/k%03d", i), fmt.Append(nil, i))}}
			if i%2 == 1 {
				txn.If = []store.Condition{store.Absent("/there")}
			}
			revision, err := s.Commit(ctx, txn)
			if conflict := err != nil; conflict != (i%2 == 1) {
				t.Errorf("writer %d: %v, want a conflict of the odd ones only", i, err)
			}
			revisions[i] = revision
		})
	}
	wg.Wait()
	for range 2 { // as committed, and as reopened
		snapshot, err := s.List(ctx, "/k")
		if err != nil {
			t.Fatal(err)
		}
		if len(snapshot.Items) != writers/2 || snapshot.Revision != 1+writers/2 {
			t.Errorf("%d items at revision %d, want %d at %d", len(snapshot.Items), snapshot.Revision, writers/2, 1+writers/2)
		}
		for _, item := range snapshot.Items {
			var i int
			if _, err := fmt.Sscanf(item.Key, "/k%03d", &i); err != nil || string(item.Value) != fmt.Sprint(i) || item.Revision != revisions[i] {
				t.Errorf("%s = %q at %d, want %d at %d, which its Commit returned", item.Key, item.Value, item.Revision, i, revisions[i])
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, path)
	}
}

// TestOpenAtOnce has many openers of a file that is not there yet. One must win,
// and the others must be told that it did. The folder's name has what a pattern
// of file names would take for its own.
func TestOpenAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "[a-z]*")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "state.db")
	const openers = 8
	stores, errs := make([]*bolt.Store, openers), make([]error, openers)
	var wg sync.WaitGroup
	for i := range openers {
		wg.Go(func() { stores[i], errs[i] = bolt.Open(path, bolt.Options{}) })
	}
	wg.Wait()
	won := 0
	for i, s := range stores {
		if errs[i] == nil {
			won++
			defer s.Close()
		} else if !errors.Is(errs[i], bolt.ErrLocked) {
			t.Errorf("Open: %v, want success or ErrLocked", errs[i])
		}
	}
	if won != 1 {
		t.Errorf("%d of %d opened the file, want 1", won, openers)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("folder has %v (%v), want the file alone", entries, err)
	}
}

// TestCommitOwnsItsValues gives up on commits that are on their way, and then
// changes what was to be written. Under the race detector it fails if the store
// still looks at it.
func TestCommitOwnsItsValues(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			value := make([]byte, 10_000)
			for i := range 20 {
				ctx, cancel := context.WithCancel(context.Background())
				go cancel() // at any moment
				_, err := s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put(fmt.Sprintf("/%d/%d", w, i), value)}})
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("Commit: %v", err)
				}
				for j := range value {
					value[j]++
				}
			}
		})
	}
	wg.Wait()
	snapshot, err := s.List(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, item := range snapshot.Items {
		var w, i int
		if _, err := fmt.Sscanf(item.Key, "/%d/%d", &w, &i); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(item.Value, bytes.Repeat([]byte{byte(i)}, 10_000)) {
			t.Errorf("%s is not what it was when Commit was called", item.Key)
		}
	}
}
