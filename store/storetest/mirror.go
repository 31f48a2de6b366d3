package storetest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/orchestrate-go/orchestrate/store"
)

// mirror is what a prefix must hold according to a snapshot and the batches
// after it. Each batch is checked against what it claims to change.
type mirror struct {
	prefix   string
	revision int64
	items    map[string]store.Item
}

func newMirror(t testing.TB, prefix string, snapshot store.Snapshot) *mirror {
	t.Helper()
	m := &mirror{prefix: prefix, revision: snapshot.Revision, items: map[string]store.Item{}}
	for i, item := range snapshot.Items {
		switch {
		case !strings.HasPrefix(item.Key, prefix):
			t.Fatalf("List(%q) has %q, want only keys with that prefix", prefix, item.Key)
		case i > 0 && snapshot.Items[i-1].Key >= item.Key:
			t.Fatalf("List(%q) has %q before %q, want them sorted and each once", prefix, snapshot.Items[i-1].Key, item.Key)
		case item.Created < 1 || item.Revision < item.Created || snapshot.Revision < item.Revision:
			t.Fatalf("List(%q) at %d: item created %d, written %d; want 1 <= created <= written <= snapshot", prefix, snapshot.Revision, item.Created, item.Revision)
		}
		m.items[item.Key] = item
	}
	return m
}

// apply checks batch and applies it.
func (m *mirror) apply(t testing.TB, batch store.Batch) {
	t.Helper()
	if batch.Revision <= m.revision {
		t.Fatalf("watch of %q: batch at revision %d after %d, want them to grow: nothing twice, each commit as one batch", m.prefix, batch.Revision, m.revision)
	}
	if len(batch.Changes) == 0 {
		t.Fatalf("watch of %q: batch at revision %d has no changes", m.prefix, batch.Revision)
	}
	m.revision = batch.Revision
	for _, c := range batch.Changes {
		old, existed := m.items[c.Item.Key]
		created := batch.Revision
		if existed {
			created = old.Created
		}
		switch {
		case !strings.HasPrefix(c.Item.Key, m.prefix):
			t.Fatalf("watch of %q: got a change of %q", m.prefix, c.Item.Key)
		case c.Item.Revision != batch.Revision:
			t.Fatalf("watch of %q: change of %q is at revision %d in a batch at %d", m.prefix, c.Item.Key, c.Item.Revision, batch.Revision)
		case c.Deleted && !existed:
			t.Fatalf("watch of %q: deletion of %q at %d, which did not exist: a change was lost", m.prefix, c.Item.Key, batch.Revision)
		case c.Deleted:
			delete(m.items, c.Item.Key)
		case c.Item.Created != created:
			t.Fatalf("watch of %q: %q written at %d is created at %d, want %d", m.prefix, c.Item.Key, batch.Revision, c.Item.Created, created)
		default:
			m.items[c.Item.Key] = c.Item
		}
	}
}

// equal checks that the mirror is what a snapshot shows. The snapshot's revision
// may be newer, for the sake of changes elsewhere.
func (m *mirror) equal(t testing.TB, snapshot store.Snapshot) {
	t.Helper()
	if snapshot.Revision < m.revision {
		t.Fatalf("List(%q) is at %d, after a watch delivered %d", m.prefix, snapshot.Revision, m.revision)
	}
	other := newMirror(t, m.prefix, snapshot)
	for key, item := range other.items {
		if mine, ok := m.items[key]; !ok || !sameItem(mine, item) {
			t.Errorf("watch of %q left %s, List has %s: a change was lost or wrong", m.prefix, show(m.items, key), show(other.items, key))
		}
	}
	for key := range m.items {
		if _, ok := other.items[key]; !ok {
			t.Errorf("watch of %q left %s, List does not have it: a deletion was lost", m.prefix, show(m.items, key))
		}
	}
}

func sameItem(a, b store.Item) bool {
	return a.Key == b.Key && bytes.Equal(a.Value, b.Value) && a.Revision == b.Revision && a.Created == b.Created && a.Lease == b.Lease
}

func show(items map[string]store.Item, key string) string {
	item, ok := items[key]
	if !ok {
		return fmt.Sprintf("%q absent", key)
	}
	return fmt.Sprintf("%q=%.20q (created %d, written %d, lease %q)", key, item.Value, item.Created, item.Revision, item.Lease)
}

// describe is a short text of writes: "/a=x -/b".
func describe(writes []store.Write) string {
	var words []string
	for _, w := range writes {
		if w.Delete {
			words = append(words, "-"+w.Key)
		} else {
			words = append(words, fmt.Sprintf("%s=%.20s", w.Key, w.Value))
		}
	}
	return strings.Join(words, " ")
}

// changes is the same of a batch.
func changes(batch store.Batch) string {
	writes := make([]store.Write, len(batch.Changes))
	for i, c := range batch.Changes {
		writes[i] = store.Write{Key: c.Item.Key, Value: c.Item.Value, Delete: c.Deleted}
	}
	return describe(writes)
}

// contents is the same of a snapshot.
func contents(snapshot store.Snapshot) string {
	writes := make([]store.Write, len(snapshot.Items))
	for i, item := range snapshot.Items {
		writes[i] = store.Write{Key: item.Key, Value: item.Value}
	}
	return describe(writes)
}

// sorted is describe with the writes in order of key.
func sorted(writes []store.Write) string {
	writes = slices.Clone(writes)
	slices.SortFunc(writes, func(a, b store.Write) int { return strings.Compare(a.Key, b.Key) })
	return describe(writes)
}
