package storetest_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/bolt"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

// model is the store that is too simple to be wrong: a map, copied for every
// revision.
type model struct {
	revision int64
	states   []map[string]store.Item // by revision
	leases   []*modelLease
}

type modelLease struct {
	real  store.Lease
	ttl   time.Duration
	until time.Time
	gone  bool
}

func (m *model) now() map[string]store.Item { return m.states[m.revision] }

func (m *model) set(next map[string]store.Item) {
	m.revision++
	m.states = append(m.states, next)
}

func (m *model) commit(txn store.Txn) (int64, error) {
	for _, c := range txn.If {
		if got := m.now()[c.Key].Revision; got != c.Revision {
			return 0, &store.ConflictError{Key: c.Key, Want: c.Revision, Got: got}
		}
	}
	for _, w := range txn.Writes {
		if w.Lease != "" && !slices.ContainsFunc(m.leases, func(l *modelLease) bool { return l.real.ID() == w.Lease && !l.gone }) {
			return 0, store.ErrLeaseExpired
		}
	}
	next, changed := maps.Clone(m.now()), false
	for _, w := range txn.Writes {
		old, existed := next[w.Key]
		if w.Delete {
			delete(next, w.Key)
			changed = changed || existed
			continue
		}
		item := store.Item{Key: w.Key, Value: w.Value, Revision: m.revision + 1, Created: m.revision + 1, Lease: w.Lease}
		if existed {
			item.Created = old.Created
		}
		next[w.Key], changed = item, true
	}
	if changed {
		m.set(next)
	}
	return m.revision, nil
}

// end ends leases and deletes their items, each in a commit of its own.
func (m *model) end(l *modelLease) {
	l.gone = true
	next := maps.Clone(m.now())
	maps.DeleteFunc(next, func(_ string, i store.Item) bool { return i.Lease == l.real.ID() })
	if len(next) < len(m.now()) {
		m.set(next)
	}
}

// sleep lets time go by: leases end in the order of their deadlines.
func (m *model) sleep(d time.Duration) {
	end := time.Now().Add(d)
	time.Sleep(d)
	synctest.Wait()
	for _, l := range slices.SortedFunc(slices.Values(m.leases), func(a, b *modelLease) int { return a.until.Compare(b.until) }) {
		if !l.gone && !l.until.After(end) {
			m.end(l)
		}
	}
}

func (m *model) list(prefix string) []store.Item {
	var items []store.Item
	for _, key := range slices.Sorted(maps.Keys(m.now())) {
		if strings.HasPrefix(key, prefix) {
			items = append(items, m.now()[key])
		}
	}
	return items
}

// between is what a watch must tell of two neighbouring states.
func (m *model) changes(revision int64, prefix string) string {
	before, after := m.states[revision-1], m.states[revision]
	var lines []string
	for key, item := range after {
		if strings.HasPrefix(key, prefix) && item.Revision == revision {
			lines = append(lines, fmt.Sprint(store.Change{Item: item}))
		}
	}
	for key := range before {
		if _, still := after[key]; strings.HasPrefix(key, prefix) && !still {
			lines = append(lines, fmt.Sprint(store.Change{Item: store.Item{Key: key, Revision: revision}, Deleted: true}))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// undated hides the test's deadline from rapid, since it is one of the real time
// and may not be asked for in a bubble.
type undated struct{ testing.TB }

// TestModel drives a store and the model through the same random story and
// compares all that they show.
func TestModel(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			rapid.Check(undated{t}, func(t *rapid.T) {
				story(t, memory.New(memory.Options{}), nil)
			})
		})
	})
	t.Run("bolt", func(t *testing.T) {
		dir := scratch(t)
		synctest.Test(t, func(t *testing.T) {
			rapid.Check(undated{t}, func(t *rapid.T) {
				path := filepath.Join(dir, "state.db")
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
				open := func() store.Store {
					s, err := bolt.Open(path, bolt.Options{})
					if err != nil {
						t.Fatalf("Open: %v", err)
					}
					return s
				}
				story(t, open(), open)
			})
		})
	})
}

// scratch is a folder in memory, if there is such a place: the disk's syncs are
// not what is compared here, and would take most of the time.
func scratch(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "storetest-*")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// story is one run; reopen is nil for a store that keeps nothing.
func story(t *rapid.T, s store.Store, reopen func() store.Store) {
	ctx, cancel := context.WithCancel(context.Background())
	defer func() {
		cancel()
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}()
	m := &model{states: []map[string]store.Item{{}}}
	keys := rapid.SampledFrom([]string{"/a", "/a/b", "/a/c", "/ab", "/b/x/y", "/b/x"})
	prefixes := rapid.SampledFrom([]string{"", "/", "/a", "/a/", "/b/x", "/none"})
	kept := int64(0) // history after this revision must be there

	check := func() {
		prefix := prefixes.Draw(t, "prefix")
		got, err := s.List(ctx, prefix)
		if err != nil || got.Revision != m.revision || fmt.Sprint(got.Items) != fmt.Sprint(m.list(prefix)) {
			t.Fatalf("List(%q) = %+v, %v; want %+v at %d", prefix, got, err, m.list(prefix), m.revision)
		}
	}
	t.Repeat(map[string]func(*rapid.T){
		"": func(*rapid.T) { check() },
		"commit": func(t *rapid.T) {
			var txn store.Txn
			for _, key := range rapid.SliceOfNDistinct(keys, 0, 2, rapid.ID).Draw(t, "if") {
				revision := m.now()[key].Revision // mostly right
				if rapid.IntRange(0, 3).Draw(t, "wrong") == 0 {
					revision = rapid.Int64Range(0, m.revision).Draw(t, "revision")
				}
				txn.If = append(txn.If, store.Condition{Key: key, Revision: revision})
			}
			for _, key := range rapid.SliceOfNDistinct(keys, 0, 4, rapid.ID).Draw(t, "writes") {
				w := store.Put(key, []byte(rapid.StringMatching("[a-c]{1,3}").Draw(t, "value")))
				switch kind := rapid.IntRange(0, 3).Draw(t, "kind"); {
				case kind == 0:
					w = store.Delete(key)
				case kind == 1 && len(m.leases) > 0:
					w.Lease = rapid.SampledFrom(m.leases).Draw(t, "lease").real.ID()
				}
				txn.Writes = append(txn.Writes, w)
			}
			got, err := s.Commit(ctx, txn)
			want, wantErr := m.commit(txn)
			if got != want || fmt.Sprint(err) != fmt.Sprint(wantErr) {
				t.Fatalf("Commit(%+v) = %d, %v; want %d, %v", txn, got, err, want, wantErr)
			}
		},
		"lease": func(t *rapid.T) {
			// Odd fractions, so that no two deadlines fall together.
			ttl := time.Duration(rapid.IntRange(1, 20).Draw(t, "ttl"))*time.Second + time.Duration(len(m.leases)+1)*time.Microsecond
			l, err := s.Lease(ctx, ttl)
			if err != nil {
				t.Fatalf("Lease: %v", err)
			}
			m.leases = append(m.leases, &modelLease{real: l, ttl: ttl, until: time.Now().Add(ttl)})
		},
		"renew": func(t *rapid.T) {
			if len(m.leases) == 0 {
				t.Skip("no lease")
			}
			l := rapid.SampledFrom(m.leases).Draw(t, "lease")
			if err := l.real.KeepAlive(ctx); l.gone != errors.Is(err, store.ErrLeaseExpired) || !l.gone && err != nil {
				t.Fatalf("KeepAlive: %v, lease is gone: %v", err, l.gone)
			}
			l.until = time.Now().Add(l.ttl)
		},
		"revoke": func(t *rapid.T) {
			if len(m.leases) == 0 {
				t.Skip("no lease")
			}
			l := rapid.SampledFrom(m.leases).Draw(t, "lease")
			if err := l.real.Revoke(ctx); err != nil {
				t.Fatalf("Revoke: %v", err)
			}
			m.end(l)
		},
		"sleep": func(t *rapid.T) {
			m.sleep(time.Duration(rapid.IntRange(1, 10).Draw(t, "seconds")) * time.Second)
		},
		"watch": func(t *rapid.T) {
			after := rapid.Int64Range(0, m.revision).Draw(t, "after")
			prefix := prefixes.Draw(t, "prefix")
			watching, stop := context.WithCancel(ctx)
			defer stop()
			batches, err := s.Watch(watching, prefix, after)
			if after < kept {
				if !errors.Is(err, store.ErrCompacted) {
					t.Fatalf("Watch after %d with history kept after %d: %v, want ErrCompacted", after, kept, err)
				}
				return
			}
			if err != nil {
				t.Fatalf("Watch after %d with history kept after %d: %v", after, kept, err)
			}
			for revision := after + 1; revision <= m.revision; revision++ {
				want := m.changes(revision, prefix)
				if want == "" {
					continue
				}
				batch := <-batches
				var lines []string
				for _, c := range batch.Changes {
					lines = append(lines, fmt.Sprint(c))
				}
				slices.Sort(lines)
				if got := strings.Join(lines, "\n"); batch.Revision != revision || got != want {
					t.Fatalf("Watch(%q, %d) tells at %d\n%s\nwant at %d\n%s", prefix, after, batch.Revision, got, revision, want)
				}
			}
			synctest.Wait()
			select {
			case batch := <-batches:
				t.Fatalf("Watch(%q, %d) tells %+v after all", prefix, after, batch)
			default:
			}
		},
		"compact": func(t *rapid.T) {
			revision := rapid.Int64Range(0, m.revision).Draw(t, "revision")
			if err := s.(store.Compacter).Compact(ctx, revision); err != nil {
				t.Fatalf("Compact(%d): %v", revision, err)
			}
			kept = max(kept, revision)
		},
		"reopen": func(t *rapid.T) {
			if reopen == nil {
				t.Skip("keeps nothing")
			}
			if err := s.Close(); err != nil {
				t.Fatalf("Close: %v", err)
			}
			s, kept = reopen(), m.revision
			next := maps.Clone(m.now())
			maps.DeleteFunc(next, func(_ string, i store.Item) bool { return i.Lease != "" })
			if len(next) < len(m.now()) {
				m.set(next)
			}
			m.leases = nil
		},
	})
}
