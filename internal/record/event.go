package record

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/orchestrate-go/orchestrate/scheduler"
)

// Event is something that was decided, with who decided it and why. Events are
// kept in the store: each is written in the commit that makes the decision
// true, so that it is told exactly once however often a leader dies.
//
// An event names things and reasons. It never holds what a container printed,
// nor anything of a spec: values of environment variables and secrets cannot
// get into it.
type Event struct {
	At        time.Time `json:"at"`
	Kind      EventKind `json:"kind"`
	Namespace string    `json:"namespace,omitempty"` // of the service; empty in an event about a node
	Service   string    `json:"service,omitempty"`
	Task      string    `json:"task,omitempty"` // ID
	Slot      int       `json:"slot,omitempty"` // of Task
	Node      string    `json:"node,omitempty"`
	Network   string    `json:"network,omitempty"`
	Revision  int64     `json:"revision,omitempty"` // of the service; of a task, its own
	State     State     `json:"state,omitempty"`    // that a task which is gone ended in
	Restarts  int       `json:"restarts,omitempty"` // of the task's containers, in what an agent tells
	// Reason is a Reason constant where a task is started or stopped, a Why
	// constant where a rollout failed.
	Reason  string   `json:"reason,omitempty"`
	Message string   `json:"message,omitempty"` // for people; may be empty
	Failure *Failure `json:"failure,omitempty"` // of the task that failed; without its log when kept
	Cause   Cause    `json:"cause,omitzero"`
	Scale   *Scaling `json:"scale,omitempty"` // of a ServiceScaled
	// Decision is the scheduler's about the group of replicas that a task was
	// placed with, or for which there was no place. Its Tasks and Nodes are left
	// out. Events of one group share it.
	Decision *scheduler.Decision `json:"-"`
	// Decided is where Decision is in its Events, counted from 1.
	Decided int `json:"decision,omitempty"`
}

// EventKind says what happened.
type EventKind string

// The kinds of event that others than the leader write. Those of the leader
// are in package control.
const (
	ServiceApplied EventKind = "service-applied" // its spec was written: Actor says by whom
	ServiceRemoved EventKind = "service-removed" // its spec was deleted; its tasks stop
	NetworkApplied EventKind = "network-applied" // its record was written
	NetworkRemoved EventKind = "network-removed"
	NodeChanged    EventKind = "node-changed" // it was cordoned, drained or given back: see Reason
)

// Cause is who or what made something happen.
type Cause struct {
	// Actor is who asked for it, or the part of the system that acted by
	// itself: one of the Actor constants.
	Actor string `json:"actor,omitempty"`
	// Revision of the service that is being made true.
	Revision int64 `json:"revision,omitempty"`
	// Reason is a Reason constant.
	Reason string `json:"reason,omitempty"`
	// Trigger names what set it off, such as "task/web.0.abc" or "node/n1":
	// the task that failed, the node that was lost or drained, the task that
	// needs the room.
	Trigger string `json:"trigger,omitempty"`
	// Parent is the store revision of the change that set it off: that of the
	// service's spec. The event of that change was written in the same commit.
	Parent int64 `json:"parent,omitempty"`
}

// Who acts when nobody is named.
const (
	ActorApplication = "application" // a call without an actor of its own
	ActorPlanner     = "planner"     // the leader, by itself: replacing what failed or was lost
)

// ActorAgent is the agent of a node, by itself.
func ActorAgent(node string) string { return "agent of " + node }

// Object is what an event is about, for bounds and filters: a service, or
// else a network or a node.
func (e *Event) Object() string {
	switch {
	case e.Service != "":
		return e.Namespace + "/" + e.Service
	case e.Network != "":
		return "network/" + e.Network
	}
	return "node/" + e.Node
}

// Bounds of one event's text: an error message of a driver can be anything.
const (
	MaxEventText = 1 << 10
	MaxActor     = 128
)

// Events are those of one commit: the value under a key of its own, written
// once and never changed. The item's revision is the commit's.
type Events struct {
	Events    []Event               `json:"events"`
	Decisions []*scheduler.Decision `json:"decisions,omitempty"`
	// Forgotten, in a record of an agent, is the revision of the newest of its
	// records that it has deleted itself, since nobody else did.
	Forgotten int64 `json:"forgotten,omitempty"`
}

// EncodeEvents is the record of events, without what must not be kept.
func EncodeEvents(events []Event) []byte { return EncodeNodeEvents(events, 0) }

// EncodeNodeEvents is the record of events of an agent.
func EncodeNodeEvents(events []Event, forgotten int64) []byte {
	rec := Events{Events: make([]Event, len(events)), Forgotten: forgotten}
	places := map[*scheduler.Decision]int{}
	for i, e := range events {
		e.Message = Clip(e.Message, MaxEventText)
		if e.Failure != nil {
			f := *e.Failure
			f.Log, f.Message = nil, Clip(f.Message, MaxEventText)
			if f.Message == e.Message {
				e.Message = "" // it is put back when it is read
			}
			e.Failure = &f
		}
		if e.Cause.Reason == e.Reason {
			e.Cause.Reason = ""
		}
		if e.Decision != nil {
			at, known := places[e.Decision]
			if !known {
				rec.Decisions = append(rec.Decisions, e.Decision)
				at = len(rec.Decisions)
				places[e.Decision] = at
			}
			e.Decided = at
		}
		rec.Events[i] = e
	}
	data, err := json.Marshal(rec)
	if err != nil {
		panic(fmt.Sprintf("record: events are plain data, but: %v", err))
	}
	return data
}

// DecodeEvents reads what EncodeEvents made.
func DecodeEvents(data []byte) ([]Event, error) {
	var rec Events
	if err := json.Unmarshal(data, &rec); err != nil {
		return nil, err
	}
	for i := range rec.Events {
		e := &rec.Events[i]
		if e.Message == "" && e.Failure != nil {
			e.Message = e.Failure.Message
		}
		if e.Cause.Reason == "" {
			e.Cause.Reason = e.Reason
		}
		if e.Decided > 0 && e.Decided <= len(rec.Decisions) {
			e.Decision = rec.Decisions[e.Decided-1]
		}
	}
	return rec.Events, nil
}

// Clip shortens text to at most max bytes of whole characters.
func Clip(text string, max int) string {
	if len(text) <= max {
		return text
	}
	const mark = "…"
	cut := max - len(mark)
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + mark
}

// LeaderEvents is the key of the n-th record of events of a leader's term.
func LeaderEvents(term int64, n int) string {
	return fmt.Sprintf("%sleader/%016x-%08x", Kept, term, n)
}

// LeaderEventsOf is the term and the n that key is the LeaderEvents of; false if
// it is none.
func LeaderEventsOf(key string) (term int64, n int, ok bool) {
	rest, ok := strings.CutPrefix(key, Kept+"leader/")
	first, second, cut := strings.Cut(rest, "-")
	term, err := strconv.ParseInt(first, 16, 64)
	number, err2 := strconv.ParseInt(second, 16, 64)
	return term, int(number), ok && cut && err == nil && err2 == nil
}

// Forgotten says which events are not kept any more.
type Forgotten struct {
	// Revision is that of the newest commit of whose events some were
	// forgotten. Nothing later has been.
	Revision int64 `json:"revision"`
}
