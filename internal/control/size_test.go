package control_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// TestSizeIsTold holds that nodes are told how many they are once that makes a
// difference to their leases, and not each time that one joins.
func TestSizeIsTold(t *testing.T) {
	config := control.Config{Decode: decode, Place: evenly{}, Renewals: 40}
	s := control.NewState(config)
	kv, rev, told := map[string]store.Item{}, int64(0), []string{}
	commit := func(writes ...store.Write) {
		rev++
		b := store.Batch{Revision: rev}
		for _, w := range writes {
			item := store.Item{Key: w.Key, Value: w.Value, Revision: rev}
			kv[w.Key] = item
			if w.Delete {
				delete(kv, w.Key)
			}
			b.Changes = append(b.Changes, store.Change{Item: item, Deleted: w.Delete})
		}
		s.Apply(b, epoch)
	}
	plan := func() {
		for _, w := range s.Plan(epoch).Writes {
			told = append(told, fmt.Sprintf("%s %s", w.Key, w.Value))
			commit(w)
		}
	}
	key := func(i int) string { return fmt.Sprint(record.Nodes, "n", i) }
	for i := range 40 {
		commit(store.Put(key(i), marshal(t, record.Node{Node: scheduler.Node{ID: fmt.Sprint("n", i)}})))
		plan()
	}
	for i := range 35 {
		commit(store.Delete(key(i)))
		plan()
	}
	plan()
	want := []string{ // 40 renewals a second are ten nodes' with a TTL of a second
		`/fleet/size {"nodes":14,"renewals":40}`, `/fleet/size {"nodes":19,"renewals":40}`, `/fleet/size {"nodes":25,"renewals":40}`,
		`/fleet/size {"nodes":33,"renewals":40}`, `/fleet/size {"nodes":43,"renewals":40}`, `/fleet/size {"nodes":25,"renewals":40}`,
		`/fleet/size {"nodes":14,"renewals":40}`, `/fleet/size {"nodes":10,"renewals":40}`,
	}
	if got := strings.Join(told, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("nodes are told\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	// Another leader has nothing to add, and one with another limit has.
	for limit, want := range map[int]string{40: "", 0: `{"nodes":266,"renewals":1000}`, -1: `{"nodes":10,"renewals":0}`} {
		config.Renewals = limit
		s := control.NewState(config)
		s.Load(store.Snapshot{Revision: rev, Items: []store.Item{kv[record.SizeKey]}}, epoch)
		var got string
		for _, w := range s.Plan(epoch).Writes {
			got += string(w.Value)
		}
		if got != want {
			t.Errorf("a leader with a limit of %d writes %q, want %q", limit, got, want)
		}
	}
}
