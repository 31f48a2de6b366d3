package orchestratetest

import (
	"encoding/json"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// View is the fleet as the store has it, and the machines as they really are,
// at one moment of a simulation. It is to be read, and only while an invariant
// is checked.
type View struct {
	world     *world
	services  map[string]*Service
	nodes     map[string]*Node
	tasks     map[string]*Task // by ID
	endpoints map[string]*Endpoint
	frontends map[string]record.Frontend     // by service
	addresses map[netip.Addr]map[string]bool // tasks
	leader    string
	published map[string][]*Endpoint // that are for traffic, by task
	stopped   []*Task                // that served and were told to stop in this step
	twice     error                  // a slot that ran twice

	touchedTasks, touchedServices, touchedNodes map[string]bool
}

// Service is a service in a [View].
type Service struct {
	orchestrate.Service
	Key      string // NAMESPACE/NAME
	Revision int64
	// Applied is when the spec was last written, in virtual time since the begin.
	Applied time.Duration
	// Ended says that the last Apply has ended in a result, Outcome in which, and
	// RolledBack that it was followed by a rollback that completed.
	Ended      bool
	Outcome    orchestrate.Outcome
	RolledBack bool
	// Desired is how many tasks are wanted.
	Desired int
	// Tasks are its tasks by ID.
	Tasks map[string]*Task
	slots map[int][]*Task // the same
	spec  int64
}

func (s *Service) add(t *Task) {
	if s.Tasks[t.ID] == nil {
		s.Tasks[t.ID] = t
		s.slots[t.Slot] = append(s.slots[t.Slot], t)
	}
}

func (s *Service) drop(t *Task) {
	delete(s.Tasks, t.ID)
	rest := slices.DeleteFunc(s.slots[t.Slot], func(other *Task) bool { return other == t })
	if s.slots[t.Slot] = rest; len(rest) == 0 {
		delete(s.slots, t.Slot)
	}
}

// Node is a node in a [View].
type Node struct {
	ID       string
	Capacity scheduler.Resources
	Labels   map[string]string
	// Alive is whether the fleet holds it to be.
	Alive bool
	// Tasks are those that are assigned to it, by ID.
	Tasks map[string]*Task
}

// Used is what the tasks of a node were given that have not ended.
func (n *Node) Used() (r scheduler.Resources) {
	for _, t := range n.Tasks {
		if !t.Over() {
			r.CPU += t.Request.CPU
			r.Memory += t.Request.Memory
		}
	}
	return r
}

// Task is a task in a [View].
type Task struct {
	ID       string
	Service  string // NAMESPACE/NAME
	Slot     int
	Node     string
	Revision int64
	Request  scheduler.Resources
	// State is what its node says; empty before it has said anything.
	State orchestrate.State
	// Stopping is why it was told to stop; empty if it was not.
	Stopping  string
	Addresses map[string][]netip.Addr // by network
	Restarts  int
	// Known says that there is a record of it, and not only a status.
	Known bool

	served bool          // it was ready, and was not told to stop
	until  time.Duration // since the begin, when that ended
	stated time.Duration // when its status was written last
}

// Over reports whether the task has ended.
func (t *Task) Over() bool {
	return t.State == orchestrate.Stopped || t.State == orchestrate.Completed || t.State == orchestrate.Failed
}

// Serves reports whether the task is ready and not told to stop.
func (t *Task) Serves() bool { return t.State == orchestrate.Ready && t.Stopping == "" }

// Endpoint is an address that is published.
type Endpoint struct {
	Task, Node, Network string
	Service             string // NAMESPACE/NAME
	Addresses           []netip.Addr
	NotReady            bool // it stands for a name alone
	hash                string
}

func newView(w *world) *View {
	v := &View{world: w, services: map[string]*Service{}, nodes: map[string]*Node{}, tasks: map[string]*Task{},
		endpoints: map[string]*Endpoint{}, frontends: map[string]record.Frontend{}, published: map[string][]*Endpoint{}, addresses: map[netip.Addr]map[string]bool{}}
	v.settle()
	return v
}

func (v *View) settle() {
	if len(v.touchedTasks)+len(v.touchedServices)+len(v.touchedNodes) == 0 && v.touchedTasks != nil {
		return
	}
	v.stopped = nil
	v.touchedTasks, v.touchedServices, v.touchedNodes = map[string]bool{}, map[string]bool{}, map[string]bool{}
}

// Since is the virtual time since the begin.
func (v *View) Since() time.Duration { return v.world.since() }

// Leader is the control plane that leads; empty while none does.
func (v *View) Leader() string { return v.leader }

// Service returns a service by NAME or NAMESPACE/NAME, or nil.
func (v *View) Service(name string) *Service { return v.services[qualified(name)] }

// Node and Task return one by its ID, or nil.
func (v *View) Node(id string) *Node { return v.nodes[id] }

// Task returns a task by its ID, or nil.
func (v *View) Task(id string) *Task { return v.tasks[id] }

// Services, Nodes, Tasks and Endpoints go over all, in the order of their names.
func (v *View) Services() iter.Seq[*Service] { return inOrder(v.services) }

// Nodes goes over all nodes.
func (v *View) Nodes() iter.Seq[*Node] { return inOrder(v.nodes) }

// Tasks goes over all tasks.
func (v *View) Tasks() iter.Seq[*Task] { return inOrder(v.tasks) }

// Endpoints goes over all endpoints.
func (v *View) Endpoints() iter.Seq[*Endpoint] { return inOrder(v.endpoints) }

// Touched goes over the tasks, the services and the nodes that have changed in
// this step, in the order of their names: an invariant that looks at these alone
// costs the same however large the fleet is. Those that are gone are left out.
func (v *View) Touched() (tasks []*Task, services []*Service, nodes []*Node) {
	return among(v.tasks, v.touchedTasks), among(v.services, v.touchedServices), among(v.nodes, v.touchedNodes)
}

func among[V any](all map[string]*V, keys map[string]bool) (some []*V) {
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if x := all[k]; x != nil {
			some = append(some, x)
		}
	}
	return some
}

func inOrder[V any](m map[string]*V) iter.Seq[*V] {
	return func(yield func(*V) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(m[k]) {
				return
			}
		}
	}
}

func qualified(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	return "default/" + name
}

// apply takes in a commit.
func (v *View) apply(b store.Batch) {
	for _, c := range b.Changes {
		key := c.Item.Key
		switch {
		case strings.HasPrefix(key, record.Statuses):
			v.status(key, c)
		case strings.HasPrefix(key, record.Tasks):
			v.task(key, c)
		case strings.HasPrefix(key, record.Endpoints):
			v.endpoint(key, c)
		case strings.HasPrefix(key, record.Nodes):
			v.node(key[len(record.Nodes):], c)
		case strings.HasPrefix(key, record.Alive):
			v.alive(key[len(record.Alive):], c)
		case strings.HasPrefix(key, record.Services):
			v.service(key[len(record.Services):], c)
		case strings.HasPrefix(key, record.Frontends):
			v.frontend(key[len(record.Frontends):], c.Item.Value, c.Deleted)
		case strings.HasPrefix(key, record.Rollouts):
			v.rollout(key[len(record.Rollouts):], c)
		case key == record.Leader:
			v.leader = ""
			if !c.Deleted {
				v.leader = string(c.Item.Value)
				v.world.note(Event{Kind: LeaderMade, Subject: v.leader, Revision: c.Item.Revision})
			}
		}
	}
}

// of returns the task of a key /PREFIX/NODE/ID, made if it is not known.
func (v *View) of(key, prefix string) *Task {
	parts := record.Split(key, prefix, 2)
	if parts == nil {
		return &Task{}
	}
	t := v.tasks[parts[1]]
	if t == nil {
		t = &Task{ID: parts[1], Node: parts[0]}
		v.tasks[t.ID] = t
	}
	v.touchedTasks[t.ID] = true
	v.touchedNodes[t.Node] = true
	return t
}

// forget drops a task of which nothing is left.
func (v *View) forget(t *Task) {
	if !t.Known && t.State == "" {
		delete(v.tasks, t.ID)
		if n := v.nodes[t.Node]; n != nil {
			delete(n.Tasks, t.ID)
		}
		if s := v.services[t.Service]; s != nil {
			s.drop(t)
		}
	}
}

func (v *View) task(key string, c store.Change) {
	t := v.of(key, record.Tasks)
	if c.Deleted {
		t.Known = false
		v.touchedServices[t.Service] = true
		v.world.note(Event{Kind: TaskGone, Subject: t.ID, Revision: c.Item.Revision})
		v.forget(t)
		return
	}
	var rec record.Task
	if record.ReadTask(c.Item.Value, &rec) != nil {
		return
	}
	placed := !t.Known
	t.Known = true
	t.Service, t.Slot, t.Revision, t.Request = rec.Namespace+"/"+rec.Service, rec.Slot, rec.Revision, rec.Request.Resources
	if n := v.nodes[t.Node]; n != nil {
		n.Tasks[t.ID] = t
	}
	if s := v.services[t.Service]; s != nil {
		s.add(t)
	}
	v.touchedServices[t.Service] = true
	if placed {
		v.world.note(Event{Kind: TaskPlaced, Subject: t.ID, Detail: t.Node, Revision: c.Item.Revision})
	}
	if rec.Stop != nil && t.Stopping == "" {
		if t.Serves() || t.served {
			v.stopped = append(v.stopped, t)
		}
		t.Stopping = rec.Stop.Reason
		v.world.note(Event{Kind: TaskStop, Subject: t.ID, Detail: t.Stopping, Revision: c.Item.Revision})
	}
}

func (v *View) status(key string, c store.Change) {
	t := v.of(key, record.Statuses)
	for _, addrs := range t.Addresses {
		for _, a := range addrs {
			delete(v.addresses[a], t.ID)
			if len(v.addresses[a]) == 0 {
				delete(v.addresses, a)
			}
		}
	}
	v.touchedServices[t.Service] = true
	if c.Deleted {
		t.State, t.Addresses = "", nil
		v.forget(t)
		return
	}
	var rec record.Status
	if record.ReadStatus(c.Item.Value, &rec) != nil {
		return
	}
	if state := orchestrate.State(rec.State); state != t.State {
		e := Event{Kind: TaskState, Subject: t.ID, Detail: string(state), Revision: c.Item.Revision}
		if rec.Failure != nil && state == orchestrate.Failed {
			e.Detail += ", " + rec.Failure.Message
		}
		v.world.note(e)
	}
	if t.Serves() && rec.State != record.Ready {
		t.served, t.until = true, v.Since()
	}
	t.State, t.Addresses, t.Restarts, t.stated = orchestrate.State(rec.State), rec.Addresses, rec.Restarts, v.Since()
	if t.State == orchestrate.Ready {
		t.served = false
	}
	if t.Over() {
		return
	}
	for _, addrs := range t.Addresses {
		for _, a := range addrs {
			if v.addresses[a] == nil {
				v.addresses[a] = map[string]bool{}
			}
			v.addresses[a][t.ID] = true
		}
	}
}

func (v *View) endpoint(key string, c store.Change) {
	parts := record.Split(key, record.Endpoints, 5)
	if parts == nil {
		return
	}
	v.touchedTasks[parts[4]] = true
	if old := v.endpoints[key]; old != nil {
		rest := slices.DeleteFunc(v.published[old.Task], func(e *Endpoint) bool { return e == old })
		if v.published[old.Task] = rest; len(rest) == 0 {
			delete(v.published, old.Task)
		}
	}
	if c.Deleted {
		delete(v.endpoints, key)
		return
	}
	e := &Endpoint{Node: parts[0], Network: parts[1], Service: parts[2] + "/" + parts[3], Task: parts[4]}
	var rec struct {
		Addresses         []netip.Addr
		Hash              string
		NotReady, Leaving bool
	}
	if json.Unmarshal(c.Item.Value, &rec) == nil {
		e.Addresses, e.NotReady, e.hash = rec.Addresses, rec.NotReady, rec.Hash
		v.endpoints[key] = e
		if !e.NotReady && !rec.Leaving {
			v.published[e.Task] = append(v.published[e.Task], e)
		}
	}
}

func (v *View) nodeOf(id string) *Node {
	n := v.nodes[id]
	if n == nil {
		n = &Node{ID: id, Tasks: map[string]*Task{}}
		v.nodes[id] = n
		for _, t := range v.tasks {
			if t.Node == id {
				n.Tasks[t.ID] = t
			}
		}
	}
	v.touchedNodes[id] = true
	return n
}

func (v *View) node(id string, c store.Change) {
	n := v.nodeOf(id)
	if c.Deleted {
		delete(v.nodes, id)
		return
	}
	var rec struct {
		Capacity scheduler.Resources
		Labels   map[string]string
	}
	if json.Unmarshal(c.Item.Value, &rec) == nil {
		n.Capacity, n.Labels = rec.Capacity, rec.Labels
	}
}

func (v *View) alive(id string, c store.Change) {
	n := v.nodeOf(id)
	if n.Alive == !c.Deleted {
		return
	}
	n.Alive = !c.Deleted
	kind := NodeUp
	if c.Deleted {
		kind = NodeDown
	}
	v.world.note(Event{Kind: kind, Subject: id, Revision: c.Item.Revision})
}

func (v *View) service(key string, c store.Change) {
	v.touchedServices[key] = true
	s := v.services[key]
	if c.Deleted {
		delete(v.services, key)
		return
	}
	if s == nil {
		s = &Service{Key: key, Tasks: map[string]*Task{}, slots: map[int][]*Task{}}
		for _, t := range v.tasks {
			if t.Service == key {
				s.add(t)
			}
		}
		v.services[key] = s
	}
	var rec record.Service
	if json.Unmarshal(c.Item.Value, &rec) != nil {
		return
	}
	var spec orchestrate.Service
	if json.Unmarshal(rec.Spec, &spec) != nil {
		return
	}
	s.Service, s.Revision, s.spec = spec, rec.Revision, c.Item.Revision
	s.Applied, s.Ended, s.Outcome, s.RolledBack = v.Since(), false, "", false
	s.Desired = max(spec.Replicas, 0)
}

func (v *View) rollout(key string, c store.Change) {
	s := v.services[key]
	v.touchedServices[key] = true
	if s == nil || c.Deleted {
		return
	}
	var rec record.Rollout
	if json.Unmarshal(c.Item.Value, &rec) != nil {
		return
	}
	s.Desired = rec.Desired
	if rec.Spec != s.spec || s.Ended || rec.State == record.Progressing || rec.Rollback != nil && rec.Rollback.State == record.Progressing {
		return
	}
	s.Ended = true
	s.Outcome, s.RolledBack = orchestrate.RolloutFailed, rec.Rollback != nil && rec.Rollback.State == record.RolloutCompleted
	if rec.State == record.RolloutCompleted {
		s.Outcome = orchestrate.RolloutCompleted
	}
	v.world.note(Event{Kind: RolloutDone, Subject: key, Detail: string(s.Outcome), Revision: c.Item.Revision})
}
