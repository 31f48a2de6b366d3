package control_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// With 2, TestSlotWalk takes many minutes.
var slotTroubles = flag.Int("slot-troubles", 1, "how often on one way of TestSlotWalk something may go wrong")

// TestSlotWalk takes a stateful service through every order in which the leader
// and the agents of two nodes can act, and checks that no slot ever runs twice,
// and that it runs in the end. What is separate in the real fleet is separate
// here: the leader plans on what it has seen, which may be old, and an agent
// reads its task at one time and starts it at another. A node may be cut off or
// have its agent die at any time, and come back; its containers then stop as late
// as its promise allows, by the leader's clock: that is what clocks of different
// rates amount to. The leader may change.
func TestSlotWalk(t *testing.T) {
	for i, w := range []slotWalk{
		{replicas: 1},
		{replicas: 1, early: true},
		{replicas: 1, volumes: true},
		{replicas: 1, patience: 5 * time.Second}, // of more than the fleet's, and less than the promise
		{replicas: 1, patience: -1},
		{replicas: 2, ordered: true},
	} {
		if i > 0 && testing.Short() {
			break
		}
		t.Run(fmt.Sprintf("%d,ordered=%v,early=%v,volumes=%v,patience=%v", w.replicas, w.ordered, w.early, w.volumes, w.patience), func(t *testing.T) {
			t.Parallel()
			w.troubles = *slotTroubles
			w.seen = map[string]bool{}
			w.visit(t, nil)
			t.Logf("%d states, %d of them taken to their end", len(w.seen), w.ends)
			if w.moved == 0 {
				t.Error("no walk has ever moved a slot: the test shows nothing")
			}
		})
	}
}

const (
	walkFence = 8 * time.Second // the nodes' promise
	walkLost  = 2 * time.Second
	// walkPatience is the rollout's, which is not what is tested here.
	walkPatience = 1000 * time.Hour
)

type slotWalk struct {
	replicas, troubles      int
	ordered, early, volumes bool
	patience                time.Duration // LostAfter, with which the original is asked to stay

	seen        map[string]bool
	ends, moved int
}

// yard is what there is: the store, a leader that lags behind it, and machines.
type yard struct {
	*sim
	w         *slotWalk
	inbox     []store.Batch // that the leader has not seen
	committed int64         // by the leader
	machines  map[string]*yardNode
	troubles  int
	tasks     map[string]*yardTask
	broken    string
	moves     int
}

type yardNode struct {
	cut, dead bool
	at        time.Time // when it was cut
	reg       int       // its registration
	silent    time.Time // since when the leader knows
}

// yardTask is what its agent and the kernel know of a task.
type yardTask struct {
	node     string
	slot     int
	read     int  // the registration under which its record was read
	runs     bool // the truth
	finished record.State
}

func (w *slotWalk) make(t *testing.T) *yard {
	y := &yard{sim: newSim(t), w: w, machines: map[string]*yardNode{}, tasks: map[string]*yardTask{}}
	y.state = control.NewState(control.Config{Decode: decode, Place: y.place, LostAfter: walkLost})
	for _, id := range []string{"n1", "n2"} {
		y.machines[id] = &yardNode{cut: true}
		y.back(id)
	}
	sp := spec{Replicas: w.replicas, Image: "v1", Stateful: &control.Stateful{Parallel: !w.ordered},
		Update: control.Update{Monitor: time.Second, ProgressDeadline: walkPatience, MaxFailures: 1000}}
	sp.LostAfter, sp.KeepOriginal = w.patience, w.patience != 0
	if w.volumes {
		sp.Stateful.Volumes = []string{"data"}
	}
	y.specs["db"], y.revs["db"] = sp, 1
	y.commit(store.Put(record.Key(record.Services, "default", "db"), serviceRecord(t, sp, 1, epoch)))
	return y
}

// commit writes to the store; the leader sees it later.
func (y *yard) commit(writes ...store.Write) {
	y.rev++
	batch := store.Batch{Revision: y.rev}
	for _, w := range writes {
		item := store.Item{Key: w.Key, Value: w.Value, Revision: y.rev}
		if _, had := y.kv[w.Key]; w.Delete && !had {
			continue
		}
		if w.Delete {
			delete(y.kv, w.Key)
			item.Value = nil
		} else {
			y.kv[w.Key] = item
		}
		batch.Changes = append(batch.Changes, store.Change{Item: item, Deleted: w.Delete})
	}
	y.inbox = append(y.inbox, batch)
}

// back is a node that registers.
func (y *yard) back(id string) {
	n := y.machines[id]
	n.reg++
	y.commit(store.Put(record.Key(record.Nodes, id), marshal(y.t, record.Node{
		Node:         scheduler.Node{ID: id, Ready: true, Topology: map[string]string{"yard": "1"}},
		Registration: fmt.Sprint(n.reg), Fence: walkFence,
	})), store.Put(record.Key(record.Alive, id), nil))
	for task, k := range y.tasks {
		rec, ok := y.task(task, id)
		switch {
		case k.node != id || !ok:
		case k.finished != "":
			y.say(rec, k.finished)
		case k.runs:
			y.say(rec, record.Ready)
		}
	}
	n.cut, n.dead = false, false
}

func (y *yard) task(id, node string) (record.Task, bool) {
	item, ok := y.kv[record.Key(record.Tasks, node, id)]
	var rec record.Task
	if ok && json.Unmarshal(item.Value, &rec) != nil {
		y.t.Fatalf("%s is no task", item.Value)
	}
	return rec, ok
}

// say writes a status.
func (y *yard) say(t record.Task, state record.State) {
	st, _ := y.status(t)
	if st.State == state {
		return
	}
	st.Task, st.Namespace, st.Service, st.Node, st.State, st.Since = t.ID, t.Namespace, t.Service, t.Node, state, y.now
	if state == record.Ready {
		st.Ready = y.now
	}
	if state == record.Failed {
		st.Failure = &record.Failure{Kind: record.FailedExit, Message: "exit 1", At: y.now}
	}
	y.commit(store.Put(record.Key(record.Statuses, t.Node, t.ID), marshal(y.t, st)))
}

// ownEnd is when a node that was cut has stopped what is fenced, by the leader's
// clock.
func (y *yard) ownEnd(n *yardNode) time.Time {
	if y.w.early {
		return n.at.Add(time.Second)
	}
	return n.at.Add(walkFence - 1)
}

// step is one thing that someone does.
type step struct {
	name    string
	trouble int
	do      func(y *yard)
}

func (y *yard) steps() []step {
	var out []step
	add := func(trouble int, do func(*yard), format string, args ...any) {
		if y.troubles+trouble <= y.w.troubles {
			out = append(out, step{fmt.Sprintf(format, args...), trouble, do})
		}
	}
	// The leader.
	if len(y.inbox) > 0 {
		add(0, (*yard).see, "the leader sees")
	}
	if y.state.Revision() >= y.committed {
		add(0, (*yard).plan1, "the leader plans")
	}
	add(1, (*yard).succeed, "another leads")
	// The nodes.
	for _, id := range slices.Sorted(maps.Keys(y.machines)) {
		if y.machines[id].cut {
			add(0, func(y *yard) { y.back(id) }, "%s is back", id)
			if y.machines[id].dead && !y.runsOn(id) {
				add(1, func(y *yard) {
					y.commit(store.Put(record.Key(record.NodeSpecs, id), marshal(y.t, record.NodeSpec{Fenced: fmt.Sprint(y.machines[id].reg)})))
				}, "someone vouches for %s", id)
			}
			continue
		}
		for _, dead := range []bool{false, true} {
			add(1, func(y *yard) {
				n := y.machines[id]
				n.cut, n.dead, n.at = true, dead, y.now
				y.commit(store.Delete(record.Key(record.Alive, id)))
			}, "%s is cut, dead=%v", id, dead)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(y.kv)) {
		if parts := record.Split(key, record.Tasks, 2); parts != nil {
			y.taskSteps(parts[1], parts[0], add)
		}
	}
	if at := y.next(); !at.IsZero() {
		add(0, func(y *yard) { y.advance(at) }, "time")
	}
	return out
}

// runsOn reports whether a machine runs anything.
func (y *yard) runsOn(id string) bool {
	for _, k := range y.tasks {
		if k.node == id && k.runs {
			return true
		}
	}
	return false
}

// taskSteps are what an agent can do about a task.
func (y *yard) taskSteps(id, node string, add func(int, func(*yard), string, ...any)) {
	rec, _ := y.task(id, node)
	n, k := y.machines[node], y.tasks[id]
	if k == nil {
		k = &yardTask{}
	}
	st, _ := y.status(rec)
	name := y.alias(id)
	know := func(y *yard) *yardTask {
		if y.tasks[id] == nil {
			y.tasks[id] = &yardTask{node: node, slot: rec.Slot}
		}
		return y.tasks[id]
	}
	if st.State.Final() || k.finished != "" || n.dead {
		return
	}
	started := func(y *yard) {
		know(y).runs = true
		if !y.machines[node].cut {
			if y.w.volumes {
				y.commit(store.Put(record.Key(record.Volumes, node, "v"), marshal(y.t, record.Volume{
					Name: "v", Namespace: "default", Service: "db", Slot: rec.Slot, Template: "data", Reach: map[string]string{"yard": "1"}})))
			}
			y.say(rec, record.Ready)
		}
	}
	switch {
	case n.cut:
		// It may start what it has read, until it gives up.
		if k.read == n.reg && !k.runs && y.now.Before(y.ownEnd(n)) {
			add(0, started, "%s starts, cut off", name)
		}
	case rec.Stop != nil:
		add(0, func(y *yard) {
			know(y).runs = false
			y.tasks[id].finished = record.Stopped
			y.say(rec, record.Stopped)
		}, "%s stops", name)
		// What was read before need not know of the stop yet.
		if k.read == n.reg && !k.runs {
			add(0, started, "%s starts, late", name)
		}
	case k.runs:
		add(1, func(y *yard) {
			know(y).runs = false
			y.tasks[id].finished = record.Failed
			y.say(rec, record.Failed)
		}, "%s fails", name)
	case k.read != n.reg:
		add(0, func(y *yard) { know(y).read = y.machines[node].reg }, "%s is read", name)
	default:
		add(0, started, "%s starts", name)
	}
}

// see has the leader take in what was committed.
func (y *yard) see() {
	for _, b := range y.inbox {
		for _, c := range b.Changes {
			if id, ok := strings.CutPrefix(c.Item.Key, record.Alive); ok {
				y.machines[id].silent = time.Time{}
				if c.Deleted {
					y.machines[id].silent = y.now
				}
			}
		}
		y.state.Apply(b, y.now)
	}
	y.inbox = nil
}

// plan1 is one plan, and its commit.
func (y *yard) plan1() {
	p := y.state.Plan(y.now)
	y.wake = p.Wake
	if len(p.Writes) > 0 {
		y.commit(p.Writes...)
		y.committed = y.rev
	}
}

// succeed is another leader, who reads everything and begins to wait anew.
func (y *yard) succeed() {
	snapshot := store.Snapshot{Revision: y.rev}
	for _, i := range y.kv {
		snapshot.Items = append(snapshot.Items, i)
	}
	slices.SortFunc(snapshot.Items, func(a, b store.Item) int { return strings.Compare(a.Key, b.Key) })
	y.state = control.NewState(control.Config{Decode: decode, Place: y.place, LostAfter: walkLost})
	y.state.Load(snapshot, y.now)
	y.inbox, y.committed, y.wake = nil, 0, time.Time{}
	for id, n := range y.machines {
		n.silent = time.Time{}
		if _, alive := y.kv[record.Key(record.Alive, id)]; !alive {
			n.silent = y.now
		}
	}
}

// next is when something happens by itself.
func (y *yard) next() time.Time {
	at := time.Time{}
	sooner := func(t time.Time) {
		if t.After(y.now) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	if !y.wake.IsZero() && y.wake.Sub(y.now) < walkPatience/2 {
		sooner(y.wake)
	}
	for _, n := range y.machines {
		if n.cut {
			sooner(y.ownEnd(n))
		}
	}
	return at
}

// advance lets time pass, and cut nodes stop what is fenced when theirs is over.
func (y *yard) advance(to time.Time) {
	y.now = to
	for _, k := range y.tasks {
		if n := y.machines[k.node]; n.cut && !y.now.Before(y.ownEnd(n)) {
			k.runs = false
			if !n.dead && k.finished == "" {
				k.finished = record.Failed
			}
		}
	}
}

// check notes a slot that runs twice.
func (y *yard) check() {
	runs := map[int]string{}
	for _, id := range slices.Sorted(maps.Keys(y.tasks)) {
		k := y.tasks[id]
		if !k.runs {
			continue
		}
		if other := runs[k.slot]; other != "" && y.broken == "" {
			y.broken = fmt.Sprintf("slot %d is run twice, by %s and %s", k.slot, y.alias(other), y.alias(id))
		}
		if k.node == "n2" && k.slot == 0 {
			y.moves++
		}
		runs[k.slot] = id
	}
}

// print is what of a yard can matter for what comes.
func (y *yard) print() string {
	var b strings.Builder
	r := y.rollout("db")
	fmt.Fprintf(&b, "%s %d %v %v", r.State, y.troubles, min(y.wake.Sub(y.now), time.Hour), y.state.Revision() >= y.committed)
	for _, in := range y.inbox {
		for _, c := range in.Changes {
			kind, _, _ := strings.Cut(c.Item.Key[1:], "/")
			if slices.Contains([]string{"tasks", "status", "alive", "nodes", "nodespecs", "volumes", "services"}, kind) {
				fmt.Fprintf(&b, " <%s %v %s>", kind, c.Deleted, y.alias(c.Item.Key[strings.LastIndex(c.Item.Key, "/")+1:]))
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(y.machines)) {
		n := y.machines[id]
		silent, cut := time.Duration(-1), time.Duration(-1)
		if !n.silent.IsZero() {
			silent = min(y.now.Sub(n.silent), 2*walkFence)
		}
		if n.cut {
			cut = min(y.now.Sub(n.at), 2*walkFence)
		}
		var spec record.NodeSpec
		if item, ok := y.kv[record.Key(record.NodeSpecs, id)]; ok {
			unmarshal(y.t, item.Value, &spec)
		}
		fmt.Fprintf(&b, " [%s %v %v %v %v]", id, n.dead, silent, cut, spec.Fenced == fmt.Sprint(n.reg))
	}
	for _, n := range slices.Sorted(maps.Keys(r.Slots)) {
		fmt.Fprintf(&b, " (%d %d %v)", n, r.Slots[n].Failures, min(y.now.Sub(r.Slots[n].Last), time.Minute))
	}
	for _, t := range y.sim.tasks("db") {
		st, _ := y.status(t)
		k := y.tasks[t.ID]
		if k == nil {
			k = &yardTask{}
		}
		age := time.Duration(-1)
		if st.State == record.Ready {
			age = min(y.now.Sub(st.Ready), time.Second)
		}
		fmt.Fprintf(&b, " %d@%s %v %s %v %v %v %s", t.Slot, t.Node, t.Stop != nil, st.State, age, k.runs, k.read == y.machines[t.Node].reg, k.finished)
	}
	for id, k := range y.tasks { // of records that are gone
		if _, ok := y.task(id, k.node); !ok && k.runs {
			fmt.Fprintf(&b, " ghost %d@%s", k.slot, k.node)
		}
	}
	return b.String()
}

// replay takes the steps of a path.
func (w *slotWalk) replay(t *testing.T, path []step) *yard {
	y := w.make(t)
	for _, s := range path {
		y.troubles += s.trouble
		s.do(y)
		y.check()
	}
	return y
}

func (w *slotWalk) visit(t *testing.T, path []step) {
	y := w.replay(t, path)
	key := y.print()
	if w.seen[key] {
		return
	}
	w.seen[key] = true
	w.moved += y.moves
	if y.broken != "" {
		t.Fatalf("%s\nafter\n%s", y.broken, told(path))
	}
	if len(w.seen) > 400_000 {
		t.Fatal("more than 400,000 states: something that cannot matter is told apart")
	}
	steps := y.steps()
	h := fnv.New32()
	_, _ = h.Write([]byte(key)) // never fails
	if h.Sum32()%64 == 0 {
		w.end(t, y, path)
	}
	for _, s := range steps {
		if w.visit(t, append(slices.Clone(path), s)); t.Failed() {
			return
		}
	}
}

func told(path []step) string {
	var names []string
	for _, s := range path {
		names = append(names, s.name)
	}
	return strings.Join(names, "\n")
}

// end has everybody do what they can, and checks that the service then runs.
func (w *slotWalk) end(t *testing.T, y *yard, path []step) {
	w.ends++
	for id, n := range y.machines {
		if n.cut {
			y.back(id)
		}
	}
	for range 400 {
		acted := false
		for _, s := range y.steps() {
			if s.trouble > 0 || s.name == "time" || strings.HasSuffix(s.name, "late") {
				continue
			}
			rev := y.rev
			s.do(y)
			y.check()
			if acted = s.name != "the leader plans" || y.rev > rev; acted {
				break
			}
		}
		if acted {
			continue
		}
		at := y.next()
		if at.IsZero() {
			break
		}
		y.advance(at)
	}
	running := map[int]bool{}
	for id, k := range y.tasks {
		if _, ok := y.task(id, k.node); ok && k.runs {
			running[k.slot] = true
		}
	}
	if y.broken != "" || len(running) != w.replicas || y.rollout("db").State != record.RolloutCompleted {
		t.Fatalf("in a kind world %d of %d slots run, and the rollout is %s; %s\nafter\n%s",
			len(running), w.replicas, y.rollout("db").State, y.broken, told(path))
	}
}
