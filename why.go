package orchestrate

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// Explanation is why something is as it is, from the events that are kept. It is
// plain data.
type Explanation struct {
	// Subject is what was asked about: a task's ID, or NAMESPACE/NAME, and Kind
	// then which of KindService, KindJob and KindCronJob it is or was.
	Subject string `json:"subject"`
	Kind    string `json:"kind,omitempty"`
	Task    *Task  `json:"task,omitempty"` // as it is; nil when it is gone, or a name was asked about
	// Events are those that answer, the oldest first. Of a task: that it was
	// placed, why its node was chosen (Decision) and what for (Cause); that it
	// failed, was told to stop, and is gone. Of a name: the last change of its
	// spec and what became of that, and why replicas have no place.
	Events []Event `json:"events,omitempty"`
	// Because are the events that set those off: that a spec was applied, a node
	// drained or lost, another task failed.
	Because []Event `json:"because,omitempty"`
	// Silent says, of a task whose node is not heard of, what is waited for. It is
	// for people.
	Silent string `json:"silent,omitempty"`
	// Unplaced is set while replicas, or indexes of a job or of a cron job's run,
	// have no place: why, and what would help. Blocked says it to people, and also
	// what else is in the way: a network that is missing, a schedule that cannot be
	// read or is suspended, a run that goes on.
	Unplaced *scheduler.Decision `json:"unplaced,omitempty"`
	Blocked  string              `json:"blocked,omitempty"`
	// WaitsFor is what it depends on that does not hold.
	WaitsFor []Unmet `json:"waitsFor,omitempty"`
	// Lacks are the nodes on which a global service has no task.
	Lacks []Lack `json:"lacks,omitempty"`
}

// Lack is a node on which a global service has no task, and why.
type Lack struct {
	Node string `json:"node"`
	Why  string `json:"why"`
}

// Why explains a task, by its ID, or a service, a job or a cron job, by its name:
// why it is where it is, why it was stopped, why replicas have no place, why
// nothing runs, who wanted it. What is gone is explained as long as its events are
// kept. What neither is nor is remembered is a [*NameError].
func (f *Fleet) Why(ctx context.Context, subject string) (*Explanation, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	all, err := f.Events(ctx, EventFilter{})
	if err != nil {
		return nil, err
	}
	x := &Explanation{Subject: subject}
	for _, e := range all {
		if e.Task == subject && e.Task != "" {
			x.Events = append(x.Events, e)
		}
	}
	if err := f.findTask(ctx, x); err != nil {
		return nil, err
	}
	if x.Task == nil && x.Events == nil {
		if err := f.whyName(ctx, x, all); err != nil {
			return nil, err
		}
	}
	if err := f.whySilent(ctx, x, all); err != nil {
		return nil, err
	}
	for _, e := range x.Events {
		x.because(&e, all)
	}
	return x, nil
}

// findTask finds the task that x is about, if it is there.
func (f *Fleet) findTask(ctx context.Context, x *Explanation) error {
	snapshot, err := f.store.List(ctx, record.Tasks)
	if err != nil {
		return err
	}
	for _, item := range snapshot.Items {
		parts := record.Split(item.Key, record.Tasks, 2)
		if parts == nil || parts[1] != x.Subject {
			continue
		}
		var rec record.Task
		if err := json.Unmarshal(item.Value, &rec); err != nil {
			return fmt.Errorf("read %s: %w", item.Key, err)
		}
		status, _, err := store.Get(ctx, f.store, record.Key(record.Statuses, parts...))
		if err != nil {
			return err
		}
		t, err := readTask(&rec, status.Value)
		x.Task = &t
		return err
	}
	return nil
}

// because finds what set e off.
func (x *Explanation) because(e *Event, all []Event) {
	kind, name, _ := strings.Cut(e.Cause.Trigger, "/")
	var trigger *Event
	for i := range all {
		o := &all[i]
		if o.Token == e.Token {
			break // what comes later is not its cause
		}
		at, _ := parseToken(o.Token)
		switch {
		case e.Cause.Parent != 0 && at.revision == e.Cause.Parent && o.Service == e.Service && o.Namespace == e.Namespace:
			x.add(o)
		case kind == "node" && o.Node == name && (o.Kind == NodeChanged || o.Kind == NodeLost || o.Kind == NodeReturned && e.Reason == record.ReasonReturned):
			trigger = o
		case kind == "task" && o.Task == name && (o.Kind == TaskFailed || o.Kind == TaskPlaced):
			trigger = o
		}
	}
	if trigger != nil {
		x.add(trigger)
	}
}

func (x *Explanation) add(e *Event) {
	same := func(o Event) bool { return o.Token == e.Token }
	if !slices.ContainsFunc(x.Because, same) && !slices.ContainsFunc(x.Events, same) {
		x.Because = append(x.Because, *e)
	}
}

// String is the explanation for people.
func (x *Explanation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", x.Subject)
	if t := x.Task; t != nil {
		fmt.Fprintf(&b, " is %s on %s", cmp.Or(string(t.State), "not yet seen"), t.Node)
		if t.Stopping != "" {
			fmt.Fprintf(&b, ", and is to stop: %s", t.Stopping)
		}
	}
	if x.Kind != "" {
		fmt.Fprintf(&b, " is a %s", x.Kind)
	}
	b.WriteByte('\n')
	if x.Silent != "" {
		fmt.Fprintf(&b, "  %s\n", x.Silent)
	}
	if x.Blocked != "" {
		fmt.Fprintf(&b, "  now: %s\n", strings.ReplaceAll(x.Blocked, "\n", "\n    "))
	}
	for _, u := range x.WaitsFor {
		fmt.Fprintf(&b, "  it waits: %s\n", u)
	}
	for _, l := range x.Lacks {
		fmt.Fprintf(&b, "  no task on %s: it %s\n", l.Node, l.Why)
	}
	for _, e := range x.Events {
		fmt.Fprintf(&b, "  %s  %s\n", e.At.Format("2006-01-02 15:04:05"), e)
		if d := e.Decision; d != nil && d.Unplaced == 0 && d.Winner != nil {
			fmt.Fprintf(&b, "    chosen of %d nodes: %s\n", d.Evaluated, d.Winner)
			for i := range d.RunnersUp {
				fmt.Fprintf(&b, "    then: %s\n", &d.RunnersUp[i])
			}
			for _, r := range d.Refused {
				fmt.Fprintf(&b, "    %s refused %d\n", strings.TrimSpace(r.Filter+" "+r.Rule), r.Nodes)
			}
		}
	}
	if len(x.Because) > 0 {
		b.WriteString("because\n")
	}
	for _, e := range x.Because {
		fmt.Fprintf(&b, "  %s  %s\n", e.At.Format("2006-01-02 15:04:05"), e)
	}
	return b.String()
}
