package scheduler

import (
	"maps"
	"slices"
	"strings"
)

// This file keeps the accounts besides CPU, memory and disk: services, ports,
// devices, and the log of what changed.

type serviceKey struct{ namespace, name string }

// service counts the tasks of one service, whatever their shapes.
type service struct {
	key    serviceKey
	nodes  map[int32]int32 // slot to tasks; never 0
	total  int
	shapes int // that refer to it
	next   int // number for the next made-up task id
}

// addService returns the number of the service of r and counts one more shape.
func (c *Cluster) addService(r *Request) int32 {
	k := serviceKey{r.Namespace, r.Service}
	id, ok := c.serviceIDs[k]
	if !ok {
		s := &service{key: k, nodes: map[int32]int32{}}
		if n := len(c.freeServices); n > 0 {
			id, c.freeServices = c.freeServices[n-1], c.freeServices[:n-1]
			c.services[id], c.owned[id] = s, true
		} else {
			id = int32(len(c.services))
			c.services, c.owned = append(c.services, s), append(c.owned, true)
		}
		c.serviceIDs[k] = id
	}
	c.ownService(id).shapes++
	return id
}

// dropService is the reverse, when a shape is forgotten.
func (c *Cluster) dropService(sh *shape) {
	s := c.ownService(sh.svc)
	if s.shapes--; s.shapes == 0 {
		delete(c.serviceIDs, s.key)
		c.services[sh.svc] = nil
		c.freeServices = append(c.freeServices, sh.svc)
	}
}

// ownService returns the service for writing.
func (c *Cluster) ownService(id int32) *service {
	s := c.services[id]
	if !c.owned[id] {
		t := *s
		t.nodes = maps.Clone(s.nodes)
		s = &t
		c.services[id], c.owned[id] = s, true
	}
	return s
}

func (c *Cluster) countTask(svc, slot, by int32) {
	s := c.ownService(svc)
	s.total += int(by)
	if n := s.nodes[slot] + by; n == 0 {
		delete(s.nodes, slot)
	} else {
		s.nodes[slot] = n
	}
}

func (c *Cluster) takePorts(slot int32, ports []HostPort) {
	if c.ports == nil {
		c.ports = make([][]HostPort, len(c.nodes))
	}
	have := c.ports[slot]
	c.ports[slot] = append(have[:len(have):len(have)], ports...)
}

func (c *Cluster) givePorts(slot int32, ports []HostPort) {
	have := slices.Clone(c.ports[slot])
	for _, p := range ports {
		if i := slices.Index(have, p); i >= 0 {
			have = slices.Delete(have, i, i+1)
		}
	}
	if len(have) == 0 {
		have = nil
	}
	c.ports[slot] = have
}

// portTaken returns the first of ports that a task on the node has already.
func (c *Cluster) portTaken(slot int32, ports []HostPort) (HostPort, bool) {
	if c.ports == nil {
		return HostPort{}, false
	}
	for _, p := range ports {
		for _, q := range c.ports[slot] {
			if p.conflicts(q) {
				return p, true
			}
		}
	}
	return HostPort{}, false
}

// setDevices enters what a node has, keeping what is used.
func (c *Cluster) setDevices(slot int32, have []Device) {
	if c.devices == nil {
		if len(have) == 0 {
			return
		}
		c.devices = make([][]deviceState, len(c.nodes))
	}
	var list []deviceState
	for _, d := range c.devices[slot] {
		if d.used != 0 {
			d.have = 0
			list = append(list, d)
		}
	}
	for _, d := range have {
		i := slices.IndexFunc(list, func(x deviceState) bool { return x.kind == d.Kind && x.model == d.Model })
		if i < 0 {
			i = len(list)
			list = append(list, deviceState{kind: d.Kind, model: d.Model})
		}
		list[i].have = d.Count
	}
	sortDevices(list)
	c.devices[slot] = list
	c.settle(slot)
}

func sortDevices(list []deviceState) {
	slices.SortFunc(list, func(a, b deviceState) int {
		if a.kind != b.kind {
			if a.kind < b.kind {
				return -1
			}
			return 1
		}
		if a.model < b.model {
			return -1
		}
		return 1
	})
}

// settle chooses models again for the node's tasks that have none, because
// there were none to choose from when they were bound.
func (c *Cluster) settle(slot int32) {
	var open []int32
	for i := c.nodes[slot].head; i != none; i = c.tasks.entries[i].next {
		if sh := c.shapes[c.tasks.entries[i].shape]; sh.anyWays {
			open = append(open, i)
			c.give(slot, sh)
		}
	}
	slices.SortFunc(open, func(a, b int32) int {
		return strings.Compare(c.tasks.entries[a].id, c.tasks.entries[b].id)
	})
	for _, i := range open {
		sh := c.shapes[c.tasks.entries[i].shape]
		chosen := c.concrete(sh, slot)
		c.take(slot, chosen)
		c.ref(chosen)
		c.unref(sh)
		c.tasks.entries[i].shape = chosen.id
	}
}

// moveDevices adds sign times the devices to those used on the node.
func (c *Cluster) moveDevices(slot int32, devices []Device, sign int64) {
	if c.devices == nil {
		c.devices = make([][]deviceState, len(c.nodes))
	}
	list := slices.Clone(c.devices[slot])
	for _, d := range devices {
		i := slices.IndexFunc(list, func(x deviceState) bool { return x.kind == d.Kind && x.model == d.Model })
		if i < 0 {
			i = len(list)
			list = append(list, deviceState{kind: d.Kind, model: d.Model})
		}
		list[i].used += sign * d.Count
		if list[i].used == 0 && list[i].have == 0 {
			list = slices.Delete(list, i, i+1)
		}
	}
	sortDevices(list)
	c.devices[slot] = list
}

// deviceShort returns the first of the devices wanted that the node has not
// enough of, and how many are free. Wishes for a model are met before those
// for any, so that both are met whenever both can be.
func (c *Cluster) deviceShort(slot int32, want []Device) (Device, int64, bool) {
	var left []deviceState
	if c.devices != nil {
		left = c.devices[slot]
	}
	if len(want) > 1 {
		left = slices.Clone(left)
	}
	for pass := range 2 {
		for _, d := range want {
			if d.Count == 0 || (d.Model == "") != (pass == 1) {
				continue
			}
			i, free := mostFree(left, d)
			if free < d.Count {
				return d, free, true
			}
			if len(want) > 1 {
				left[i].used += d.Count
			}
		}
	}
	return Device{}, 0, false
}

// mostFree finds the entry of d's kind, and model if it has one, with the most
// free. What the node does not have is not chosen, even if tasks use it.
func mostFree(list []deviceState, d Device) (at int, free int64) {
	at = -1
	for i := range list {
		x := &list[i]
		if x.have == 0 || x.kind != d.Kind || d.Model != "" && d.Model != x.model {
			continue
		}
		if f := x.have - x.used; at < 0 || f > free {
			at, free = i, f
		}
	}
	return at, max(free, 0)
}

// concrete returns the shape with a model chosen, on that node, for each
// device of any model.
func (c *Cluster) concrete(sh *shape, slot int32) *shape {
	if !sh.anyWays || c.devices == nil {
		return sh
	}
	left := slices.Clone(c.devices[slot])
	r := sh.req
	var chosen []Device
	enter := func(d Device) {
		if i := slices.IndexFunc(chosen, func(x Device) bool { return x.Kind == d.Kind && x.Model == d.Model }); i >= 0 {
			chosen[i].Count += d.Count
			return
		}
		chosen = append(chosen, d)
	}
	for pass := range 2 {
		for _, d := range sh.req.Resources.Devices {
			if (d.Model == "") != (pass == 1) {
				continue
			}
			if i, _ := mostFree(left, d); i >= 0 {
				left[i].used += d.Count
				d.Model = left[i].model
			}
			enter(d)
		}
	}
	r.Resources.Devices = chosen
	out, err := c.intern(&r)
	if err != nil { // the same amounts under other names are valid too
		return sh
	}
	return out
}

// changeLog remembers which nodes' state changed, so that an index that was
// not used for a while can catch up.
type changeLog struct {
	base  uint64 // number of the first entry
	slots []int32
}

func (l *changeLog) end() uint64 { return l.base + uint64(len(l.slots)) }

func (l *changeLog) add(slot int32, nodes int) {
	// An index further behind than this is built anew anyway.
	if most := behind(nodes); len(l.slots) >= 2*most {
		l.base += uint64(len(l.slots) - most)
		l.slots = append(l.slots[:0], l.slots[len(l.slots)-most:]...)
	}
	l.slots = append(l.slots, slot)
}

// since returns the changes from number seq on, or false when an index of that
// age had better be built anew.
func (l *changeLog) since(seq uint64, nodes int) ([]int32, bool) {
	if seq < l.base || l.end()-seq > uint64(behind(nodes)) {
		return nil, false
	}
	return l.slots[seq-l.base:], true
}

func behind(nodes int) int { return nodes/8 + 64 }
