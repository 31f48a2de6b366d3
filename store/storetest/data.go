package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/orchestrate-go/orchestrate/store"
)

func testList(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	if empty := list(ctx, t, s, ""); len(empty.Items) != 0 {
		t.Fatalf("new store has %s, want nothing", contents(empty))
	}
	commit(ctx, t, s, put("/tasks/n10/a", "3"), put("/tasks/n1/b", "2"), put("/nodes/n1", "5"))
	commit(ctx, t, s, put("/tasks/n1/a", "1"), put("/tasks/n1", "0"), put("/tasks.old", "4"))
	for prefix, want := range map[string]string{
		"":              "/nodes/n1=5 /tasks.old=4 /tasks/n1=0 /tasks/n1/a=1 /tasks/n1/b=2 /tasks/n10/a=3",
		"/":             "/nodes/n1=5 /tasks.old=4 /tasks/n1=0 /tasks/n1/a=1 /tasks/n1/b=2 /tasks/n10/a=3",
		"/tasks":        "/tasks.old=4 /tasks/n1=0 /tasks/n1/a=1 /tasks/n1/b=2 /tasks/n10/a=3",
		"/tasks/":       "/tasks/n1=0 /tasks/n1/a=1 /tasks/n1/b=2 /tasks/n10/a=3",
		"/tasks/n1":     "/tasks/n1=0 /tasks/n1/a=1 /tasks/n1/b=2 /tasks/n10/a=3",
		"/tasks/n1/":    "/tasks/n1/a=1 /tasks/n1/b=2",
		"/tasks/n10/a":  "/tasks/n10/a=3",
		"/tasks/n10/a/": "",
		"/zzz":          "",
	} {
		snapshot := list(ctx, t, s, prefix)
		newMirror(t, prefix, snapshot)
		if got := contents(snapshot); got != want {
			t.Errorf("List(%q) = %q, want %q: a plain prefix of the key, sorted", prefix, got, want)
		}
	}
}

func testGet(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	revision := commit(ctx, t, s, put("/a/b", "deeper"), put("/ab", "longer"))
	if item, found, err := store.Get(ctx, s, "/a"); found || err != nil {
		t.Errorf("Get(/a) = %+v, %v, %v; want nothing: the prefix of a key is another key", item, found, err)
	}
	item, found, err := store.Get(ctx, s, "/ab")
	if want := (store.Item{Key: "/ab", Value: []byte("longer"), Revision: revision, Created: revision}); err != nil || !found || !sameItem(item, want) {
		t.Errorf("Get(/ab) = %+v, %v, %v; want %+v", item, found, err, want)
	}
	if _, _, err := store.Get(ctx, s, "/a/"); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("Get(/a/): %v, want ErrInvalid: not a key", err)
	}
}

func testRevisions(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	before := list(ctx, t, s, "").Revision
	first := commit(ctx, t, s, put("/a", "1"), put("/b", "1"))
	second := commit(ctx, t, s, put("/a", "1")) // the same value is a write too
	third := commit(ctx, t, s, store.Delete("/a"))
	fourth := commit(ctx, t, s, put("/a", "2"))
	if !(before < first && first < second && second < third && third < fourth) {
		t.Fatalf("revisions %d, %d, %d, %d, %d; want each greater than the one before", before, first, second, third, fourth)
	}
	snapshot := list(ctx, t, s, "/")
	if snapshot.Revision != fourth {
		t.Errorf("List is at revision %d, want %d, that of the last commit", snapshot.Revision, fourth)
	}
	m := newMirror(t, "/", snapshot)
	if a := m.items["/a"]; a.Created != fourth || a.Revision != fourth {
		t.Errorf("/a is created %d, written %d; want both %d: it was deleted in between", a.Created, a.Revision, fourth)
	}
	if b := m.items["/b"]; b.Created != first || b.Revision != first {
		t.Errorf("/b is created %d, written %d; want both %d", b.Created, b.Revision, first)
	}
	fifth := commit(ctx, t, s, put("/b", "2"))
	if b := newMirror(t, "/b", list(ctx, t, s, "/b")).items["/b"]; b.Created != first || b.Revision != fifth {
		t.Errorf("/b is created %d, written %d; want %d and %d", b.Created, b.Revision, first, fifth)
	}
}

func testValues(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	batches := watch(ctx, t, s, "/binary", list(ctx, t, s, "/").Revision)
	binary := string([]byte{0, 1, 255, 254, '\n', 0})
	value := []byte(binary)
	commit(ctx, t, s, store.Put("/binary", value), store.Put("/empty", nil), store.Put("/empty2", []byte{}))
	copy(value, "changed")
	for _, c := range receive(t, batches).Changes {
		if string(c.Item.Value) != binary {
			t.Errorf("watch says that %s is %q, want %q: what it was when Commit was called", c.Item.Key, c.Item.Value, binary)
		}
	}
	for _, item := range list(ctx, t, s, "/").Items {
		want := ""
		if item.Key == "/binary" {
			want = binary
		}
		if string(item.Value) != want {
			t.Errorf("%s is %q, want %q: what it was when Commit was called", item.Key, item.Value, want)
		}
	}
	if items := list(ctx, t, s, "/empty").Items; len(items) != 2 {
		t.Errorf("%d items have an empty value, want 2: empty is not absent", len(items))
	}
}

func testConditions(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	old := commit(ctx, t, s, put("/a", "1"), put("/gone", "1"))
	now := commit(ctx, t, s, put("/a", "2"), store.Delete("/gone"))
	for _, c := range []struct {
		name     string
		txn      store.Txn
		conflict *store.ConflictError // nil: it commits
	}{
		{"absent, and is", store.Txn{If: []store.Condition{store.Absent("/x")}, Writes: []store.Write{put("/n1", "")}}, nil},
		{"absent, deleted", store.Txn{If: []store.Condition{store.Absent("/gone")}, Writes: []store.Write{put("/n2", "")}}, nil},
		{"absent, is there", store.Txn{If: []store.Condition{store.Absent("/a")}, Writes: []store.Write{put("/c1", "")}}, &store.ConflictError{Key: "/a", Want: 0, Got: now}},
		{"revision holds", store.Txn{If: []store.Condition{{Key: "/a", Revision: now}}, Writes: []store.Write{put("/n3", "")}}, nil},
		{"revision is old", store.Txn{If: []store.Condition{{Key: "/a", Revision: old}}, Writes: []store.Write{put("/c2", "")}}, &store.ConflictError{Key: "/a", Want: old, Got: now}},
		{"revision of a deleted key", store.Txn{If: []store.Condition{{Key: "/gone", Revision: old}}, Writes: []store.Write{put("/c3", "")}}, &store.ConflictError{Key: "/gone", Want: old, Got: 0}},
		{"one of two", store.Txn{If: []store.Condition{{Key: "/a", Revision: now}, {Key: "/x", Revision: 7}}, Writes: []store.Write{put("/c4", "")}}, &store.ConflictError{Key: "/x", Want: 7, Got: 0}},
		{"the first that fails is named", store.Txn{If: []store.Condition{{Key: "/y", Revision: 8}, {Key: "/x", Revision: 7}}, Writes: []store.Write{put("/c5", "")}}, &store.ConflictError{Key: "/y", Want: 8, Got: 0}},
		{"about a key that is written", store.Txn{If: []store.Condition{store.Absent("/n4")}, Writes: []store.Write{put("/n4", "")}}, nil},
		{"deletion", store.Txn{If: []store.Condition{{Key: "/a", Revision: old}}, Writes: []store.Write{store.Delete("/a")}}, &store.ConflictError{Key: "/a", Want: old, Got: now}},
	} {
		before := list(ctx, t, s, "")
		_, err := s.Commit(ctx, c.txn)
		if c.conflict == nil {
			if err != nil {
				t.Errorf("%s: %v, want no error", c.name, err)
			}
			continue
		}
		var conflict *store.ConflictError
		switch {
		case !errors.Is(err, store.ErrConflict) || !errors.As(err, &conflict):
			t.Errorf("%s: error %v, want ErrConflict and a *ConflictError", c.name, err)
		case *conflict != *c.conflict:
			t.Errorf("%s: error %+v, want %+v", c.name, *conflict, *c.conflict)
		}
		if after := list(ctx, t, s, ""); after.Revision != before.Revision || contents(after) != contents(before) {
			t.Errorf("%s: the store changed from %q to %q, want a conflict to change nothing", c.name, contents(before), contents(after))
		}
	}
}

// testAtomic has readers that must never see half of a transaction.
func testAtomic(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	const rounds = 50
	commit(ctx, t, s, put("/pair/a", "0"), put("/pair/b", "0"), put("/pair/z", "0"))
	batches := watch(ctx, t, s, "/pair/", list(ctx, t, s, "/pair/").Revision)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 1; i <= rounds; i++ {
			v := strconv.Itoa(i)
			if _, err := s.Commit(ctx, store.Txn{Writes: []store.Write{put("/pair/a", v), put("/pair/b", v), put("/pair/z", v)}}); err != nil {
				t.Errorf("Commit: %v", err)
				return
			}
		}
	})
	wg.Go(func() {
		for range rounds {
			snapshot, err := s.List(ctx, "/pair/")
			if err != nil {
				t.Errorf("List: %v", err)
				return
			}
			for _, item := range snapshot.Items {
				if string(item.Value) != string(snapshot.Items[0].Value) || item.Revision != snapshot.Items[0].Revision {
					t.Errorf("List saw %s, want all from one transaction", contents(snapshot))
				}
			}
		}
	})
	wg.Wait()
	for i := 1; i <= rounds && !t.Failed(); i++ {
		batch := receive(t, batches)
		if want := fmt.Sprintf("/pair/a=%d /pair/b=%[1]d /pair/z=%[1]d", i); changes(batch) != want {
			t.Fatalf("watch got %q, want %q: one batch a commit", changes(batch), want)
		}
	}
}

func testNothing(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	revision := commit(ctx, t, s, put("/a", "1"))
	batches := watch(ctx, t, s, "/", revision)
	for _, txn := range []store.Txn{
		{},
		{If: []store.Condition{{Key: "/a", Revision: revision}}},
		{Writes: []store.Write{store.Delete("/x"), store.Delete("/y")}},
	} {
		got, err := s.Commit(ctx, txn)
		if err != nil || got != revision {
			t.Errorf("Commit of %+v, which changes nothing = %d, %v; want the current revision %d", txn, got, err, revision)
		}
	}
	next := commit(ctx, t, s, put("/b", "1"), store.Delete("/x"))
	if batch := receive(t, batches); batch.Revision != next || changes(batch) != "/b=1" {
		t.Errorf("watch got %q at %d, want %q at %d and nothing before it", changes(batch), batch.Revision, "/b=1", next)
	}
}

func testInvalidKeys(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	revision := commit(ctx, t, s, put("/a", "1"))
	for name, key := range map[string]string{
		"empty":              "",
		"relative":           "a/b",
		"root":               "/",
		"empty last segment": "/a/",
		"empty segment":      "/a//b",
		"control character":  "/a\x00b",
		"newline":            "/a\nb",
		"not UTF-8":          "/a\xff",
		"too long":           "/" + strings.Repeat("x", store.MaxKeyBytes),
	} {
		for _, txn := range []store.Txn{
			{Writes: []store.Write{put("/good", "x"), put(key, "x")}},
			{Writes: []store.Write{put("/good", "x"), store.Delete(key)}},
			{If: []store.Condition{store.Absent(key)}, Writes: []store.Write{put("/good", "x")}},
		} {
			_, err := s.Commit(ctx, txn)
			var bad *store.KeyError
			if !errors.As(err, &bad) || bad.Key != key || !errors.Is(err, store.ErrInvalid) {
				t.Errorf("%s: Commit with key %.20q: %v, want a *KeyError for it", name, key, err)
			}
		}
	}
	for name, txn := range map[string]store.Txn{
		"same key twice":     {Writes: []store.Write{put("/d", "1"), put("/good", "x"), put("/d", "2")}},
		"put and delete":     {Writes: []store.Write{put("/d", "1"), store.Delete("/d")}},
		"negative revision":  {If: []store.Condition{{Key: "/d", Revision: -1}}, Writes: []store.Write{put("/good", "x")}},
		"deletion of value":  {Writes: []store.Write{put("/good", "x"), {Key: "/d", Delete: true, Value: []byte("x")}}},
		"deletion and lease": {Writes: []store.Write{put("/good", "x"), {Key: "/d", Delete: true, Lease: "x"}}},
	} {
		_, err := s.Commit(ctx, txn)
		var bad *store.KeyError
		if !errors.As(err, &bad) || bad.Key != "/d" {
			t.Errorf("%s: %v, want a *KeyError for /d", name, err)
		}
	}
	for _, prefix := range []string{"a", "//", "/a//", "/\xff"} {
		if _, err := s.List(ctx, prefix); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("List(%q): %v, want ErrInvalid", prefix, err)
		}
		if _, err := s.Watch(ctx, prefix, 0); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Watch(%q): %v, want ErrInvalid", prefix, err)
		}
	}
	if after := list(ctx, t, s, ""); after.Revision != revision || contents(after) != "/a=1" {
		t.Errorf("after refused transactions the store has %q at %d, want %q at %d: refused whole", contents(after), after.Revision, "/a=1", revision)
	}
}

func testLimits(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	many := func(n int) (conditions []store.Condition, writes []store.Write) {
		for i := range n {
			key := fmt.Sprintf("/many/%03d", i)
			conditions = append(conditions, store.Absent(key))
			writes = append(writes, put(key, "x"))
		}
		return conditions, writes
	}
	conditions, writes := many(store.MaxTxnOps + 1)
	large := store.MaxTxnBytes - len("/large") - 64
	for name, txn := range map[string]store.Txn{
		"writes":     {Writes: writes},
		"conditions": {If: conditions, Writes: []store.Write{put("/x", "")}},
		"bytes":      {Writes: []store.Write{store.Put("/large", make([]byte, large+1))}},
	} {
		_, err := s.Commit(ctx, txn)
		var limit *store.LimitError
		if !errors.As(err, &limit) || !errors.Is(err, store.ErrTooLarge) || limit.What != name || limit.Got != limit.Max+1 {
			t.Errorf("one too many %s: %v, want a *LimitError that says so", name, err)
		}
	}
	if after := list(ctx, t, s, ""); len(after.Items) != 0 {
		t.Fatalf("after refused transactions the store has %d items, want none", len(after.Items))
	}
	// All limits at once: this is what a store promises to take.
	conditions, writes = nil, nil
	most := store.MaxTxnBytes
	for i := range store.MaxTxnOps {
		key := fmt.Sprintf("/most/%03d/", i)
		key += strings.Repeat("k", store.MaxKeyBytes-len(key))
		conditions = append(conditions, store.Absent(key))
		writes = append(writes, put(key, "x"))
		most -= 2*len(key) + 1 + 2*64
	}
	writes[0].Value = make([]byte, most+1)
	before, err := s.Commit(ctx, store.Txn{If: conditions, Writes: writes})
	if err != nil {
		t.Fatalf("the largest transaction: %v", err)
	}
	// And the same once more, which conflicts.
	var conflict *store.ConflictError
	if _, err := s.Commit(ctx, store.Txn{If: conditions, Writes: writes}); !errors.As(err, &conflict) ||
		*conflict != (store.ConflictError{Key: conditions[0].Key, Got: before}) {
		t.Errorf("the largest transaction again: %.200v, want a conflict at its first key", err)
	}
	for i := range writes {
		writes[i] = store.Delete(writes[i].Key)
	}
	commit(ctx, t, s, writes...)

	conditions, writes = many(store.MaxTxnOps)
	if _, err := s.Commit(ctx, store.Txn{If: conditions, Writes: writes}); err != nil {
		t.Errorf("as many operations as allowed: %v", err)
	}
	key := "/" + strings.Repeat("k", store.MaxKeyBytes-1)
	commit(ctx, t, s, put(key, "long"))
	commit(ctx, t, s, store.Put("/large", make([]byte, large)))
	if after := list(ctx, t, s, ""); len(after.Items) != store.MaxTxnOps+2 {
		t.Errorf("store has %d items, want %d", len(after.Items), store.MaxTxnOps+2)
	} else if item, _, _ := store.Get(ctx, s, "/large"); len(item.Value) != large {
		t.Errorf("/large has %d bytes, want %d", len(item.Value), large)
	}
}

// testCounter increments from many goroutines, by reading and writing back. At
// first all read before any writes, so that exactly one may win each round; then
// freely.
func testCounter(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	const workers, rounds, each = 8, 10, 25
	for round := range rounds {
		item, _, err := store.Get(ctx, s, "/counter")
		if err != nil {
			t.Fatalf("Get: %v", err)
		}
		var won atomic.Int32
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				_, err := s.Commit(ctx, store.Txn{
					If:     []store.Condition{{Key: "/counter", Revision: item.Revision}},
					Writes: []store.Write{put("/counter", strconv.Itoa(round+1))},
				})
				switch {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, store.ErrConflict):
					t.Errorf("Commit: %v, want success or ErrConflict", err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d of %d writers that had read the same revision could write, want 1", won.Load(), workers)
		}
	}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				if err := increment(ctx, s, "/counter"); err != nil {
					t.Errorf("increment: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	item, _, err := store.Get(ctx, s, "/counter")
	if want := strconv.Itoa(rounds + workers*each); err != nil || string(item.Value) != want {
		t.Errorf("counter is %q (%v) after %s increments: conditions let two writers pass, or refused both", item.Value, err, want)
	}
}

func increment(ctx context.Context, s store.Store, key string) error {
	for {
		item, _, err := store.Get(ctx, s, key)
		if err != nil {
			return err
		}
		n, _ := strconv.Atoi(string(item.Value)) // absent: 0
		_, err = s.Commit(ctx, store.Txn{
			If:     []store.Condition{{Key: key, Revision: item.Revision}},
			Writes: []store.Write{put(key, strconv.Itoa(n+1))},
		})
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}

func testEndedContext(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	revision := commit(ctx, t, s, put("/a", "1"))
	l := lease(ctx, t, s, h.TTL)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, list := s.List(ended, "/")
	_, watch := s.Watch(ended, "/", revision)
	_, commit := s.Commit(ended, store.Txn{Writes: []store.Write{put("/b", "1")}})
	_, grant := s.Lease(ended, h.TTL)
	_, _, get := store.Get(ended, s, "/a")
	for call, err := range map[string]error{
		"List": list, "Watch": watch, "Commit": commit, "Lease": grant, "Get": get,
		"KeepAlive": l.KeepAlive(ended), "Revoke": l.Revoke(ended),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with an ended context: %v, want %v", call, err, context.Canceled)
		}
	}
}
