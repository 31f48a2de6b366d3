package orchestratetest

import (
	"time"

	"github.com/orchestrate-go/orchestrate/store"
)

// A clock that is wrong shows in what its owner writes, and in how it takes what
// others have written. All goroutines of a bubble have one clock, so the times in
// records are shifted on their way instead: by as much as the clock is ahead in
// what its owner writes, and back in what it reads.

func (w *world) skewOf(a *actor) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return a.skew
}

// shift moves every time of a JSON document by k. What is no time in RFC 3339
// stays as it is, and so does the zero time.
func shift(doc []byte, k time.Duration) []byte {
	const shape = len(`"2006-01-02T15:04:05`)
	var out []byte
	from := 0
	for i := 0; i+shape < len(doc); i++ {
		if doc[i] != '"' || doc[i+5] != '-' || doc[i+8] != '-' || doc[i+11] != 'T' || doc[i+14] != ':' || doc[i+17] != ':' {
			continue
		}
		end := i + 1
		for end < len(doc) && doc[end] != '"' && end-i < 40 {
			end++
		}
		t, err := time.Parse(time.RFC3339Nano, string(doc[i+1:end]))
		if err != nil || t.IsZero() {
			continue
		}
		out = append(out, doc[from:i+1]...)
		out = t.Add(k).AppendFormat(out, time.RFC3339Nano)
		from, i = end, end
	}
	if out == nil {
		return doc
	}
	return append(out, doc[from:]...)
}

func shiftTxn(txn store.Txn, k time.Duration) store.Txn {
	writes := make([]store.Write, len(txn.Writes))
	for i, w := range txn.Writes {
		w.Value = shift(w.Value, k)
		writes[i] = w
	}
	return store.Txn{If: txn.If, Writes: writes}
}

func shiftBatch(b store.Batch, k time.Duration) store.Batch {
	changes := make([]store.Change, len(b.Changes))
	for i, c := range b.Changes {
		c.Item.Value = shift(c.Item.Value, k)
		changes[i] = c
	}
	b.Changes = changes
	return b
}
