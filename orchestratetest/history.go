package orchestratetest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc32"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
)

// EventKind is what an [Event] tells of.
type EventKind string

// The kinds of event.
const (
	FaultBegan  EventKind = "fault"       // of the script or at random
	FaultEnded  EventKind = "fault-ended" // it is over
	Acted       EventKind = "action"      // of the application; Detail is how it ended
	LeaderMade  EventKind = "leader"      // a control plane leads
	NodeUp      EventKind = "node-up"     // the fleet holds the node to be alive
	NodeDown    EventKind = "node-down"
	TaskPlaced  EventKind = "task-placed"
	TaskState   EventKind = "task-state" // as its node says; Detail is the state
	TaskStop    EventKind = "task-stop"  // it is told to; Detail is why
	TaskGone    EventKind = "task-gone"  // its record is deleted
	RolloutDone EventKind = "rollout"    // one has ended; Detail is how
	ProcessBad  EventKind = "process"    // an agent or a control plane ended by itself
	Violated    EventKind = "violated"   // an invariant does not hold
)

// Event is something that happened in a simulated world.
type Event struct {
	At      time.Duration // since the begin
	Kind    EventKind
	Subject string // a node, a task, a service or a fault
	Detail  string
	// Revision of the store that it was written at; 0 of what was not.
	Revision int64
}

// String is the event in one line.
func (e Event) String() string {
	s := fmt.Sprintf("%12v  %-11s  %s", e.At, e.Kind, e.Subject)
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// history is what has happened: the last events, how many there were of each
// kind, and a hash of all of them and of every write to the store.
type history struct {
	keep   int
	events []Event // the last, in a ring once it is full
	next   int
	counts map[EventKind]int
	sum    hash.Hash
	buf    []byte
}

func newHistory(keep int) *history {
	return &history{keep: keep, counts: map[EventKind]int{}, sum: sha256.New()}
}

func (h *history) add(e Event) {
	h.counts[e.Kind]++
	h.buf = append(h.buf[:0], 'e')
	h.buf = binary.BigEndian.AppendUint64(h.buf, uint64(e.At))
	for _, s := range []string{string(e.Kind), e.Subject, e.Detail} {
		h.buf = binary.BigEndian.AppendUint32(h.buf, uint32(len(s)))
		h.buf = append(h.buf, s...)
	}
	h.sum.Write(h.buf)
	if len(h.events) < h.keep {
		h.events = append(h.events, e)
		return
	}
	h.events[h.next] = e
	h.next = (h.next + 1) % h.keep
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// commit takes a write to the store into the hash.
func (h *history) commit(at time.Duration, actor string, b store.Batch) {
	h.buf = append(h.buf[:0], 'c')
	h.buf = binary.BigEndian.AppendUint64(h.buf, uint64(at))
	h.buf = binary.BigEndian.AppendUint64(h.buf, uint64(b.Revision))
	h.buf = append(h.buf, actor...)
	for _, c := range b.Changes {
		h.buf = append(append(h.buf, 0), c.Item.Key...)
		h.buf = binary.BigEndian.AppendUint32(h.buf, uint32(len(c.Item.Value)))
		h.buf = binary.BigEndian.AppendUint32(h.buf, crc32.Checksum(c.Item.Value, castagnoli))
	}
	h.sum.Write(h.buf)
}

// last returns the events that are kept, in order.
func (h *history) last() []Event {
	return append(append([]Event(nil), h.events[h.next:]...), h.events[:h.next]...)
}

func (h *history) hash() string { return hex.EncodeToString(h.sum.Sum(nil)) }
