package node

import (
	"context"
	"errors"
	"testing"

	"github.com/orchestrate-go/orchestrate/store"
	storemem "github.com/orchestrate-go/orchestrate/store/memory"
)

// racing is a store whose next commit fails after something else was done.
type racing struct {
	store.Store
	during func()
}

func (r *racing) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if r.during == nil {
		return r.Store.Commit(ctx, txn)
	}
	r.during()
	r.during = nil
	return 0, errors.New("no way to the store")
}

// What could not be written does not take the place of what is newer.
func TestOutboxKeepsTheNewest(t *testing.T) {
	s := storemem.New(storemem.Options{})
	defer s.Close()
	r := &racing{Store: s}
	o := newJournal(r)
	o.put("/status/n1/a", "old", false)
	o.put("/status/n1/b", "b", false)
	r.during = func() { o.put("/status/n1/a", "new", false) }
	if err := o.flush(t.Context()); err == nil {
		t.Fatal("a commit that failed is none of flush's business")
	}
	if err := o.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"/status/n1/a": `"new"`, "/status/n1/b": `"b"`} {
		if item, _, err := store.Get(t.Context(), s, key); err != nil || string(item.Value) != want {
			t.Errorf("%s is %s, %v; want %s", key, item.Value, err, want)
		}
	}
}
