package scheduler

import (
	"fmt"
	"iter"
	"maps"
	"math"
	"math/bits"
	"reflect"
	"slices"
	"strings"
)

// Cluster is the state that is decided upon: which nodes there are, what they
// have, and which tasks are bound to them. It is kept up to date by deltas,
// each of which costs the same whatever the number of nodes and tasks.
//
// A Cluster may be read by many goroutines at once, but Place, Rebalance, Clone,
// Eligible and every method that changes it need it for themselves.
type Cluster struct {
	nodes     []nodeState
	specs     []*Node // by slot; nil when the slot is free. Never changed, only replaced
	slots     map[string]int32
	freeSlots []int32
	ranked    bool            // whether the nodes' ranks are up to date
	order     []int32         // slots in the order of their ids, when ranked
	ports     [][]HostPort    // by slot; nil while nobody takes ports. Inner slices are replaced whole
	devices   [][]deviceState // by slot; nil while nobody has devices. Inner slices are replaced whole

	tasks      taskTable
	shapes     []*shape
	shapeRefs  []int32 // tasks of each shape, and Places under way
	shapeIDs   map[string]int32
	freeShapes []int32
	usedShapes int // with tasks

	services     []*service
	owned        []bool // which of them no other cluster has, so that they may be written to
	serviceIDs   map[serviceKey]int32
	freeServices []int32
	antiShapes   int                // tasks whose shape has required anti-affinity
	budgets      map[serviceKey]int // see Spare

	columns columns
	statics []*staticSet
	indexes []*index
	spare   *index // for requests whose index is of no use to others
	clock   uint64 // counts uses of statics and indexes, to evict the stalest
	specSeq uint64 // counts changes of specs
	changes changeLog

	keyBuf  keyBuf
	picks   []int32
	touched []int32
	tally   []int32 // by slot: replicas of the group being placed
	placing bool    // shapes without tasks may be in use

	total [dims]total // allocatable of all nodes
}

// nodeState is what a placement looks at and changes: one cache line.
type nodeState struct {
	free    vector        // allocatable minus used; negative after too much was bound
	inverse [dims]float64 // 1 / allocatable; 0 for nothing
	rank    uint64        // position among the ids, sorted: breaks ties alike in every cluster
	tasks   int32
	head    int32 // first of its tasks
}

type deviceState struct {
	kind, model string
	have, used  int64
}

// NewCluster returns a cluster without nodes.
func NewCluster() *Cluster {
	return &Cluster{
		slots:      map[string]int32{},
		tasks:      newTaskTable(),
		shapeIDs:   map[string]int32{},
		serviceIDs: map[serviceKey]int32{},
	}
}

// Clone returns a copy for what-if questions: what happens to either is not
// seen by the other. It copies a few flat arrays, about 70 bytes a node and 50
// a task, and shares the rest.
func (c *Cluster) Clone() *Cluster {
	d := *c
	d.nodes = slices.Clone(c.nodes)
	d.specs = slices.Clone(c.specs)
	d.slots = maps.Clone(c.slots)
	d.freeSlots = slices.Clone(c.freeSlots)
	d.order = slices.Clone(c.order)
	d.ports = slices.Clone(c.ports)
	d.devices = slices.Clone(c.devices)
	d.tasks = c.tasks.clone()
	d.shapes = slices.Clone(c.shapes)
	d.shapeRefs = slices.Clone(c.shapeRefs)
	d.shapeIDs = maps.Clone(c.shapeIDs)
	d.freeShapes = slices.Clone(c.freeShapes)
	d.services = slices.Clone(c.services)
	d.serviceIDs = maps.Clone(c.serviceIDs)
	d.freeServices = slices.Clone(c.freeServices)
	d.budgets = maps.Clone(c.budgets)
	// Both have the same services now. Whoever writes to one first makes its own.
	clear(c.owned)
	d.owned = make([]bool, len(c.owned))
	d.columns = c.columns.clone()
	d.statics, d.indexes, d.spare = nil, nil, nil // built again when asked for
	d.changes = changeLog{}
	d.keyBuf, d.picks, d.touched, d.tally = nil, nil, nil, nil
	return &d
}

// SetNode adds a node, or replaces what is known about it; its tasks stay. The
// error is an *InvalidError, and nothing has changed then.
func (c *Cluster) SetNode(n Node) error {
	if err := n.Validate(); err != nil {
		return err
	}
	slot, known := c.slots[n.ID]
	if known && reflect.DeepEqual(*c.specs[slot], n) {
		return nil // heartbeats cost nothing
	}
	if !known {
		slot = c.newSlot(n.ID)
	}
	spec := cloneNode(&n)
	have := spec.allocatable()
	s := &c.nodes[slot]
	var had vector
	if old := c.specs[slot]; old != nil {
		had = old.allocatable()
	}
	for d := range dims {
		c.total[d].add(have[d])
		c.total[d].sub(had[d])
		s.free[d] += have[d] - had[d]
		s.inverse[d] = 0
		if have[d] > 0 {
			s.inverse[d] = 1 / float64(have[d])
		}
	}
	c.specs[slot] = spec
	c.setDevices(slot, spec.Capacity.Devices)
	c.columns.set(slot, spec)
	c.specSeq++
	return nil
}

func (c *Cluster) newSlot(id string) int32 {
	id = strings.Clone(id)
	var slot int32
	if n := len(c.freeSlots); n > 0 {
		slot, c.freeSlots = c.freeSlots[n-1], c.freeSlots[:n-1]
	} else {
		slot = int32(len(c.nodes))
		c.nodes = append(c.nodes, nodeState{})
		c.specs = append(c.specs, nil)
		if c.ports != nil {
			c.ports = append(c.ports, nil)
		}
		if c.devices != nil {
			c.devices = append(c.devices, nil)
		}
	}
	c.nodes[slot] = nodeState{head: none}
	c.slots[id] = slot
	c.ranked = false
	return slot
}

func cloneNode(n *Node) *Node {
	s := *n
	s.Labels = maps.Clone(n.Labels)
	s.Capacity.Devices = slices.Clone(n.Capacity.Devices)
	s.Taints = slices.Clone(n.Taints)
	s.Images = slices.Clone(n.Images)
	s.Drivers = slices.Clone(n.Drivers)
	s.Topology = maps.Clone(n.Topology)
	return &s
}

// RemoveNode forgets a node and releases its tasks, whose ids it returns in
// order. The error is ErrNodeUnknown.
func (c *Cluster) RemoveNode(id string) ([]string, error) {
	slot, ok := c.slots[id]
	if !ok {
		return nil, fmt.Errorf("remove node %q: %w", id, ErrNodeUnknown)
	}
	var gone []string
	for i := c.nodes[slot].head; i != none; i = c.nodes[slot].head {
		gone = append(gone, c.tasks.entries[i].id)
		c.release(i)
	}
	slices.Sort(gone)
	delete(c.slots, id)
	for d, v := range c.specs[slot].allocatable() {
		c.total[d].sub(v)
	}
	c.nodes[slot] = nodeState{head: none}
	c.specs[slot] = nil
	if c.devices != nil {
		c.devices[slot] = nil
	}
	c.columns.clear(slot)
	c.freeSlots = append(c.freeSlots, slot)
	c.ranked = false
	c.specSeq++
	return gone, nil
}

// rank numbers the nodes in the order of their ids. Nodes that came in that
// order are then also neighbours in memory, which makes large groups faster.
func (c *Cluster) rank() {
	if c.ranked {
		return
	}
	c.order = c.order[:0]
	for slot, n := range c.specs {
		if n != nil {
			c.order = append(c.order, int32(slot))
		}
	}
	slices.SortFunc(c.order, func(a, b int32) int { return strings.Compare(c.specs[a].ID, c.specs[b].ID) })
	for i, slot := range c.order {
		c.nodes[slot].rank = uint64(i)
	}
	c.ranked = true
}

// Bind records that a task runs on a node and takes there what r says. It
// records facts, so it does not ask whether there is room: a node that has
// shrunk is overfull, and gets nothing new until it is not. Count, Tasks and
// the other fields about a single Place are ignored. For a device of any model
// it chooses the model of which most is free then; Task tells which. Errors match
// ErrNodeUnknown, ErrTaskExists or ErrInvalid, and nothing has changed then.
func (c *Cluster) Bind(task, node string, r *Request) error {
	slot, ok := c.slots[node]
	if !ok {
		return fmt.Errorf("bind task %q: node %q: %w", task, node, ErrNodeUnknown)
	}
	if task == "" {
		return fmt.Errorf("bind to node %q: %w", node, invalid("task", task, "an id"))
	}
	if c.tasks.find(task) != none {
		return fmt.Errorf("bind task %q: %w", task, ErrTaskExists)
	}
	sh, err := c.intern(r)
	if err != nil {
		return fmt.Errorf("bind task %q: %w", task, err)
	}
	for d, v := range sh.need {
		if c.nodes[slot].free[d] < math.MinInt64/2+v {
			return fmt.Errorf("bind task %q: node %q: %w", task, node, invalid("resources."+dimNames[d], v, "a sum on the node that fits 62 bits"))
		}
	}
	sh = c.concrete(sh, slot)
	c.take(slot, sh)
	c.addTask(task, slot, sh)
	c.countTask(sh.svc, slot, 1)
	c.changes.add(slot, len(c.nodes))
	return nil
}

// Release records that a task is gone and gives back what it took. The error
// is ErrTaskUnknown.
func (c *Cluster) Release(task string) error {
	i := c.tasks.find(task)
	if i == none {
		return fmt.Errorf("release task %q: %w", task, ErrTaskUnknown)
	}
	c.release(i)
	return nil
}

func (c *Cluster) release(i int32) {
	e := c.tasks.entries[i]
	sh := c.shapes[e.shape]
	c.give(e.node, sh)
	c.countTask(sh.svc, e.node, -1)
	c.tasks.remove(i, &c.nodes[e.node].head)
	c.unref(sh)
	c.changes.add(e.node, len(c.nodes))
}

// addTask enters a task whose resources are taken already. It is false, and
// nothing has happened, when there is a task of that id.
func (c *Cluster) addTask(id string, slot int32, sh *shape) bool {
	if !c.tasks.add(id, slot, sh.id, &c.nodes[slot].head) {
		return false
	}
	c.ref(sh)
	return true
}

func (c *Cluster) ref(sh *shape) {
	if c.shapeRefs[sh.id]++; c.shapeRefs[sh.id] == 1 {
		c.usedShapes++
	}
	if sh.anti {
		c.antiShapes++
	}
}

func (c *Cluster) unref(sh *shape) {
	if c.shapeRefs[sh.id]--; c.shapeRefs[sh.id] == 0 {
		c.usedShapes--
	}
	if sh.anti {
		c.antiShapes--
	}
}

// take and give move what a task of sh needs on a node.
func (c *Cluster) take(slot int32, sh *shape) {
	n := &c.nodes[slot]
	for d := range dims {
		n.free[d] -= sh.need[d]
	}
	n.tasks++
	if len(sh.req.Ports) > 0 {
		c.takePorts(slot, sh.req.Ports)
	}
	if len(sh.req.Resources.Devices) > 0 {
		c.moveDevices(slot, sh.req.Resources.Devices, 1)
	}
}

func (c *Cluster) give(slot int32, sh *shape) {
	n := &c.nodes[slot]
	for d := range dims {
		n.free[d] += sh.need[d]
	}
	n.tasks--
	if len(sh.req.Ports) > 0 {
		c.givePorts(slot, sh.req.Ports)
	}
	if len(sh.req.Resources.Devices) > 0 {
		c.moveDevices(slot, sh.req.Resources.Devices, -1)
	}
}

// Task is a bound task, as Tasks lists it.
type Task struct {
	ID   string
	Node string
	// Request is the request it was bound with, without the fields about one
	// Place, and with a model for every device. It is shared: read it only.
	Request *Request
}

// Len returns the number of nodes and of tasks.
func (c *Cluster) Len() (nodes, tasks int) { return len(c.slots), c.tasks.count }

// Task returns a bound task.
func (c *Cluster) Task(id string) (Task, bool) {
	i := c.tasks.find(id)
	if i == none {
		return Task{}, false
	}
	return c.task(i), true
}

func (c *Cluster) task(i int32) Task {
	e := &c.tasks.entries[i]
	return Task{ID: e.id, Node: c.specs[e.node].ID, Request: &c.shapes[e.shape].req}
}

// Tasks lists all tasks in the order of their ids.
func (c *Cluster) Tasks() iter.Seq[Task] {
	return func(yield func(Task) bool) {
		order := make([]int32, 0, c.tasks.count)
		for i := range c.tasks.entries {
			if c.tasks.entries[i].node != none {
				order = append(order, int32(i))
			}
		}
		slices.SortFunc(order, func(a, b int32) int {
			return strings.Compare(c.tasks.entries[a].id, c.tasks.entries[b].id)
		})
		for _, i := range order {
			if !yield(c.task(i)) {
				return
			}
		}
	}
}

// Nodes lists all nodes in the order of their ids.
func (c *Cluster) Nodes() iter.Seq[NodeView] {
	return func(yield func(NodeView) bool) {
		for _, id := range slices.Sorted(maps.Keys(c.slots)) {
			if !yield(NodeView{c: c, slot: c.slots[id], svc: none}) {
				return
			}
		}
	}
}

// Node returns the node of that id.
func (c *Cluster) Node(id string) (NodeView, bool) {
	slot, ok := c.slots[id]
	return NodeView{c: c, slot: slot, svc: none}, ok
}

// total is a sum of many amounts: 128 bits, so that it is exact and does not
// depend on the order of the sum.
type total struct{ hi, lo uint64 }

func (t *total) add(v int64) {
	var carry uint64
	t.lo, carry = bits.Add64(t.lo, uint64(v), 0)
	t.hi += carry
}

func (t *total) sub(v int64) {
	var borrow uint64
	t.lo, borrow = bits.Sub64(t.lo, uint64(v), 0)
	t.hi -= borrow
}

func (t *total) float() float64 { return float64(t.hi)*(1<<64) + float64(t.lo) }

// hashName hashes a name (FNV-1a), alike in every process.
func hashName(id string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	return h
}

// mix is the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
func mix(h uint64) uint64 {
	h += 0x9e3779b97f4a7c15
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
