package control

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// The bounds of the history of events. A service, or a node, has at least
// KeepEventsEach of its latest; what is older goes. Should that be more than
// KeepEvents in all, the oldest of the fleet go too.
const (
	KeepEventsEach = 256
	KeepEvents     = 32_768
)

// forgetBatch is how many records are forgotten at a time, so that it costs one
// transaction for as many commits.
const forgetBatch = 100

// kept is what the leader knows of the events in the store: what is needed to
// forget them in time, and what no other record says.
//
// Events lie in the store as they were committed, many services' in one record.
// A record is forgotten when none of its events is among the latest of its
// object, so a service that has a lot happening to it does not take the history
// of the others.
type kept struct {
	each, all int // bounds
	records   map[string]*events
	order     []*events // by revision; those that are gone too, until they are at the front
	objects   map[string]*object
	count     int       // events in records that are not to go
	stale     []*events // to go
	forgotten int64     // see record.Forgotten

	lost     map[string]time.Time // nodes whose loss was told, by when, and not their return
	removals map[string]removal   // of services of which something may be left

	// term is the latest of a leader whose events were seen, and decided how many
	// records of them it has written.
	term    int64
	decided int
}

// events is a record of events.
type events struct {
	key      string
	revision int64
	count    int
	latest   int // how many of them are among the latest of their object
	gone     bool
}

// object is what events are about.
type object struct {
	count int
	queue []share // oldest first
}

// share is what a record has of an object.
type share struct {
	of    *events
	count int
}

// removal is who removed a service, and in which commit.
type removal struct {
	actor    string
	revision int64
}

func newKept(each, all int) *kept {
	if each <= 0 {
		each = KeepEventsEach
	}
	if all <= 0 {
		all = KeepEvents
	}
	return &kept{
		each: each, all: all, records: map[string]*events{}, objects: map[string]*object{},
		lost: map[string]time.Time{}, removals: map[string]removal{},
	}
}

// change takes in a record of events that was written or deleted.
func (k *kept) change(c store.Change, p parsed) error {
	if old := k.records[c.Item.Key]; old != nil {
		delete(k.records, c.Item.Key)
		k.drop(old)
	}
	if c.Deleted {
		return nil
	}
	k.decide(c.Item.Key)
	if p.err != nil {
		return p.err
	}
	r := &events{key: c.Item.Key, revision: c.Item.Revision, count: len(p.events)}
	k.records[r.key] = r
	k.order = append(k.order, r)
	k.count += r.count
	node := record.Teller(c.Item.Key)
	for i := range p.events {
		if e := &p.events[i]; node != "" {
			// An agent tells of its own node, and of nothing that is decided.
			e.Node, e.Kind, e.Network = node, "", ""
		}
		k.note(&p.events[i], r)
	}
	if r.latest == 0 {
		k.retire(r) // it is empty
	}
	for k.count > k.all && len(k.order) > 1 {
		k.retire(k.order[0])
		k.order = k.order[1:]
	}
	return nil
}

// note takes in an event of r.
func (k *kept) note(e *record.Brief, r *events) {
	of := record.Event{Namespace: e.Namespace, Service: e.Service, Node: e.Node, Network: e.Network}
	name := of.Object()
	switch e.Kind {
	case NodeLost:
		k.lost[e.Node] = e.At
	case NodeReturned:
		delete(k.lost, e.Node)
	case record.ServiceRemoved:
		k.removals[name] = removal{e.Cause.Actor, r.revision}
	case record.ServiceApplied, ServiceGone:
		delete(k.removals, name)
	}
	o := k.objects[name]
	if o == nil {
		o = &object{}
		k.objects[name] = o
	}
	if n := len(o.queue); n == 0 || o.queue[n-1].of != r {
		o.queue = append(o.queue, share{of: r})
	}
	o.queue[len(o.queue)-1].count++
	o.count++
	r.latest++
	for {
		first := o.queue[0]
		if !first.of.gone && (first.of == r || o.count-first.count < k.each) {
			return
		}
		o.queue = o.queue[1:]
		o.count -= first.count
		if first.of.latest -= first.count; first.of.latest == 0 {
			k.retire(first.of)
		}
	}
}

// retire has a record forgotten.
func (k *kept) retire(r *events) {
	if !r.gone {
		k.drop(r)
		k.stale = append(k.stale, r)
	}
}

// drop no longer counts a record.
func (k *kept) drop(r *events) {
	if r.gone {
		return
	}
	r.gone = true
	k.count -= r.count
	for len(k.order) > 0 && k.order[0].gone {
		k.order = k.order[1:]
	}
}

// forget returns the writes that forget what is stale, once there is enough of
// it to be worth a commit.
func (k *kept) forget() []store.Write {
	k.stale = slices.DeleteFunc(k.stale, func(r *events) bool { return k.records[r.key] != r })
	if len(k.stale) < forgetBatch {
		return nil
	}
	var writes []store.Write
	for _, r := range k.stale[:forgetBatch] {
		writes = append(writes, store.Delete(r.key))
		k.forgotten = max(k.forgotten, r.revision)
		delete(k.records, r.key)
	}
	k.stale = slices.Clone(k.stale[forgetBatch:])
	// First: whoever reads a part of it is to know that it is a part.
	return append([]store.Write{store.Put(record.Oblivion, encode(record.Forgotten{Revision: k.forgotten}))}, writes...)
}

func (k *kept) changeForgotten(c store.Change) error {
	var rec record.Forgotten
	if c.Deleted {
		return nil
	}
	if err := json.Unmarshal(c.Item.Value, &rec); err != nil {
		return err
	}
	k.forgotten = max(k.forgotten, rec.Revision)
	return nil
}

// load takes in the records of a snapshot, in the order of their commits.
func (k *kept) load(items []store.Item) (ignored map[string]error) {
	items = slices.Clone(items)
	slices.SortFunc(items, func(a, b store.Item) int { return int(a.Revision - b.Revision) })
	changes := puts(items)
	for i, p := range parseAll(changes) {
		if err := k.change(changes[i], p); err != nil {
			if ignored == nil {
				ignored = map[string]error{}
			}
			ignored[items[i].Key] = err
		}
	}
	return ignored
}
