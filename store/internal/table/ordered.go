package table

import (
	"slices"
	"sort"
	"strings"

	"github.com/orchestrate-go/orchestrate/store"
)

// blockSize bounds the items of one block of an ordered map. An insertion moves
// at most a block's pointers, whatever the number of items.
const blockSize = 256

// ordered is a map sorted by key: a sorted list of sorted blocks. It was chosen
// over a balanced tree for its size in code; with 100 000 items an insertion
// still moves no more than a few kilobytes.
type ordered struct {
	blocks [][]*store.Item // none is empty
	count  int
}

// find returns where key is, or where it would be inserted.
func (o *ordered) find(key string) (block, index int, found bool) {
	// The block that can hold key is the last one that starts at or before it.
	block = sort.Search(len(o.blocks), func(i int) bool { return o.blocks[i][0].Key > key }) - 1
	if block < 0 {
		return 0, 0, false
	}
	index, found = slices.BinarySearchFunc(o.blocks[block], key, func(i *store.Item, key string) int {
		return strings.Compare(i.Key, key)
	})
	return block, index, found
}

func (o *ordered) get(key string) *store.Item {
	if b, i, found := o.find(key); found {
		return o.blocks[b][i]
	}
	return nil
}

// put inserts item or replaces the one at its key.
func (o *ordered) put(item *store.Item) {
	b, i, found := o.find(item.Key)
	switch {
	case found:
		o.blocks[b][i] = item
		return
	case len(o.blocks) == 0:
		o.blocks = append(o.blocks, []*store.Item{item})
	default:
		o.blocks[b] = slices.Insert(o.blocks[b], i, item)
		if full := o.blocks[b]; len(full) > blockSize {
			half := len(full) / 2
			o.blocks = slices.Insert(o.blocks, b+1, slices.Clone(full[half:]))
			clear(full[half:])
			o.blocks[b] = full[:half]
		}
	}
	o.count++
}

func (o *ordered) remove(key string) {
	b, i, found := o.find(key)
	if !found {
		return
	}
	o.blocks[b] = slices.Delete(o.blocks[b], i, i+1)
	if len(o.blocks[b]) == 0 {
		o.blocks = slices.Delete(o.blocks, b, b+1)
	}
	o.count--
}

// list copies the items whose key starts with prefix, in order.
func (o *ordered) list(prefix string) []store.Item {
	if prefix == "" {
		items := make([]store.Item, 0, o.count)
		for _, block := range o.blocks {
			for _, item := range block {
				items = append(items, *item)
			}
		}
		return items
	}
	var items []store.Item
	b, i, _ := o.find(prefix)
	for ; b < len(o.blocks); b, i = b+1, 0 {
		for _, item := range o.blocks[b][i:] {
			if !strings.HasPrefix(item.Key, prefix) {
				return items
			}
			items = append(items, *item)
		}
	}
	return items
}
