package scheduler

import (
	"encoding/binary"
	"maps"
	"math"
	"slices"
)

// shape is a Request without its count and ids: what all tasks of a group have
// in common. Equal ones are stored once. A shape never changes, so that copies
// of a cluster share it.
type shape struct {
	req     Request
	id      int32
	svc     int32
	need    vector
	anyWays bool // some device may be of any model, so tasks take differing ones
	anti    bool // it has required anti-affinity, which others must respect

	key string // everything: equal keys, equal shapes
	// static is the part of key that says which nodes are out of the question
	// whatever runs on them; base the part that decides in which order nodes
	// are taken, for any service.
	static, base string
}

// keyBuf collects fields so that different fields never give equal bytes.
type keyBuf []byte

func (b *keyBuf) num(v int64) { *b = binary.AppendVarint(*b, v) }
func (b *keyBuf) str(s string) {
	*b = binary.AppendUvarint(*b, uint64(len(s)))
	*b = append(*b, s...)
}

func (b *keyBuf) strs(list []string) {
	b.num(int64(len(list)))
	for _, s := range list {
		b.str(s)
	}
}

func (b *keyBuf) labels(m map[string]string) {
	b.num(int64(len(m)))
	if len(m) == 0 {
		return
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b.str(k)
		b.str(m[k])
	}
}

func (b *keyBuf) affinity(list []Affinity) {
	b.num(int64(len(list)))
	for i := range list {
		a := &list[i]
		b.str(a.Topology)
		b.str(a.Service)
		b.labels(a.Labels)
		if a.Preferred {
			b.num(1)
		} else {
			b.num(0)
		}
	}
}

// static adds what the static filters look at.
func (b *keyBuf) static(r *Request) {
	b.num(int64(len(r.Constraints)))
	for i := range r.Constraints {
		c := &r.Constraints[i]
		b.str(c.Key)
		b.str(string(c.Op))
		b.strs(c.Values)
		if c.Semver {
			b.num(1)
		} else {
			b.num(0)
		}
	}
	b.num(int64(len(r.Platforms)))
	for _, p := range r.Platforms {
		b.str(p.OS)
		b.str(p.Arch)
	}
	b.num(int64(len(r.Tolerations)))
	for _, t := range r.Tolerations {
		b.str(t.Key)
		b.str(t.Value)
	}
	b.strs(r.Drivers)
	b.num(int64(len(r.Volumes)))
	for i := range r.Volumes {
		b.num(int64(len(r.Volumes[i].Accessible)))
		for _, m := range r.Volumes[i].Accessible {
			b.labels(m)
		}
	}
	hard := int64(0)
	for i := range r.Spread {
		hard += int64(min(r.Spread[i].MaxSkew, 1))
	}
	b.num(hard)
	for i := range r.Spread {
		if r.Spread[i].MaxSkew > 0 {
			b.str(r.Spread[i].Key)
		}
	}
}

// order adds what decides the order of the nodes.
func (b *keyBuf) order(r *Request) {
	b.num(r.Resources.CPU)
	b.num(r.Resources.Memory)
	b.num(r.Resources.Disk)
	b.num(int64(len(r.Resources.Devices)))
	for _, d := range r.Resources.Devices {
		b.str(d.Kind)
		b.str(d.Model)
		b.num(d.Count)
	}
	b.num(int64(len(r.Ports)))
	for _, p := range r.Ports {
		b.num(int64(p.Port))
		b.num(int64(protocols[p.Protocol]))
		b.str(p.IP)
	}
	b.num(int64(len(r.Spread)))
	for _, s := range r.Spread {
		b.str(s.Key)
		b.num(int64(s.MaxSkew))
		b.num(int64(len(s.Weights)))
		if len(s.Weights) > 0 {
			for _, k := range slices.Sorted(maps.Keys(s.Weights)) {
				b.str(k)
				b.num(int64(math.Float64bits(s.Weights[k])))
			}
		}
	}
	b.num(int64(r.MaxPerNode))
	b.strs(r.Images)
	b.str(r.Strategy)
}

// rest adds what is left, which makes the key whole.
func (b *keyBuf) rest(r *Request) {
	b.str(r.Namespace)
	b.str(r.Service)
	b.labels(r.Labels)
	b.affinity(r.Affinity)
	b.affinity(r.AntiAffinity)
	b.num(int64(r.Priority))
	for i := range r.Volumes {
		b.str(r.Volumes[i].Name)
	}
}

// intern returns the shape of r, which is valid if it was seen before and is
// validated if not. Prefer, Avoid and Failures are advice for one Place and no
// part of it.
func (c *Cluster) intern(r *Request) (*shape, error) {
	b := c.keyBuf[:0]
	b.static(r)
	staticEnd := len(b)
	b.order(r)
	baseEnd := len(b)
	b.rest(r)
	c.keyBuf = b
	if id, ok := c.shapeIDs[string(b)]; ok {
		return c.shapes[id], nil
	}
	if err := r.validateShape(); err != nil {
		return nil, err
	}
	c.sweepShapes()
	sh := &shape{req: cloneShape(r), need: r.Resources.vector(), key: string(b)}
	sh.static, sh.base = sh.key[:staticEnd], sh.key[:baseEnd]
	sh.svc = c.addService(r)
	for _, d := range r.Resources.Devices {
		sh.anyWays = sh.anyWays || d.Model == "" && d.Count > 0
	}
	for i := range r.AntiAffinity {
		sh.anti = sh.anti || !r.AntiAffinity[i].Preferred
	}
	if n := len(c.freeShapes); n > 0 {
		sh.id, c.freeShapes = c.freeShapes[n-1], c.freeShapes[:n-1]
		c.shapes[sh.id] = sh
	} else {
		sh.id = int32(len(c.shapes))
		c.shapes = append(c.shapes, sh)
		c.shapeRefs = append(c.shapeRefs, 0)
	}
	c.shapeIDs[sh.key] = sh.id
	return sh, nil
}

// cloneShape copies what r points to, so that the caller may change its own.
func cloneShape(r *Request) Request {
	s := *r
	s.Count, s.Tasks, s.Gang, s.Prefer, s.Avoid, s.Failures = 0, nil, nil, nil, nil, nil
	s.Labels = maps.Clone(r.Labels)
	s.Resources.Devices = slices.Clone(r.Resources.Devices)
	s.Ports = slices.Clone(r.Ports)
	s.Drivers = slices.Clone(r.Drivers)
	s.Platforms = slices.Clone(r.Platforms)
	s.Images = slices.Clone(r.Images)
	s.Tolerations = slices.Clone(r.Tolerations)
	s.Constraints = slices.Clone(r.Constraints)
	for i := range s.Constraints {
		s.Constraints[i].Values = slices.Clone(s.Constraints[i].Values)
	}
	s.Volumes = slices.Clone(r.Volumes)
	for i := range s.Volumes {
		s.Volumes[i].Accessible = slices.Clone(s.Volumes[i].Accessible)
		for j, m := range s.Volumes[i].Accessible {
			s.Volumes[i].Accessible[j] = maps.Clone(m)
		}
	}
	s.Affinity = cloneAffinity(r.Affinity)
	s.AntiAffinity = cloneAffinity(r.AntiAffinity)
	s.Spread = slices.Clone(r.Spread)
	for i := range s.Spread {
		s.Spread[i].Weights = maps.Clone(s.Spread[i].Weights)
	}
	return s
}

func cloneAffinity(list []Affinity) []Affinity {
	list = slices.Clone(list)
	for i := range list {
		list[i].Labels = maps.Clone(list[i].Labels)
	}
	return list
}

// sweepShapes forgets shapes without tasks once they are many. Those of late
// are worth keeping: the next Place will bring them again.
func (c *Cluster) sweepShapes() {
	const keep = 4096
	if c.placing || c.usedShapes+keep > len(c.shapes)-len(c.freeShapes) {
		return
	}
	for i, sh := range c.shapes {
		if sh == nil || c.shapeRefs[i] != 0 {
			continue
		}
		delete(c.shapeIDs, sh.key)
		c.shapes[i] = nil
		c.freeShapes = append(c.freeShapes, int32(i))
		c.dropService(sh)
	}
	c.indexes = nil // they may be tagged with a service that is gone
}
