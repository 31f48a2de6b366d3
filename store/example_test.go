package store_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

// Read, change, and write back only if nobody was faster.
func Example() {
	ctx := context.Background()
	s := memory.New(memory.Options{})
	defer s.Close()

	increment := func() error {
		for {
			item, _, err := store.Get(ctx, s, "/counter")
			if err != nil {
				return err
			}
			n, _ := strconv.Atoi(string(item.Value))
			_, err = s.Commit(ctx, store.Txn{
				If:     []store.Condition{{Key: "/counter", Revision: item.Revision}}, // 0 if it is absent
				Writes: []store.Write{store.Put("/counter", []byte(strconv.Itoa(n+1)))},
			})
			if !errors.Is(err, store.ErrConflict) {
				return err
			}
		}
	}
	for range 3 {
		if err := increment(); err != nil {
			fmt.Println(err)
		}
	}
	item, _, _ := store.Get(ctx, s, "/counter")
	fmt.Printf("%s, written at revision %d\n", item.Value, item.Revision)

	_, err := s.Commit(ctx, store.Txn{If: []store.Condition{store.Absent("/counter")}})
	fmt.Println(err)
	// Output:
	// 3, written at revision 3
	// conflict at /counter: want absent, but it is at revision 3
}

// A snapshot, and everything after it.
func ExampleStore_watch() {
	ctx := context.Background()
	s := memory.New(memory.Options{})
	defer s.Close()
	put := func(key, value string) {
		_, _ = s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put(key, []byte(value))}})
	}

	put("/tasks/n1/web.1", "running")
	snapshot, _ := s.List(ctx, "/tasks/n1/")
	batches, _ := s.Watch(ctx, "/tasks/n1/", snapshot.Revision)
	put("/tasks/n2/web.2", "running") // not ours
	put("/tasks/n1/web.3", "running")

	fmt.Println("at", snapshot.Revision, "there was", snapshot.Items[0].Key)
	batch := <-batches
	fmt.Println("at", batch.Revision, "came", batch.Changes[0].Item.Key)
	// Output:
	// at 1 there was /tasks/n1/web.1
	// at 3 came /tasks/n1/web.3
}

// printer is a Follower.
type printer struct {
	listed  func()
	changed func()
}

func (p printer) Reset(s store.Snapshot) error {
	fmt.Println("all:", len(s.Items), "items")
	p.listed()
	return nil
}

func (p printer) Apply(b store.Batch) error {
	for _, c := range b.Changes {
		fmt.Println("changed:", c.Item.Key, "deleted:", c.Deleted)
	}
	p.changed()
	return nil
}

func ExampleFollow() {
	ctx, cancel := context.WithCancel(context.Background())
	s := memory.New(memory.Options{})
	defer s.Close()
	alive, _ := s.Lease(ctx, time.Minute)
	_, _ = s.Commit(ctx, store.Txn{Writes: []store.Write{store.PutLeased("/alive/n1", nil, alive.ID())}})

	err := store.Follow(ctx, s, "/alive/", printer{
		listed:  func() { _ = alive.Revoke(ctx) }, // the node leaves
		changed: cancel,                           // we have seen enough
	})
	fmt.Println(err)
	// Output:
	// all: 1 items
	// changed: /alive/n1 deleted: true
	// context canceled
}

// The leader makes every write conditional on its leadership.
func ExampleElection() {
	ctx := context.Background()
	s := memory.New(memory.Options{})
	defer s.Close()

	leadership, err := store.Election{Store: s, ID: "machine-1"}.Campaign(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	write := store.Txn{
		If:     []store.Condition{leadership.Fence()},
		Writes: []store.Write{store.Put("/tasks/n1/web.1", nil)},
	}
	_, err = s.Commit(ctx, write)
	fmt.Println("as leader:", err)

	_ = leadership.Resign(ctx)
	_, err = s.Commit(ctx, write)
	fmt.Println("afterwards:", err)
	// Output:
	// as leader: <nil>
	// afterwards: conflict at /leader: want at revision 1, but it is absent
}
