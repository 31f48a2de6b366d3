package orchestratetest

import (
	"math/bits"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
)

// A clock that is wrong shows in what its owner writes, and in how it takes what
// others have written. All goroutines of a bubble have one clock, so the times in
// records are changed on their way instead: to what the clock tells in what its owner
// writes, and to what is meant by that in what it reads.
//
// A clock that runs fast or slow shows in timers too. Those that safety rests on are
// the world's, and go by it: how long a lease is believed in without a renewal, and
// how long a machine holds what must not run twice. The others are of the bubble.

// drift is one fault of a clock: it is set ahead, and runs at another rate since.
type drift struct {
	by    time.Duration
	ppm   int64
	since time.Time
}

// clock is all that is wrong with one. It is not changed once it is there.
type clock []*drift

// million is what a rate is in parts of; a clock is not off by half of it or more.
const million, maxRate = 1_000_000, 500_000

// rate is how much faster the clock runs now, in parts per million.
func (c clock) rate() (ppm int64) {
	for _, d := range c {
		ppm += d.ppm
	}
	return ppm
}

// ahead is by how much the clock is ahead at t: in whole numbers, which are the same
// on every machine, and rounded once, so that it never goes backwards.
func (c clock) ahead(t time.Time) time.Duration {
	var sum time.Duration
	var parts int64 // millionths of a nanosecond
	for _, d := range c {
		sum += d.by
		if gone := int64(t.Sub(d.since)); gone > 0 {
			sum += time.Duration(gone / million * d.ppm)
			parts += gone % million * d.ppm
		}
	}
	whole := parts / million
	if parts%million < 0 {
		whole--
	}
	return sum + time.Duration(whole)
}

// tells is what the clock shows at t.
func (c clock) tells(t time.Time) time.Time { return t.Add(c.ahead(t)) }

// means is the last moment at which the clock shows no more than t. So what its owner
// has written is the same when it reads it and writes it again.
func (c clock) means(t time.Time) time.Time {
	at := t
	for near := false; !near; { // it comes nearer by half each time, at least
		next := t.Add(-c.ahead(at))
		near = next.Sub(at).Abs() <= 2
		at = next
	}
	for c.tells(at).After(t) {
		at = at.Add(-1)
	}
	for !c.tells(at.Add(1)).After(t) {
		at = at.Add(1)
	}
	return at
}

// counts is how long it takes until the actor's clock has counted d. mu is held.
func (a *actor) counts(d time.Duration) time.Duration {
	if len(a.clock) == 0 || d > always/2 {
		return d
	}
	hi, lo := bits.Mul64(uint64(max(d, 0)), million)
	took, _ := bits.Div64(hi, lo, uint64(million+a.clock.rate())) // no overflow: twice a century at most
	return time.Duration(took)
}

func (w *world) clockOf(a *actor) clock {
	w.mu.Lock()
	defer w.mu.Unlock()
	return a.clock
}

// shift changes every time of a JSON document. What is no time in RFC 3339 stays as
// it is, and so does the zero time.
func shift(doc []byte, to func(time.Time) time.Time) []byte {
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
		out = to(t).AppendFormat(out, time.RFC3339Nano)
		from, i = end, end
	}
	if out == nil {
		return doc
	}
	return append(out, doc[from:]...)
}

func shiftTxn(txn store.Txn, to func(time.Time) time.Time) store.Txn {
	writes := make([]store.Write, len(txn.Writes))
	for i, w := range txn.Writes {
		w.Value = shift(w.Value, to)
		writes[i] = w
	}
	return store.Txn{If: txn.If, Writes: writes}
}

func shiftBatch(b store.Batch, to func(time.Time) time.Time) store.Batch {
	changes := make([]store.Change, len(b.Changes))
	for i, c := range b.Changes {
		c.Item.Value = shift(c.Item.Value, to)
		changes[i] = c
	}
	b.Changes = changes
	return b
}
