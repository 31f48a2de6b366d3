package table

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/store"
)

// TestOrdered compares the ordered map with a plain one, through enough items to
// split blocks and enough removals to empty them.
func TestOrdered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var o ordered
		plain := map[string]*store.Item{}
		seed := rapid.Uint32().Draw(t, "seed")
		key := func(i int) string { return fmt.Sprintf("/%d/%d", (uint32(i)*2654435761+seed)%7, i) }
		n := rapid.IntRange(1, 3000).Draw(t, "items")
		for i := range n {
			item := &store.Item{Key: key(i)}
			o.put(item)
			plain[item.Key] = item
		}
		for range rapid.IntRange(0, 3).Draw(t, "changes") {
			from, to := rapid.IntRange(0, n).Draw(t, "from"), rapid.IntRange(0, n).Draw(t, "to")
			remove := rapid.Bool().Draw(t, "remove")
			for i := from; i < to; i++ {
				if remove {
					o.remove(key(i))
					delete(plain, key(i))
				} else {
					item := &store.Item{Key: key(i), Revision: int64(i)}
					o.put(item)
					plain[item.Key] = item
				}
			}
		}
		if o.count != len(plain) {
			t.Fatalf("count is %d, want %d", o.count, len(plain))
		}
		for i := range n {
			if o.get(key(i)) != plain[key(i)] {
				t.Fatalf("get(%q) = %v, want %v", key(i), o.get(key(i)), plain[key(i)])
			}
		}
		for _, prefix := range []string{"", "/", "/3", "/3/", "/3/1", "/6/", "/9", "/", "0"} {
			var want []string
			for _, key := range slices.Sorted(maps.Keys(plain)) {
				if strings.HasPrefix(key, prefix) {
					want = append(want, key)
				}
			}
			var got []string
			for _, item := range o.list(prefix) {
				got = append(got, item.Key)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("list(%q) has %d items %.200q, want %d %.200q", prefix, len(got), got, len(want), want)
			}
		}
		for i, block := range o.blocks {
			if len(block) == 0 || len(block) > blockSize {
				t.Fatalf("block %d has %d items, want 1 to %d", i, len(block), blockSize)
			}
		}
	})
}
