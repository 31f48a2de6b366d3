package control_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// epoch is when simulations begin.
var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// sim is a planner with a store that is a map: no goroutine, no clock. The test
// plays the agents and the application.
type sim struct {
	t     testing.TB
	state *control.State
	kv    map[string]store.Item
	rev   int64
	now   time.Time
	wake  time.Time
	place control.Placer
	limit control.Amount // of losses

	specs   map[string]spec // as applied, by service
	history map[string][]record.Revision
	revs    map[string]int64  // of templates
	aliases map[string]string // of tasks, by ID: web.0a, web.0b
	counts  map[string]int
	log     []string
	// keep has events kept in the store, as the loop does. Actor is who applies and
	// drains, and told how many events were shown.
	keep  bool
	actor string
	told  int
	code  int // that tasks fail with now; 0 is 1
	// planned is called with each plan before it is carried out.
	planned func(control.Plan)
	// What was decoded of records, by their text: the promises ask after each step,
	// and little of what they read has changed.
	read struct {
		tasks    map[string]record.Task
		statuses map[string]record.Status
		rollouts map[string]record.Rollout
	}
}

// recall decodes a record, once for each text.
func recall[T any](known *map[string]T, value []byte) (T, error) {
	if v, ok := (*known)[string(value)]; ok {
		return v, nil
	}
	var v T
	if err := json.Unmarshal(value, &v); err != nil {
		return v, err
	}
	if *known == nil || len(*known) > 10_000 {
		*known = map[string]T{}
	}
	(*known)[string(value)] = v
	return v, nil
}

func newSim(t testing.TB) *sim {
	s := &sim{
		t: t, kv: map[string]store.Item{}, now: epoch, place: evenly{},
		specs: map[string]spec{}, history: map[string][]record.Revision{}, revs: map[string]int64{}, aliases: map[string]string{}, counts: map[string]int{},
	}
	s.state = control.NewState(control.Config{Decode: decode, DecodeJob: decodeStoryJob, Place: s.place}.Doubting(s.doubt))
	return s
}

// doubt fails the test where a plan that left out what is calm is another than
// one that looked at everything.
func (s *sim) doubt(why string) { s.t.Fatal("calm tasks made a difference: " + why) }

// lead is a new leader that takes over.
func (s *sim) lead() {
	snapshot := store.Snapshot{Revision: s.rev, Items: s.items()}
	s.state = control.NewState(control.Config{Decode: decode, DecodeJob: decodeStoryJob, Place: s.place, LossLimit: s.limit}.Doubting(s.doubt))
	s.state.Load(snapshot, s.now)
	s.plan()
}

// items are what is in the store, by key.
func (s *sim) items() (items []store.Item) {
	for _, i := range s.kv {
		items = append(items, i)
	}
	slices.SortFunc(items, func(a, b store.Item) int { return strings.Compare(a.Key, b.Key) })
	return items
}

// commit writes to the store and tells the planner.
func (s *sim) commit(writes ...store.Write) {
	s.rev++
	batch := store.Batch{Revision: s.rev}
	for _, w := range writes {
		item := store.Item{Key: w.Key, Value: w.Value, Revision: s.rev}
		if w.Delete {
			if _, ok := s.kv[w.Key]; !ok {
				continue
			}
			delete(s.kv, w.Key)
			item.Value = nil
		} else {
			s.kv[w.Key] = item
		}
		batch.Changes = append(batch.Changes, store.Change{Item: item, Deleted: w.Delete})
	}
	s.state.Apply(batch, s.now)
}

// plan plans and does what was planned, until nothing is left to do.
func (s *sim) plan() {
	s.t.Helper()
	for round := 0; ; round++ {
		p := s.state.Plan(s.now)
		s.wake = p.Wake
		if s.planned != nil {
			s.planned(p)
		}
		for _, e := range p.Events {
			s.hear(e)
		}
		writes := p.Writes
		if s.keep {
			writes = append(writes, s.chronicle(p.Events)...)
		}
		if len(writes) == 0 {
			return
		}
		if err := (store.Txn{Writes: p.Writes[:min(len(p.Writes), store.MaxTxnOps)]}).Validate(); err != nil {
			s.t.Fatalf("the planned writes are no transaction: %v", err)
		}
		for _, w := range p.Writes {
			s.tell(w)
		}
		s.commit(writes...)
		if round == 20 {
			s.t.Fatalf("the planner has not come to rest after 20 rounds; the last were\n%s", strings.Join(s.log[max(0, len(s.log)-200):], "\n"))
		}
	}
}

// pass lets time pass, planning whenever the planner asked to.
func (s *sim) pass(d time.Duration) {
	s.t.Helper()
	end := s.now.Add(d)
	for !s.wake.IsZero() && !s.wake.After(end) {
		if s.wake.After(s.now) {
			s.now = s.wake
		}
		before := s.wake
		s.plan()
		if !s.wake.IsZero() && !s.wake.After(before) && !s.wake.After(s.now) {
			s.t.Fatalf("at %v the planner asks to be woken at %v, over and over", s.now, s.wake)
		}
	}
	s.now = end
	s.plan()
}

func (s *sim) printf(format string, args ...any) { s.log = append(s.log, fmt.Sprintf(format, args...)) }

// hear logs those events that no write shows.
func (s *sim) hear(e control.Event) {
	switch e.Kind {
	case control.TaskUnplaced:
		s.printf("no place for %s: %s", e.Service, strings.ReplaceAll(e.Message, "\n", " "))
	case control.DependencyAwaited, control.DependencyMet:
		s.printf("%s %s", e.Kind, strings.TrimSpace(e.Service+" "+e.Message))
	case control.TaskFailed:
		s.printf("counted: %s failed: %s", s.alias(e.Task), e.Message)
	case control.NodeLost, control.NodeHeld, control.NodeReturned, control.RecordIgnored, control.NodeDrained, control.DrainEnded:
		s.printf("%s %s", e.Kind, strings.TrimSpace(e.Node+" "+e.Message))
	}
}

// tell logs a write, as what it means.
func (s *sim) tell(w store.Write) {
	old, had := s.kv[w.Key]
	switch name := w.Key[strings.LastIndex(w.Key, "/")+1:]; {
	case strings.HasPrefix(w.Key, record.Tasks) && w.Delete:
		s.printf("delete %s", s.alias(name))
	case strings.HasPrefix(w.Key, record.Tasks):
		var t record.Task
		unmarshal(s.t, w.Value, &t)
		if t.Erase {
			s.printf("erase the volumes of %s.%d on %s: %s", t.Service, t.Slot, t.Node, t.Stop.Reason)
		} else if was := s.hash(old); had && t.Stop == nil && was != t.Hash {
			s.printf("resize %s on %s: %s → %s", s.alias(t.ID), t.Node, was, t.Hash)
		} else if had && t.Stop == nil {
			s.printf("fetch on %s, while %s serves: %s", t.Node, s.alias(t.ID), t.Next.Images[0].Ref)
		} else if had {
			s.printf("stop %s: %s", s.alias(t.ID), t.Stop.Reason)
		} else {
			s.printf("start %s on %s: %s", s.alias(t.ID), t.Node, t.Hash)
		}
	case strings.HasPrefix(w.Key, record.Evictions):
		s.printf("forget that %s is evicted", s.alias(name))
	case w.Delete:
		s.printf("delete %s", strings.Join(strings.Split(w.Key, "/")[1:], " "))
	case strings.HasPrefix(w.Key, record.Rollouts):
		var r, o record.Rollout
		unmarshal(s.t, w.Value, &r)
		if had && json.Unmarshal(old.Value, &o) != nil {
			o = record.Rollout{}
		}
		s.printf("rollout %s: %s", name, describe(r, o))
	case strings.HasPrefix(w.Key, record.Runs):
		var r record.Run
		unmarshal(s.t, w.Value, &r)
		s.printf("run %d of %s: %s", r.Number, name, describeRun(r))
	case strings.HasPrefix(w.Key, record.Frontends):
		var f record.Frontend
		unmarshal(s.t, w.Value, &f)
		var ports []uint16
		for _, p := range f.Ports {
			ports = append(ports, p.Port)
		}
		held := ""
		if len(f.Held) > 0 {
			held = " without " + strings.Join(f.Held, " ")
		}
		s.printf("frontend %s: %v ports %v%s", name, f.Addresses, ports, held)
	default:
		s.t.Fatalf("the planner writes %s, which is not the leader's to write", w.Key)
	}
}

// hash is that of a task's record.
func (s *sim) hash(item store.Item) string {
	var t record.Task
	if item.Value != nil {
		unmarshal(s.t, item.Value, &t)
	}
	return t.Hash
}

func describe(r, old record.Rollout) string {
	text := fmt.Sprintf("%s, %d of %d %s, %d ready", r.State, r.Updated, r.Desired, r.Hash, r.Ready)
	if r.Phase != record.PhaseRolling && r.Phase != "" && r.State == record.Progressing {
		text += ", " + string(r.Phase)
	}
	if len(r.Held) > 0 {
		text += fmt.Sprintf(", without traffic: %s", strings.Join(r.Held, " "))
	}
	if r.Failures > 0 {
		text += fmt.Sprintf(", %d failed", r.Failures)
	}
	if r.Reason != "" && old.Reason != r.Reason {
		text += fmt.Sprintf(", %s: %s", r.Reason, strings.ReplaceAll(r.Message, "\n", " "))
	}
	if len(r.Waiting) > 0 {
		text += ", waits: " + record.Waits(r.Waiting)
	}
	if b := r.Rollback; b != nil {
		text += fmt.Sprintf("; rollback to %s %s", b.Hash, b.State)
		if b.Failures > 0 {
			text += fmt.Sprintf(", %d failed", b.Failures)
		}
		if b.Reason != "" && (old.Rollback == nil || old.Rollback.Reason != b.Reason) {
			text += fmt.Sprintf(", %s: %s", b.Reason, strings.ReplaceAll(b.Message, "\n", " "))
		}
	}
	return text
}

// alias is a readable name of a task: its slot, and a letter that says the
// how-manieth of the slot it is.
func (s *sim) alias(id string) string {
	if a := s.aliases[id]; a != "" {
		return a
	}
	slot := id[:max(0, strings.LastIndex(id, "."))]
	a := fmt.Sprintf("%s%c", slot, 'a'+s.counts[slot])
	s.counts[slot]++
	s.aliases[id] = a
	return a
}

// tasks lists the tasks of a service, or of all if empty, by alias.
func (s *sim) tasks(service string) []record.Task {
	var out []record.Task
	for key, i := range s.kv {
		if !strings.HasPrefix(key, record.Tasks) {
			continue
		}
		t, err := recall(&s.read.tasks, i.Value)
		if err != nil {
			continue // a story about bad records
		}
		if service == "" || t.Service == service {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b record.Task) int { return strings.Compare(s.alias(a.ID), s.alias(b.ID)) })
	return out
}

func (s *sim) status(t record.Task) (record.Status, bool) {
	i, ok := s.kv[record.Key(record.Statuses, t.Node, t.ID)]
	if !ok {
		return record.Status{}, false
	}
	st, err := recall(&s.read.statuses, i.Value)
	return st, err == nil
}

// report is the agent's: the task is in a state now.
func (s *sim) report(t record.Task, state record.State, failure *record.Failure) {
	st, _ := s.status(t)
	st.Task, st.Namespace, st.Service, st.Node = t.ID, t.Namespace, t.Service, t.Node
	st.State, st.Since = state, s.now
	if state == record.Ready {
		st.Ready = s.now
	}
	if failure != nil {
		failure.At = s.now
		st.Failure = failure
	}
	s.commit(store.Put(record.Key(record.Statuses, t.Node, t.ID), marshal(s.t, st)))
}

func (s *sim) rollout(name string) record.Rollout {
	i, ok := s.kv[record.Key(record.Rollouts, "default", name)]
	if !ok {
		return record.Rollout{}
	}
	r, err := recall(&s.read.rollouts, i.Value)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// direct is the application's: it tells the leader what to do with a rollout.
func (s *sim) direct(name string, action record.DirectiveAction) {
	r := s.rollout(name)
	s.commit(store.Put(record.Key(record.Directives, "default", name), marshal(s.t, record.Directive{Spec: r.Spec, Action: action, From: r.Phase, At: s.now})))
}

func (s *sim) apply(name string, sp spec) {
	if old := s.specs[name].Image; old != sp.Image {
		if s.revs[name] > 0 {
			s.history[name] = append(slices.Clone(s.history[name]), record.Revision{
				Revision: s.revs[name], Hash: old, Template: marshal(s.t, old),
			})
		}
		s.revs[name]++
	}
	s.specs[name] = sp
	value := serviceRecord(s.t, sp, s.revs[name], epoch, s.history[name]...)
	if s.actor != "" {
		var rec record.Service
		unmarshal(s.t, value, &rec)
		rec.Actor = s.actor
		value = marshal(s.t, rec)
	}
	s.commit(store.Put(record.Key(record.Services, "default", name), value))
}

// chronicle is the write that keeps events.
func (s *sim) chronicle(events []control.Event) []store.Write {
	events = slices.DeleteFunc(slices.Clone(events), func(e control.Event) bool { return !control.Kept(&e) })
	if len(events) == 0 {
		return nil
	}
	return []store.Write{store.Put(record.LeaderEvents(1, int(s.rev)), record.EncodeEvents(events))}
}

// recount logs the kept events that were not shown before.
func (s *sim) recount() {
	s.t.Helper()
	n := 0
	for _, item := range s.items() {
		if !strings.HasPrefix(item.Key, record.Kept) {
			continue
		}
		events, err := record.DecodeEvents(item.Value)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, e := range events {
			if n++; n <= s.told {
				continue
			}
			line := string(e.Kind)
			for _, part := range []string{e.Service, e.Node} {
				if e.Task == "" && part != "" {
					line += " " + part
				}
			}
			if e.Task != "" {
				line += " " + s.alias(e.Task) + " on " + e.Node
			}
			if e.Reason != "" {
				line += ": " + e.Reason
			}
			line += ", by " + e.Cause.Actor
			if kind, name, ok := strings.Cut(e.Cause.Trigger, "/"); ok {
				if kind == "task" {
					name = s.alias(name)
				}
				line += " because of " + name
			}
			if e.Cause.Revision != 0 {
				line += fmt.Sprintf(" for revision %d", e.Cause.Revision)
			}
			s.printf("%s", line)
		}
	}
	s.told = n
}

func (s *sim) node(id string, memory int64) {
	s.commit(store.Put(record.Key(record.Nodes, id), marshal(s.t, record.Node{Node: scheduler.Node{
		ID: id, Ready: true, Capacity: scheduler.Resources{Memory: memory},
	}})), store.Put(record.Key(record.Alive, id), nil))
}
