package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// Config is what a State decides by.
type Config struct {
	// Decode makes a Workload of a service's record. It must be pure. A record
	// that it refuses fails that service's rollout and nothing else. Where at
	// is not nil, its template, hash and revision take the place of the
	// record's own: it is one of its History.
	Decode func(namespace, name string, rec record.Service, at *record.Revision) (Workload, error)
	// DecodeJob makes a JobWork of a job's record. It must be pure. A record that
	// it refuses fails that job's run and nothing else; nil refuses all.
	DecodeJob func(namespace, name string, rec record.Job) (JobWork, error)
	// Place finds nodes; see Placer.
	Place Placer
	// LostAfter is how long a node may be silent before its tasks are replaced,
	// unless their workload says otherwise; see silence.go.
	LostAfter time.Duration
	// LossLimit is how many nodes, or what share of them, are given up within a
	// minute because they are silent; at least one is. 0 is no limit.
	LossLimit Amount
	// Renewals is how many renewals a second of nodes' leases the store is to
	// bear; 0 is record.DefaultRenewals, and negative is no limit.
	Renewals int
	// KeepEventsEach and KeepEvents bound the history of events; 0 is the
	// constant of that name.
	KeepEventsEach, KeepEvents int
	// doubt, in tests, has each plan made of all tasks too, and is told where that
	// comes to something else.
	doubt func(string)
}

// State is an indexed view of the store, and the planner's only memory: a
// leader that loads it anew decides the same. It is not for concurrent use.
//
// It has no clock: now is an argument, and must not go backwards.
type State struct {
	config   Config
	cluster  *scheduler.Cluster
	revision int64 // of the store
	now      time.Time
	loading  bool

	services map[string]*service // by NS/NAME
	nodes    map[string]*node
	brake    brake
	// registered is how many of nodes have a record.
	registered int
	size       record.Size // as nodes are told
	networks   map[string]*network
	tasks      map[string]*task // by NODE/ID
	ids        map[string]int   // how many tasks have an ID: one, if all is well
	volumes    map[string]*slotVolume
	// evictions are of tasks by NODE/ID.
	evictions map[string]record.Eviction
	globals   map[*service]struct{} // whose tasks follow the nodes

	// awaited is who waits for NS/NAME; see depends.go.
	awaited map[string]map[*service]struct{}

	dirty  map[*service]struct{} // to be planned
	hungry map[*service]struct{} // have replicas without a place
	timers timers
	events []Event // seen since the last Plan
	kept   *kept   // the events in the store
	slots  []slot  // room for the next view

	rehearsed bool // it is a copy that is played with; see State.Rehearse
}

// service is all there is about one name: it lasts as long as any record does.
type service struct {
	key             string // NS/NAME
	namespace, name string

	spec    int64 // store revision of the record; 0 when there is none
	created time.Time
	work    *Workload // replaced, and not written to, as a task's record is; never nil
	invalid error     // why the record does not decode
	actor   string    // who wrote the record
	// record is the service's, where it has a history, and earlier what it was
	// decoded to at a revision of that; see State.earlier.
	record  []byte
	earlier *earlier

	tasks    []*task // by slot, then ID
	restless []*task // those of them that are not calm, and some that are gone
	volumes  []*slotVolume
	scale    *record.Scale
	rollout  *record.Rollout
	frontend *record.Frontend
	// directive is the last that the application gave; nil if none.
	directive *record.Directive
	job       *job // nil unless the name is a job's; then there is no spec
	// As they are in the store, to see whether they change.
	rolloutRaw, frontendRaw []byte

	awaits []string // what it is in State.awaited for
	spares bool     // the scheduler has been told how many tasks it spares

	timer timer
	twin  *service // see State.Clone
	// supposed says, in a rehearsal, that what it waits for holds.
	supposed bool
}

// task is a task's record with what its agent says of it.
type task struct {
	// rec is replaced, and not written to: copies of the state share it. See own.
	rec     *record.Task
	service *service
	node    *node
	status  *record.Status // nil until the agent has written one
	final   bool           // what status says is
	// since is when the task was seen to have become ready; zero unless it is
	// ready. It is the leader's clock: a node's may be wrong by anything.
	since time.Time
	// calm says that the task needs no look, see leaveCalm, and gone that it has no
	// record any more.
	calm, gone bool
	// evicted says that somebody, the evictor, asked for it to be moved.
	evicted bool
	evictor string
	place   int   // in its node's tasks
	twin    *task // see State.Clone
}

// own returns the record for writing.
func (t *task) own() *record.Task {
	rec := *t.rec
	t.rec = &rec
	t.disturb()
	return t.rec
}

// over reports whether the agent is done with the task.
func (t *task) over() bool { return t.final }

// live reports whether the task runs, or is about to, and is meant to.
func (t *task) live() bool { return !t.over() && t.rec.Stop == nil && !t.lost() }

// available reports whether the task serves.
func (t *task) available() bool {
	return t.live() && t.status != nil && t.status.State == record.Ready && t.node.alive
}

// settled reports whether the task has been available for as long as d.
func (t *task) settled(d time.Duration, now time.Time) bool {
	return t.available() && t.inForce() && !t.since.Add(d).After(now)
}

// NewState returns a view of an empty store.
func NewState(config Config) *State {
	if config.LostAfter <= 0 {
		config.LostAfter = DefaultLostAfter
	}
	if config.Renewals == 0 {
		config.Renewals = record.DefaultRenewals
	}
	return &State{
		config:    config,
		brake:     brake{limit: config.LossLimit},
		cluster:   scheduler.NewCluster(),
		services:  map[string]*service{},
		nodes:     map[string]*node{},
		networks:  map[string]*network{},
		tasks:     map[string]*task{},
		ids:       map[string]int{},
		volumes:   map[string]*slotVolume{},
		evictions: map[string]record.Eviction{},
		globals:   map[*service]struct{}{},
		awaited:   map[string]map[*service]struct{}{},
		dirty:     map[*service]struct{}{},
		hungry:    map[*service]struct{}{},
		kept:      newKept(config.KeepEventsEach, config.KeepEvents),
	}
}

// DefaultLostAfter is the LostAfter that 0 stands for.
const DefaultLostAfter = 30 * time.Second

// Revision is the store revision that the state is at.
func (s *State) Revision() int64 { return s.revision }

// loadOrder is the order in which the records of a snapshot are taken in: what
// refers to something comes after it.
var loadOrder = [...]string{
	record.Nodes, record.NodeSpecs, record.Alive, record.Networks, record.Scales, record.Evictions,
	record.Jobs, record.Runs, record.Services, record.Directives, record.Rollouts, record.Frontends, record.Volumes, record.Tasks, record.Statuses, record.Oblivion, record.Fleet,
}

// Load takes in a snapshot of the whole store. The state must be new.
//
// Nodes that are silent now are lost LostAfter from now at the earliest: whoever
// just came to lead does not know how long they have been.
func (s *State) Load(snapshot store.Snapshot, now time.Time) {
	s.loading = true
	defer func() { s.loading = false }()
	s.now = now
	for key, err := range s.kept.load(under(snapshot.Items, record.Kept)) {
		s.ignore(key, err)
	}
	for _, prefix := range loadOrder {
		changes := puts(under(snapshot.Items, prefix))
		for i, p := range parseAll(changes) {
			s.change(changes[i], p)
		}
	}
	s.revision = snapshot.Revision
	s.loading = false
	for _, id := range slices.Sorted(maps.Keys(s.nodes)) {
		s.rearm(s.nodes[id])
	}
	for _, svc := range s.services {
		// A leader would have ended it in time. Nobody led, so perhaps nobody
		// did anything, as when the only machine was off: that is no verdict.
		if svc.rollout == nil {
			continue
		}
		if a := svc.rollout.Current(); !standsStill(svc.rollout) && a.State == record.Progressing && !svc.work.Update.deadline(a).After(now) {
			a.Progressed = now
		}
	}
}

// under returns the items, which are sorted, whose keys have a prefix.
func under(items []store.Item, prefix string) []store.Item {
	first, _ := slices.BinarySearchFunc(items, prefix, func(i store.Item, p string) int {
		return strings.Compare(i.Key, p)
	})
	last := first
	for last < len(items) && strings.HasPrefix(items[last].Key, prefix) {
		last++
	}
	return items[first:last]
}

// Apply takes in what a commit changed.
func (s *State) Apply(batch store.Batch, now time.Time) {
	s.apply(arrival{batch, parseAll(batch.Changes)}, now)
}

func (s *State) apply(a arrival, now time.Time) {
	s.now = now
	for i, p := range a.parsed {
		s.change(a.Changes[i], p)
	}
	s.revision = max(s.revision, a.Revision)
}

// change takes in one written or deleted key.
func (s *State) change(c store.Change, p parsed) {
	kind := c.Item.Key
	if kind == "" {
		return
	}
	if i := strings.IndexByte(kind[1:], '/'); i >= 0 {
		kind = kind[:i+2]
	}
	var err error
	switch rest := c.Item.Key[len(kind):]; kind {
	case record.Services:
		err = s.changeService(rest, c)
	case record.Directives:
		err = s.changeDirective(rest, c)
	case record.Jobs:
		err = s.changeJob(rest, c)
	case record.Runs:
		err = s.changeRun(rest, c)
	case record.Rollouts:
		err = s.changeRollout(rest, c)
	case record.Frontends:
		err = s.changeFrontend(rest, c)
	case record.Tasks:
		err = s.changeTask(rest, c, p)
	case record.Statuses:
		err = s.changeStatus(rest, c, p)
	case record.Nodes:
		err = s.changeNode(rest, c)
	case record.NodeSpecs:
		err = s.changeNodeSpec(rest, c)
	case record.Alive:
		s.changeAlive(rest, c)
	case record.Networks:
		err = s.changeNetwork(rest, c)
	case record.Kept:
		err = s.kept.change(c, p)
	case record.Oblivion:
		err = s.kept.changeForgotten(c)
	case record.Volumes:
		err = s.changeVolume(rest, c)
	case record.Scales:
		err = s.changeScale(rest, c)
	case record.Evictions:
		err = s.changeEviction(rest, c)
	case record.Fleet:
		err = s.changeSize(c)
	}
	if err != nil {
		s.ignore(c.Item.Key, err)
	}
}

func (s *State) ignore(key string, err error) {
	s.see(Event{Kind: RecordIgnored, Message: fmt.Sprintf("%s: %v", key, err)})
}

func (s *State) see(e Event) {
	e.At, e.Cause.Reason = s.now, e.Reason
	s.events = append(s.events, e)
}

func (s *State) mark(svc *service) {
	s.dirty[svc] = struct{}{}
}

// atRest reports whether planning svc would change nothing, as far as its
// records say that without its spec: it is true, and has been. Whether a global
// service is depends on the nodes.
func (s *service) atRest() bool {
	r := s.rollout
	if s.work.Global || s.invalid != nil || s.job != nil || s.frontend == nil && s.work.fronted() {
		return false
	}
	if r == nil || r.Spec != s.spec || r.Rollback != nil || r.State != record.RolloutCompleted || r.Unplaced != "" || len(r.Slots) > 0 {
		return false
	}
	if n := len(s.tasks); r.Desired != n || r.Updated != n || r.Ready != n || len(s.volumes) > n || s.scale != nil && s.scale.Replicas != n {
		return false
	}
	for _, t := range s.tasks {
		if !t.available() || t.leaving() || t.rec.Hash != r.Hash {
			return false
		}
	}
	return true
}

// service returns the entry of a name, made if need be.
func (s *State) service(key string) (*service, error) {
	if svc := s.services[key]; svc != nil {
		return svc, nil
	}
	parts := record.Split(key, "", 2)
	if parts == nil {
		return nil, fmt.Errorf("want a key of the form NAMESPACE/NAME, have %q", key)
	}
	if err := usable(key); err != nil {
		return nil, err
	}
	svc := &service{key: key, namespace: parts[0], name: parts[1], work: new(Workload)}
	svc.timer.due = func() { s.mark(svc) }
	s.services[key] = svc
	return svc, nil
}

// usable refuses a name of which no keys can be made. No store of this library
// takes one, but others may have written to it: a plan that no store can commit
// would stop all others too.
func usable(name string) error {
	if len(name) > store.MaxKeyBytes/2 {
		return fmt.Errorf("a name of %d bytes: want at most %d", len(name), store.MaxKeyBytes/2)
	}
	return store.ValidateKey("/" + name)
}

// forget drops the entry of a name of which nothing is left.
func (s *State) forget(svc *service) {
	if svc.spec != 0 || len(svc.tasks)+len(svc.volumes) > 0 || svc.rollout != nil || svc.frontend != nil || svc.scale != nil || svc.directive != nil || svc.job != nil {
		return
	}
	delete(s.services, svc.key)
	delete(s.hungry, svc)
	delete(s.dirty, svc)
	s.unawait(svc)
	s.timers.set(&svc.timer, time.Time{})
}

func (s *State) changeService(key string, c store.Change) error {
	svc, err := s.service(key)
	if err != nil {
		return err
	}
	s.mark(svc)
	s.moved(key)
	delete(s.hungry, svc)
	svc.record, svc.earlier = nil, nil
	svc.disturbAll()
	delete(s.globals, svc)
	was := svc.work.Ports
	defer func() { s.ceded(was, svc.work.Ports) }()
	if c.Deleted {
		svc.spec, svc.work, svc.invalid, svc.actor = 0, new(Workload), nil, ""
		s.forget(svc)
		return nil
	}
	// A record that cannot be read still has a revision, for which its rollout
	// fails: whoever waits for it must hear.
	svc.spec, svc.work = c.Item.Revision, new(Workload)
	s.readService(svc, c.Item.Value)
	return nil
}

func (s *State) readService(svc *service, value []byte) {
	var rec record.Service
	if svc.invalid = json.Unmarshal(value, &rec); svc.invalid != nil {
		return
	}
	svc.created, svc.actor = rec.Created, rec.Actor
	if len(rec.History) > 0 {
		svc.record = value
	}
	var w Workload
	w, svc.invalid = s.decode(svc, rec, nil)
	svc.work = &w
	s.rearmAll(svc)
	if svc.work.Global {
		s.globals[svc] = struct{}{}
	}
}

// decode makes a Workload of a service's record. Of one that it refuses, the
// Workload has what there is to say.
func (s *State) decode(svc *service, rec record.Service, at *record.Revision) (Workload, error) {
	w, err := s.config.Decode(svc.namespace, svc.name, rec, at)
	if err == nil && w.Template != nil && !json.Valid(w.Template) {
		err = errors.New("its template is not JSON")
	}
	if err != nil {
		w = Workload{Hash: rec.Hash, Revision: rec.Revision}
		if at != nil {
			w.Hash, w.Revision = at.Hash, at.Revision
		}
	}
	w.fixed, w.given = w.Replicas, w.Update
	svc.rescale(&w)
	w.Namespace, w.Name = svc.namespace, svc.name
	return w, err
}

func (s *State) changeRollout(key string, c store.Change) error {
	svc, err := s.service(key)
	if err != nil {
		return err
	}
	s.mark(svc)
	s.moved(key)
	svc.rollout, svc.rolloutRaw = nil, nil
	if c.Deleted {
		s.forget(svc)
		return nil
	}
	var rec record.Rollout
	if err := json.Unmarshal(c.Item.Value, &rec); err != nil {
		return err // it is written anew
	}
	svc.rollout, svc.rolloutRaw = &rec, c.Item.Value
	return nil
}

func (s *State) changeTask(key string, c store.Change, p parsed) error {
	if old := s.tasks[key]; old != nil && c.Deleted {
		s.dropTask(key, old)
		return nil
	} else if c.Deleted {
		return nil
	}
	if p.err != nil {
		return p.err
	}
	rec := p.task
	if key != rec.Node+"/"+rec.ID {
		return fmt.Errorf("it says that it is task %q of node %q", rec.ID, rec.Node)
	}
	if t := s.tasks[key]; t != nil {
		// What it is never changes; svc.tasks is sorted by it.
		rec.Namespace, rec.Service, rec.Slot = t.rec.Namespace, t.rec.Service, t.rec.Slot
		other := t.rec.Hash != rec.Hash
		t.rec = rec
		t.disturb()
		if other {
			s.rebind(t)
		}
		s.mark(t.service)
		s.rearm(t.node)
		return nil
	}
	svc, err := s.service(rec.Namespace + "/" + rec.Service)
	if err != nil {
		return err
	}
	t := &task{rec: rec, service: svc, node: s.node(rec.Node)}
	if e, evicted := s.evictions[key]; evicted {
		t.evicted, t.evictor = true, e.Actor
	}
	s.tasks[key] = t
	s.ids[rec.ID]++
	t.node.add(t)
	at, _ := slices.BinarySearchFunc(svc.tasks, t, compareTasks)
	svc.tasks = slices.Insert(svc.tasks, at, t)
	if svc.restless = append(svc.restless, t); len(svc.restless) > 2*len(svc.tasks)+16 {
		svc.rest()
	}
	svc.disturbSlot(at)
	s.bind(t)
	s.mark(svc)
	s.rearm(t.node)
	return nil
}

func compareTasks(a, b *task) int {
	if a.rec.Slot != b.rec.Slot {
		return a.rec.Slot - b.rec.Slot
	}
	return strings.Compare(a.rec.ID, b.rec.ID)
}

func (s *State) dropTask(key string, t *task) {
	s.release(t)
	t.gone = true
	delete(s.tasks, key)
	if s.ids[t.rec.ID]--; s.ids[t.rec.ID] == 0 {
		delete(s.ids, t.rec.ID)
	}
	t.node.drop(t)
	s.left(t.node)
	s.forgetNode(t.node)
	svc := t.service
	at, _ := slices.BinarySearchFunc(svc.tasks, t, compareTasks)
	svc.tasks = slices.Delete(svc.tasks, at, at+1)
	s.mark(svc)
	s.forget(svc)
}

// changeStatus takes in what an agent says. A status without a task is what is
// left of one whose record was deleted; its agent will delete it.
func (s *State) changeStatus(key string, c store.Change, p parsed) error {
	t := s.tasks[key]
	if t == nil {
		return nil
	}
	s.mark(t.service)
	t.disturb()
	if c.Deleted {
		t.status, t.since, t.final = nil, time.Time{}, false
		return nil
	}
	if p.err != nil {
		return p.err
	}
	old, st := t.status, p.status
	t.status, t.final = st, st.State.Final()
	switch {
	case st.State != record.Ready:
		t.since = time.Time{}
	case s.loading:
		// What was ready before this leader came is believed its own time,
		// unless that is yet to come.
		t.since = s.now
		if st.Ready.Before(s.now) && !st.Ready.IsZero() {
			t.since = st.Ready
		}
		if st.InForceSince.After(t.since) {
			t.since = st.InForceSince
		}
		if t.since.After(s.now) { // by its node's clock
			t.since = s.now
		}
	case old == nil || old.State != record.Ready || !old.Ready.Equal(st.Ready) || old.InForce != st.InForce:
		t.since = s.now
	}
	if t.over() {
		s.release(t)
	}
	return nil
}
