package table

import (
	"bytes"
	"slices"
	"strings"

	"github.com/orchestrate-go/orchestrate/store"
)

// Draft is a sequence of commits on top of a table that are not visible yet.
// Each sees those before it. It is used by the one writer only.
type Draft struct {
	table    *Table
	revision int64
	count    int
	overlay  map[string]*store.Item // drafted state of changed keys; nil: deleted
	batches  []store.Batch
	ended    []store.LeaseID
}

// Draft begins a draft on what is published.
func (t *Table) Draft() *Draft {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return &Draft{table: t, revision: t.revision, count: t.items.count, overlay: map[string]*store.Item{}}
}

// Batches returns the drafted commits, in order.
func (d *Draft) Batches() []store.Batch { return d.batches }

// Revision returns the revision after the drafted commits.
func (d *Draft) Revision() int64 { return d.revision }

// Items returns the drafted state of every changed key: nil if it is deleted.
func (d *Draft) Items() map[string]*store.Item { return d.overlay }

// Count returns the number of items after the drafted commits.
func (d *Draft) Count() int { return d.count }

// Own returns a deep copy of txn, which the caller of a store may change as soon
// as its call has returned: also when that was early because its context ended.
func Own(txn store.Txn) store.Txn {
	owned := store.Txn{If: slices.Clone(txn.If), Writes: slices.Clone(txn.Writes)}
	for i := range owned.Writes {
		owned.Writes[i].Value = bytes.Clone(owned.Writes[i].Value)
	}
	return owned
}

// Commit drafts txn, which must be valid and owned, and returns its revision.
// With an error the draft is as it was.
func (d *Draft) Commit(txn store.Txn) (int64, error) {
	for _, c := range txn.If {
		got := int64(0)
		if item := d.item(c.Key); item != nil {
			got = item.Revision
		}
		if got != c.Revision {
			return 0, &store.ConflictError{Key: c.Key, Want: c.Revision, Got: got}
		}
	}
	for _, w := range txn.Writes {
		if w.Lease != "" && !d.alive(w.Lease) {
			return 0, store.ErrLeaseExpired
		}
	}
	revision := d.revision + 1
	changes := make([]store.Change, 0, len(txn.Writes))
	for _, w := range txn.Writes {
		old := d.item(w.Key)
		if w.Delete {
			if old != nil {
				changes = append(changes, deletion(w.Key, revision))
			}
			continue
		}
		item := store.Item{Key: w.Key, Value: w.Value, Revision: revision, Created: revision, Lease: w.Lease}
		if old != nil {
			item.Created = old.Created
		}
		changes = append(changes, store.Change{Item: item})
	}
	d.add(revision, changes)
	return d.revision, nil
}

// Expire drafts the end of a lease: one commit that deletes its items, if it
// has any.
func (d *Draft) Expire(id store.LeaseID) int64 {
	var keys []string
	d.table.mu.RLock()
	if l := d.table.leases[id]; l != nil {
		for key := range l.keys {
			if _, drafted := d.overlay[key]; !drafted {
				keys = append(keys, key)
			}
		}
	}
	d.table.mu.RUnlock()
	for key, item := range d.overlay {
		if item != nil && item.Lease == id {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, strings.Compare)
	d.ended = append(d.ended, id)
	return d.Remove(keys)
}

// Remove drafts one commit that deletes keys, all of which must exist.
func (d *Draft) Remove(keys []string) int64 {
	changes := make([]store.Change, len(keys))
	for i, key := range keys {
		changes[i] = deletion(key, d.revision+1)
	}
	d.add(d.revision+1, changes)
	return d.revision
}

func deletion(key string, revision int64) store.Change {
	return store.Change{Item: store.Item{Key: key, Revision: revision}, Deleted: true}
}

func (d *Draft) add(revision int64, changes []store.Change) {
	if len(changes) == 0 {
		return
	}
	d.revision = revision
	d.batches = append(d.batches, store.Batch{Revision: revision, Changes: changes})
	for i := range changes {
		item := &changes[i].Item
		existed := d.item(item.Key) != nil
		switch {
		case changes[i].Deleted: // only what existed is deleted
			item = nil
			d.count--
		case !existed:
			d.count++
		}
		d.overlay[changes[i].Item.Key] = item
	}
}

func (d *Draft) item(key string) *store.Item {
	if item, drafted := d.overlay[key]; drafted {
		return item
	}
	return d.table.items.get(key)
}

func (d *Draft) alive(id store.LeaseID) bool {
	if slices.Contains(d.ended, id) {
		return false
	}
	d.table.mu.RLock()
	defer d.table.mu.RUnlock()
	l := d.table.leases[id]
	return l != nil && !l.gone
}
