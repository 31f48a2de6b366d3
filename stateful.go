package orchestrate

import "github.com/orchestrate-go/orchestrate/volume"

// Mode says how the number of a service's tasks comes about.
type Mode string

// The modes.
const (
	// Replicated, also when empty, runs as many tasks as Replicas says,
	// wherever there is room.
	Replicated Mode = "replicated"
	// Global runs one task on every node that the service's constraints allow;
	// Replicas has no meaning. A node that joins gets one. A node that is
	// drained, or that the constraints no longer allow, loses its. A node that
	// is cordoned, tainted or silent keeps the task that it has as it is: it is
	// not updated, not replaced when it ends, and not waited for, until the node
	// takes tasks again. Of an update, Parallelism counts nodes.
	Global Mode = "global"
)

// Stateful gives each task of a service an identity. Task number N of service
// db, its slot, has the name db-N for as long as there is a slot: it is the
// hostname of whichever task the slot has now, and db-N.db resolves to its
// address on each of the service's networks, from the moment that it has one,
// also before it is ready, so that members of a cluster find each other.
//
// A slot has volumes of its own, by [Template.SlotVolumes], which follow it from
// task to task. Where a driver's volumes can be reached from one node alone, a
// slot whose volume exists is placed there and nowhere else.
//
// A slot is run at most once. Its next task starts when the one before has
// stopped for certain, so every update stops first. The task of a node that is
// lost is replaced only when that node has promised to have stopped it by
// itself, without a connection and even if its agent is dead, and the time for
// that is over; see [Fleet.Fence] for what to do where no such promise can be
// given. In each volume of a slot the placing of a task has a number that grows
// (its fencing token), by which a driver that is a [volume.Fencer] refuses a
// task that is not the slot's newest.
type Stateful struct {
	// Order is [OrderedSlots] when empty.
	Order SlotOrder `json:"order,omitempty"`
	// Partition keeps the slots below it at the revision that completed last:
	// only slots from Partition on get a new one. A rollout that has left some
	// behind completes without counting as a revision to go back to.
	Partition int `json:"partition,omitempty"`
	// WhenScaled and WhenRemoved say what becomes of a slot's volumes when
	// there are fewer Replicas, and when the service is removed;
	// [RetainVolumes] when empty. Each holds for all slots that there are volumes
	// of: with [DeleteVolumes], WhenScaled also deletes those of slots from
	// Replicas on that were retained before it was set.
	WhenScaled  VolumePolicy `json:"whenScaled,omitempty"`
	WhenRemoved VolumePolicy `json:"whenRemoved,omitempty"`
}

// SlotOrder says in which order the slots of a stateful service are dealt with.
type SlotOrder string

// The orders.
const (
	// OrderedSlots starts slot 0 first and each next one once all below it have
	// settled, that is, are ready for as long as UpdatePolicy.Monitor says. An
	// update goes from the highest slot down, one at a time, each settled
	// before the next; scaling down likewise, each stopped before the next. A
	// slot that does not serve is neither waited for nor spared: it is updated
	// at once, and one that ran before is started again whatever the others do.
	OrderedSlots SlotOrder = "ordered"
	// ParallelSlots starts and stops all at once, and updates as many at a time
	// as UpdatePolicy.Parallelism says.
	ParallelSlots SlotOrder = "parallel"
)

// VolumePolicy says what becomes of volumes that no slot uses any more.
type VolumePolicy string

// The policies.
const (
	// RetainVolumes keeps them: the slot finds them again when it comes back.
	RetainVolumes VolumePolicy = "retain"
	// DeleteVolumes deletes them with their data once the slot's last task has
	// stopped. One on a node that is away is deleted when the node returns.
	DeleteVolumes VolumePolicy = "delete"
)

// maxStatefulName leaves room for a slot's number in the name of its task,
// which is one DNS label: 63 characters less a hyphen and seven digits.
const maxStatefulName = 55

// maxSlotDigits is the length of the highest slot's number.
const maxSlotDigits = 7

// modes checks what a service's mode and its slots rule out.
func (c *checks) modes(s *Service) {
	if s.Mode != "" && s.Mode != Replicated && s.Mode != Global {
		c.add("mode", s.Mode, "is not a mode; use %q or %q", Replicated, Global)
	}
	if s.Mode == Global {
		c.global(s)
	}
	if s.Stateful == nil {
		if len(s.SlotVolumes) > 0 {
			c.add("slotVolumes", nil, "belong to the slots of a stateful service; set stateful, or declare them as volumes, which all tasks share")
		}
		return
	}
	c.stateful(s)
}

func (c *checks) global(s *Service) {
	if s.Replicas != 0 {
		c.add("replicas", s.Replicas, "has no meaning for a global service, which has one task on each node; leave it out")
	}
	if s.Stateful != nil {
		c.add("stateful", nil, "gives replicas an identity, which a global service has none of; keep one of the two")
	}
	if s.Placement.MaxPerNode != 0 {
		c.add("placement.maxPerNode", s.Placement.MaxPerNode, "has no meaning for a global service, which has one task on each node; leave it out")
	}
}

func (c *checks) stateful(s *Service) {
	st := s.Stateful
	ordered := st.Order == OrderedSlots
	if !ordered && st.Order != ParallelSlots {
		c.add("stateful.order", st.Order, "is not an order; use %q or %q", OrderedSlots, ParallelSlots)
	}
	if st.Partition < 0 || st.Partition > MaxReplicas {
		c.add("stateful.partition", st.Partition, "is out of range; from 0, which updates every slot, to %d", MaxReplicas)
	}
	for _, p := range []struct {
		path   string
		policy VolumePolicy
	}{{"stateful.whenScaled", st.WhenScaled}, {"stateful.whenRemoved", st.WhenRemoved}} {
		if p.policy != RetainVolumes && p.policy != DeleteVolumes {
			c.add(p.path, p.policy, "is not a policy; use %q or %q", RetainVolumes, DeleteVolumes)
		}
	}
	if len(s.Name) > maxStatefulName {
		c.add("name", s.Name, "is too long for a stateful service, whose tasks have names such as %q that are one DNS label; use at most %d characters", "db-0", maxStatefulName)
	}
	if s.Hostname != "" {
		c.add("hostname", s.Hostname, "would be that of every slot; leave it out, and each has its own, such as %q", s.Name+"-0")
	}
	if s.HostNetwork {
		c.add("hostNetwork", nil, "gives slots no address of their own for their names; use networks")
	}
	if s.Update.Order == StartFirst {
		c.add("update.order", s.Update.Order, "runs two tasks of a slot at a time, but a stateful service runs it at most once; use %q", StopFirst)
	}
	for path, a := range map[string]Amount{"update.parallelism": s.Update.Parallelism, "update.maxUnavailable": s.Update.MaxUnavailable} {
		if ordered && a != "" && a != "1" {
			c.add(path, a, "is more than one slot at a time, but the slots are ordered; leave it out, or set stateful.order to %q", ParallelSlots)
		}
	}
	for i := range s.SlotVolumes {
		v, path := &s.SlotVolumes[i], at("slotVolumes", i)
		if long := len(s.Namespace) + len(s.Name) + maxSlotDigits + len(v.Name) + len(".-."); long > 128 {
			c.add(path+".name", v.Name, "makes names of up to %d characters with the namespace and the slot; at most 128", long)
		}
		if v.Exclusive {
			c.add(path+".exclusive", nil, "is what a slot's volume always is; leave it out")
		}
	}
}

// slotVolumes checks the volumes of slots as such. The names of volumes that all
// tasks share are in seen.
func (c *checks) slotVolumes(t *Template, mounted map[string]bool, seen map[string]string) {
	for i := range t.SlotVolumes {
		c.volume(at("slotVolumes", i), &t.SlotVolumes[i], mounted, seen)
	}
}

// volume checks a declared volume.
func (c *checks) volume(path string, v *volume.Volume, mounted map[string]bool, seen map[string]string) {
	c.volumeName(path+".name", v.Name)
	c.unique(seen, path+".name", v.Name)
	if v.Name != "" && !mounted[v.Name] {
		c.add(path+".name", v.Name, "is declared, but no container mounts it; mount it or remove it")
	}
	for _, p := range v.Validate() {
		if p.Field != "name" {
			c.add(path+"."+p.Field, nil, "%s", p.Reason)
		}
	}
	c.labels(path+".labels", v.Labels, false)
}
