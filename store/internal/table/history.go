package table

import (
	"slices"
	"sort"

	"github.com/orchestrate-go/orchestrate/store"
)

// history is the latest batches, oldest first.
type history struct {
	batches   []store.Batch
	bytes     int   // of all batches
	compacted int64 // everything after this revision is kept
}

// after returns the batches with a greater revision than revision.
func (h *history) after(revision int64) []store.Batch {
	i := sort.Search(len(h.batches), func(i int) bool { return h.batches[i].Revision > revision })
	return h.batches[i:]
}

// add appends batch and forgets the oldest ones beyond the bounds. The newest
// is always kept, however large.
func (h *history) add(batch store.Batch, opts Options) {
	h.batches = append(h.batches, batch)
	h.bytes += size(batch)
	drop, dropped := 0, 0
	for len(h.batches)-drop > 1 && (len(h.batches)-drop > opts.History || h.bytes-dropped > opts.HistoryBytes) {
		dropped += size(h.batches[drop])
		drop++
	}
	h.forget(drop, dropped)
}

// compact forgets all up to and including revision.
func (h *history) compact(revision int64) {
	drop, dropped := 0, 0
	for drop < len(h.batches) && h.batches[drop].Revision <= revision {
		dropped += size(h.batches[drop])
		drop++
	}
	h.forget(drop, dropped)
	h.compacted = max(h.compacted, revision)
}

// forget drops the n oldest batches. They are cleared at once, so that their
// values can be freed; the array is given up when append outgrows it.
func (h *history) forget(n, bytes int) {
	if n == 0 {
		return
	}
	h.compacted = h.batches[n-1].Revision
	h.bytes -= bytes
	clear(h.batches[:n])
	h.batches = h.batches[n:]
	if len(h.batches) == 0 {
		h.batches = slices.Clip(h.batches)
	}
}

func size(batch store.Batch) int {
	n := 64
	for i := range batch.Changes {
		n += 128 + len(batch.Changes[i].Item.Key) + len(batch.Changes[i].Item.Value)
	}
	return n
}
