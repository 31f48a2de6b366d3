package scheduler

import (
	"slices"
	"strings"
)

// columns hold attributes of nodes as small numbers, one array a key, so that
// a rule is evaluated once for each value that occurs and then looked up:
// hundreds of thousands of nodes have a handful of zones.
type columns struct {
	list []*column
}

// column holds one attribute. Number 0 is its absence.
type column struct {
	key    string
	of     func(*Node) (string, bool)
	values []string         // by number
	ids    map[string]int32 // number of each value
	slots  []int32          // number by slot
}

// maxColumns bounds the keys remembered: a program that makes up new keys all
// the time pays for reading them again, not with memory.
const maxColumns = 64

// Keys of columns that are not attributes; no attribute begins with a space.
const (
	columnTaints   = " taints"
	columnDrivers  = " drivers"
	columnTopology = " topology"
	columnPlatform = " platform"
)

func (cs *columns) clone() columns {
	d := columns{list: slices.Clone(cs.list)}
	for i, col := range d.list {
		e := *col
		e.values = slices.Clip(col.values)
		e.ids = make(map[string]int32, len(col.ids))
		for k, v := range col.ids {
			e.ids[k] = v
		}
		e.slots = slices.Clone(col.slots)
		e.of = attributeOf(col.key) // it has a buffer of its own
		d.list[i] = &e
	}
	return d
}

// column returns the column of key, reading it from all nodes the first time.
func (c *Cluster) column(key string) *column {
	cs := &c.columns
	for i, col := range cs.list {
		if col.key == key {
			if i > 0 { // keep the used ones in front, the stalest last
				copy(cs.list[1:i+1], cs.list[:i])
				cs.list[0] = col
			}
			return col
		}
	}
	col := &column{key: strings.Clone(key), values: []string{""}, ids: map[string]int32{}, of: attributeOf(key)}
	col.slots = make([]int32, len(c.specs))
	for slot, spec := range c.specs {
		if spec != nil {
			col.set(int32(slot), spec)
		}
	}
	if len(cs.list) == maxColumns {
		cs.list = cs.list[:maxColumns-1]
	}
	cs.list = slices.Insert(cs.list, 0, col)
	return col
}

func attributeOf(key string) func(*Node) (string, bool) {
	var b keyBuf
	switch key {
	case columnTaints:
		return func(n *Node) (string, bool) {
			b = b[:0]
			for _, t := range n.Taints {
				b.str(t.Key)
				b.str(t.Value)
			}
			return string(b), len(n.Taints) > 0
		}
	case columnDrivers:
		return func(n *Node) (string, bool) {
			b = b[:0]
			b.strs(n.Drivers)
			return string(b), len(n.Drivers) > 0
		}
	case columnTopology:
		return func(n *Node) (string, bool) {
			b = b[:0]
			b.labels(n.Topology)
			return string(b), len(n.Topology) > 0
		}
	case columnPlatform:
		return func(n *Node) (string, bool) {
			b = b[:0]
			b.str(n.Platform.OS)
			b.str(n.Platform.Arch)
			return string(b), n.Platform != Platform{}
		}
	}
	return func(n *Node) (string, bool) { return n.attribute(key) }
}

func (col *column) set(slot int32, n *Node) {
	if int(slot) >= len(col.slots) {
		col.slots = append(col.slots, make([]int32, int(slot)+1-len(col.slots))...)
	}
	v, ok := col.of(n)
	if !ok {
		col.slots[slot] = 0
		return
	}
	id, known := col.ids[v]
	if !known {
		id = int32(len(col.values))
		v = strings.Clone(v)
		col.values = append(col.values, v)
		col.ids[v] = id
	}
	col.slots[slot] = id
}

func (cs *columns) set(slot int32, n *Node) {
	kept := cs.list[:0]
	for _, col := range cs.list {
		col.set(slot, n)
		// Values of nodes long gone pile up; start such a column afresh.
		if len(col.values) <= 2*len(col.slots)+1024 {
			kept = append(kept, col)
		}
	}
	cs.list = kept
}

func (cs *columns) clear(slot int32) {
	for _, col := range cs.list {
		if int(slot) < len(col.slots) {
			col.slots[slot] = 0
		}
	}
}
