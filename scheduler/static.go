package scheduler

import "slices"

// why says which filter refuses a node; 0 is none. The numbers from whyRule on
// are constraints, by their position; those from whyCustom on filters of the
// strategy.
type why uint8

const (
	whyFits why = iota
	whyGone     // the slot is free: there is no node
	whyNotReady
	whyPaused
	whyDrained
	whyPlatform
	whyDrivers
	whyTaint
	whyVolume
	whySpreadKey
	whyCPU
	whyMemory
	whyDisk
	whyDevice
	whyPort
	whyMaxPerNode
	whyAffinity
	whyAntiAffinity
	whyOthersAnti
	whyConstraint why = 32
	whyCustom     why = 160
)

// lastConstraint stands for the constraints past the 128th, too.
const lastConstraint = whyCustom - 1

// staticSet says for every node whether anything but its load refuses it, for
// all shapes with the same static key. It is good until a node's spec changes.
type staticSet struct {
	key  string
	seq  uint64 // of the specs it was made from
	used uint64
	why  []why
}

// maxStatics bounds how many are kept: each is a byte a node.
const maxStatics = 64

// static returns the set for a shape, made anew only when specs changed.
func (c *Cluster) static(sh *shape) *staticSet {
	c.clock++
	var stalest *staticSet
	for _, s := range c.statics {
		if s.key == sh.static {
			s.used = c.clock
			if s.seq != c.specSeq {
				c.fillStatic(s, &sh.req)
			}
			return s
		}
		if stalest == nil || s.used < stalest.used {
			stalest = s
		}
	}
	s := &staticSet{}
	if len(c.statics) < maxStatics {
		c.statics = append(c.statics, s)
	} else {
		// An index may still hold the old one, so its array is not reused.
		c.statics[slices.Index(c.statics, stalest)] = s
	}
	s.key, s.used = sh.static, c.clock
	c.fillStatic(s, &sh.req)
	return s
}

// rule is a test on one column: whether each of its values passes.
type rule struct {
	why   why
	slots []int32
	pass  []bool
}

func (c *Cluster) fillStatic(s *staticSet, r *Request) {
	rules := c.rules(r)
	s.why = slices.Grow(s.why[:0], len(c.specs))[:len(c.specs)]
	for slot, spec := range c.specs {
		s.why[slot] = readiness(spec)
	}
	// Rule by rule rather than node by node: each pass reads two arrays.
	for _, t := range rules {
		for slot := range s.why {
			if s.why[slot] == whyFits && !t.pass[t.slots[slot]] {
				s.why[slot] = t.why
			}
		}
	}
	s.seq = c.specSeq
}

func readiness(n *Node) why {
	switch {
	case n == nil:
		return whyGone
	case n.Drained:
		return whyDrained
	case n.Paused:
		return whyPaused
	case !n.Ready:
		return whyNotReady
	}
	return whyFits
}

// rules turns the static part of a request into tables.
func (c *Cluster) rules(r *Request) []rule {
	var rules []rule
	// Every value that occurs has a node that has it, so a test of whole
	// nodes is done on the first of each.
	add := func(key string, w why, pass func(value string, has bool, n *Node) bool) {
		col := c.column(key)
		t := rule{why: w, slots: col.slots, pass: make([]bool, len(col.values))}
		seen := make([]bool, len(col.values))
		all := true
		for slot, id := range col.slots {
			if n := c.specs[slot]; n != nil && !seen[id] {
				seen[id] = true
				t.pass[id] = pass(col.values[id], id != 0, n)
				all = all && t.pass[id]
			}
		}
		if !all {
			rules = append(rules, t)
		}
	}
	if len(r.Platforms) > 0 {
		add(columnPlatform, whyPlatform, func(_ string, _ bool, n *Node) bool { return r.platformFits(n) })
	}
	if len(r.Drivers) > 0 {
		add(columnDrivers, whyDrivers, func(_ string, _ bool, n *Node) bool { return r.driverMissing(n) == "" })
	}
	add(columnTaints, whyTaint, func(_ string, _ bool, n *Node) bool { return r.untolerated(n) == nil })
	if slices.ContainsFunc(r.Volumes, func(v Volume) bool { return len(v.Accessible) > 0 }) {
		add(columnTopology, whyVolume, func(_ string, _ bool, n *Node) bool { return r.volumeOutOfReach(n) == nil })
	}
	for i := range r.Constraints {
		holds := r.Constraints[i].compile()
		add(r.Constraints[i].Key, min(whyConstraint+why(min(i, 200)), lastConstraint), func(v string, has bool, _ *Node) bool { return holds(v, has) })
	}
	for _, s := range r.Spread {
		if s.MaxSkew > 0 {
			add(s.Key, whySpreadKey, func(_ string, has bool, _ *Node) bool { return has })
		}
	}
	return rules
}

func (r *Request) platformFits(n *Node) bool {
	return len(r.Platforms) == 0 || slices.ContainsFunc(r.Platforms, func(p Platform) bool {
		return (p.OS == "" || p.OS == n.Platform.OS) && (p.Arch == "" || p.Arch == n.Platform.Arch)
	})
}

func (r *Request) driverMissing(n *Node) string {
	for _, d := range r.Drivers {
		if !slices.Contains(n.Drivers, d) {
			return d
		}
	}
	return ""
}

func (r *Request) untolerated(n *Node) *Taint {
	for i, t := range n.Taints {
		if !slices.ContainsFunc(r.Tolerations, func(x Toleration) bool { return x.tolerates(t) }) {
			return &n.Taints[i]
		}
	}
	return nil
}

func (r *Request) volumeOutOfReach(n *Node) *Volume {
	for i, v := range r.Volumes {
		if len(v.Accessible) > 0 && !slices.ContainsFunc(v.Accessible, func(segments map[string]string) bool {
			for k, want := range segments {
				if got, ok := n.Topology[k]; !ok || got != want {
					return false
				}
			}
			return true
		}) {
			return &r.Volumes[i]
		}
	}
	return nil
}
