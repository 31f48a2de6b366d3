package record

import (
	"fmt"
	"strconv"
	"strings"
)

// The kinds of event that agents write, about the tasks of their nodes. Nobody
// believes an agent any other.
const (
	TaskStarted   EventKind = "task-started"   // the first of its containers runs
	TaskRestarted EventKind = "task-restarted" // a container ended, and is started again: see Failure
	TaskUnhealthy EventKind = "task-unhealthy" // a container is stopped because a check says that it is dead
	TaskKilled    EventKind = "task-killed"    // a container did not end within its grace
	TaskRefused   EventKind = "task-refused"   // its node cannot do what it takes to run it, or to send it traffic: see Failure
	TaskEnded     EventKind = "task-ended"     // it has ended, and its node has released all of it: see State
	EventsDropped EventKind = "events-dropped" // more happened on a node than could be written down
)

// nodeEvents are the kinds that an agent may tell of.
var nodeEvents = map[EventKind]bool{
	TaskStarted: true, TaskRestarted: true, TaskUnhealthy: true, TaskKilled: true, TaskRefused: true, TaskEnded: true, EventsDropped: true,
}

// Reasons that agents give.
const (
	ReasonCompleted = "completed" // of an end: all that it was to do is done
	ReasonGrace     = "grace"     // of a kill: the time for an orderly end was over
	ReasonOverflow  = "overflow"  // of dropped events: the store did not take them in time
)

// NodeEvents is the key of the n-th record of events of a node, from 1.
func NodeEvents(node string, n int64) string {
	return fmt.Sprintf("%s%016x", Key(Kept+"node/", node, ""), n)
}

// NodeEventsNumber is the n that key is the NodeEvents of; 0 if it is none.
func NodeEventsNumber(key, node string) int64 {
	digits, ok := strings.CutPrefix(key, Key(Kept+"node/", node, ""))
	n, err := strconv.ParseInt(digits, 16, 64)
	if !ok || err != nil || n < 0 {
		return 0
	}
	return n
}

// Teller is the node whose agent wrote the events of a key; empty if no agent did.
func Teller(key string) string {
	rest, ok := strings.CutPrefix(key, Kept+"node/")
	if !ok {
		return ""
	}
	node, _, _ := strings.Cut(rest, "/") // whatever it adds is within its rights
	return node
}

// Testimony is what can be believed of an event under a key. An agent has the
// right to keys of its own, and speaks for itself and its node alone; of what
// others decide it says nothing.
func Testimony(key string, e *Event) bool {
	node := Teller(key)
	if node == "" {
		return true
	}
	e.Node, e.Cause.Actor, e.Decision, e.Scale = node, ActorAgent(node), nil, nil
	return nodeEvents[e.Kind]
}
