package table

import (
	"context"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/store"
)

// step is a commit, or the end of a lease.
type step struct {
	txn    store.Txn
	expire store.LeaseID
}

func (s step) draft(d *Draft) string {
	if s.expire != "" {
		return fmt.Sprint(d.Expire(s.expire))
	}
	revision, err := d.Commit(s.txn)
	return fmt.Sprint(revision, err)
}

// TestGroupingChangesNothing drafts the same steps one by one and in groups. All
// results, items, and revisions must be the same: sharing a sync is all that a
// group shares.
func TestGroupingChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		keys := rapid.SampledFrom([]string{"/a", "/b", "/c", "/d"})
		leases := rapid.SampledFrom([]store.LeaseID{"1", "2", "3"})
		opts := Options{History: 1000, HistoryBytes: 1 << 20}
		single, grouped := New(opts, 0, nil), New(opts, 0, nil)
		for _, table := range []*Table{single, grouped} {
			defer table.Close(store.ErrClosed)
			for range 3 {
				if _, err := table.Grant(context.Background(), time.Hour, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		draft := grouped.Draft()
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			var s step
			switch kind := rapid.IntRange(0, 9).Draw(t, "kind"); {
			case kind == 0:
				s.expire = leases.Draw(t, "expire")
			default:
				for _, key := range rapid.SliceOfNDistinct(keys, 0, 1, rapid.ID).Draw(t, "if") {
					revision := int64(0)
					if item := draft.item(key); item != nil && rapid.Bool().Draw(t, "right") {
						revision = item.Revision
					}
					s.txn.If = append(s.txn.If, store.Condition{Key: key, Revision: revision})
				}
				for _, key := range rapid.SliceOfNDistinct(keys, 0, 3, rapid.ID).Draw(t, "writes") {
					switch rapid.IntRange(0, 3).Draw(t, "write") {
					case 0:
						s.txn.Writes = append(s.txn.Writes, store.Delete(key))
					case 1:
						s.txn.Writes = append(s.txn.Writes, store.Put(key, nil))
					default:
						s.txn.Writes = append(s.txn.Writes, store.PutLeased(key, nil, leases.Draw(t, "lease")))
					}
				}
			}
			one := single.Draft()
			want := s.draft(one)
			single.Publish(one)
			if got := s.draft(draft); got != want {
				t.Fatalf("in a group %+v gives %s, alone %s", s, got, want)
			}
			if rapid.IntRange(0, 4).Draw(t, "publish") == 0 {
				grouped.Publish(draft)
				draft = grouped.Draft()
			}
		}
		count := draft.Count()
		grouped.Publish(draft)
		if grouped.items.count != count {
			t.Fatalf("draft counted %d items, there are %d", count, grouped.items.count)
		}
		got, err := grouped.List(context.Background(), "")
		if err != nil {
			t.Fatal(err)
		}
		want, err := single.List(context.Background(), "")
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("in groups %+v, one by one %+v", got, want)
		}
		if got, want := fmt.Sprint(grouped.history.batches), fmt.Sprint(single.history.batches); got != want {
			t.Fatalf("history in groups\n%s\none by one\n%s", got, want)
		}
		if len(grouped.leases) != len(single.leases) {
			t.Fatalf("%d leases are left, one by one %d", len(grouped.leases), len(single.leases))
		}
		for id, l := range single.leases {
			if got, want := fmt.Sprint(grouped.leases[id].keys), fmt.Sprint(l.keys); got != want {
				t.Fatalf("lease %s has %s, one by one %s", id, got, want)
			}
			for key := range l.keys {
				if item := single.items.get(key); item == nil || item.Lease != id {
					t.Fatalf("lease %s claims %s, which is %v", id, key, item)
				}
			}
		}
	})
}

// TestLeaseLeavesNothing shows that a lease that is over takes no memory, and
// that nothing can be written under one that is revoked but not yet expired by
// the writer.
func TestLeaseLeavesNothing(t *testing.T) {
	ctx := context.Background()
	table := New(Options{History: 10, HistoryBytes: 1 << 20}, 0, nil)
	defer table.Close(store.ErrClosed)
	var late error
	l, err := table.Grant(ctx, time.Hour, func(_ context.Context, id store.LeaseID) error {
		d := table.Draft()
		_, late = d.Commit(store.Txn{Writes: []store.Write{store.PutLeased("/late", nil, id)}})
		d.Expire(id)
		table.Publish(d)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Revoke(ctx); err != nil {
		t.Fatal(err)
	}
	if late != store.ErrLeaseExpired {
		t.Errorf("Commit under a revoked lease: %v, want ErrLeaseExpired", late)
	}
	if len(table.leases) != 0 {
		t.Errorf("%d leases are remembered, want none", len(table.leases))
	}
}
