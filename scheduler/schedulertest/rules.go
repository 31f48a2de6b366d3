package schedulertest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/orchestrate-go/orchestrate/scheduler"
)

// attribute reads a node attribute in the plainest way.
func attribute(n *scheduler.Node, key string) (string, bool) {
	switch key {
	case "node.id":
		return n.ID, true
	case "node.hostname":
		return n.Hostname, n.Hostname != ""
	case "node.os", "node.platform.os":
		return n.Platform.OS, n.Platform.OS != ""
	case "node.arch", "node.platform.arch":
		return n.Platform.Arch, n.Platform.Arch != ""
	}
	v, ok := n.Labels[strings.TrimPrefix(key, "node.labels.")]
	return v, ok
}

// staticallyBroken says which rule keeps r off n whatever else runs there.
func staticallyBroken(n *scheduler.Node, r *scheduler.Request) string {
	if !n.Ready || n.Paused || n.Drained {
		return "the node takes no tasks"
	}
	if len(r.Platforms) > 0 && !slices.ContainsFunc(r.Platforms, func(p scheduler.Platform) bool {
		return (p.OS == "" || p.OS == n.Platform.OS) && (p.Arch == "" || p.Arch == n.Platform.Arch)
	}) {
		return "wrong platform"
	}
	for _, d := range r.Drivers {
		if !slices.Contains(n.Drivers, d) {
			return "no driver " + d
		}
	}
	for _, taint := range n.Taints {
		ok := false
		for _, x := range r.Tolerations {
			ok = ok || (x.Key == "" || x.Key == taint.Key) && (x.Value == "" || x.Value == taint.Value)
		}
		if !ok {
			return "taint " + taint.String()
		}
	}
	for _, v := range r.Volumes {
		ok := len(v.Accessible) == 0
		for _, segments := range v.Accessible {
			all := true
			for key, want := range segments {
				got, has := n.Topology[key]
				all = all && has && got == want
			}
			ok = ok || all
		}
		if !ok {
			return "volume " + v.Name + " is out of reach"
		}
	}
	for i := range r.Constraints {
		if !r.Constraints[i].Matches(n) {
			return "constraint " + r.Constraints[i].String()
		}
	}
	for _, s := range r.Spread {
		if _, ok := attribute(n, s.Key); !ok && s.MaxSkew > 0 {
			return "no " + s.Key
		}
	}
	return ""
}

// broken says which rule the task t, placed by r, breaks where it is.
func (s *state) broken(t scheduler.Task, r *scheduler.Request) string {
	n := s.nodes[t.Node]
	if n == nil {
		return "no such node"
	}
	if why := staticallyBroken(n, r); why != "" {
		return why
	}
	if why := s.overfull(n, t.Request); why != "" {
		return why
	}
	same := 0
	for _, other := range s.byNode[t.Node] {
		if other.Request.Service == r.Service && other.Request.Namespace == r.Namespace {
			same++
		}
		if other.ID == t.ID {
			continue
		}
		for _, p := range r.Ports {
			for _, q := range other.Request.Ports {
				if portsConflict(p, q) {
					return fmt.Sprintf("port %s is taken by %s", p, other.ID)
				}
			}
		}
	}
	if r.MaxPerNode > 0 && same > r.MaxPerNode {
		return fmt.Sprintf("%d of the service on the node, allowed are %d", same, r.MaxPerNode)
	}
	return s.relations(t, r)
}

func portsConflict(p, q scheduler.HostPort) bool {
	proto := func(p scheduler.HostPort) string {
		if p.Protocol == "" {
			return "tcp"
		}
		return p.Protocol
	}
	every := func(p scheduler.HostPort) bool {
		a, err := netip.ParseAddr(p.IP)
		return err != nil || a.IsUnspecified()
	}
	return p.Port == q.Port && proto(p) == proto(q) && (every(p) || every(q) || p.IP == q.IP)
}

// overfull adds up the node and looks at what the request takes some of.
func (s *state) overfull(n *scheduler.Node, r *scheduler.Request) string {
	var cpu, memory, disk int64
	used := map[string]int64{}
	for _, t := range s.byNode[n.ID] {
		cpu += t.Request.Resources.CPU
		memory += t.Request.Resources.Memory
		disk += t.Request.Resources.Disk
		for _, d := range t.Request.Resources.Devices {
			used[d.Kind+"/"+d.Model] += d.Count
		}
	}
	times := func(have int64, by float64) int64 {
		if by == 0 {
			return have
		}
		return int64(float64(have) * by)
	}
	for _, x := range []struct {
		name             string
		need, used, have int64
	}{
		{"cpu", r.Resources.CPU, cpu, times(n.Capacity.CPU, n.Overcommit.CPU)},
		{"memory", r.Resources.Memory, memory, times(n.Capacity.Memory, n.Overcommit.Memory)},
		{"disk", r.Resources.Disk, disk, times(n.Capacity.Disk, n.Overcommit.Disk)},
	} {
		if x.need > 0 && x.used > x.have {
			return fmt.Sprintf("overcommit: %s: %d of %d used", x.name, x.used, x.have)
		}
	}
	for _, d := range r.Resources.Devices {
		if d.Count == 0 {
			continue
		}
		// A model that is left open must be possible for some model.
		ok := false
		for _, have := range n.Capacity.Devices {
			if have.Kind != d.Kind || d.Model != "" && d.Model != have.Model {
				continue
			}
			taken := used[have.Kind+"/"+have.Model]
			if d.Model == "" && have.Model != "" {
				taken += d.Count
			}
			ok = ok || taken <= have.Count
		}
		if !ok {
			return fmt.Sprintf("overcommit: %s/%s: more used than there are", d.Kind, d.Model)
		}
	}
	return ""
}

func selects(a *scheduler.Affinity, namespace string, r *scheduler.Request) bool {
	if r.Namespace != namespace || a.Service != "" && a.Service != r.Service {
		return false
	}
	for k, v := range a.Labels {
		if got, ok := r.Labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// near reports whether two nodes are in one neighbourhood.
func (s *state) near(key, a, b string) bool {
	if key == "" {
		return a == b
	}
	x, okX := attribute(s.nodes[a], key)
	y, okY := attribute(s.nodes[b], key)
	return okX && okY && x == y
}

func (s *state) relations(t scheduler.Task, r *scheduler.Request) string {
	for i := range r.AntiAffinity {
		a := &r.AntiAffinity[i]
		for _, other := range s.tasks {
			if !a.Preferred && other.ID != t.ID && selects(a, r.Namespace, other.Request) && s.near(a.Topology, t.Node, other.Node) {
				return fmt.Sprintf("anti-affinity to %s on %s", other.ID, other.Node)
			}
		}
	}
	for _, other := range s.tasks {
		for i := range other.Request.AntiAffinity {
			a := &other.Request.AntiAffinity[i]
			if !a.Preferred && other.ID != t.ID && selects(a, other.Request.Namespace, r) && s.near(a.Topology, t.Node, other.Node) {
				return fmt.Sprintf("anti-affinity of %s on %s", other.ID, other.Node)
			}
		}
	}
	for i := range r.Affinity {
		a := &r.Affinity[i]
		if a.Preferred {
			continue
		}
		if _, ok := attribute(s.nodes[t.Node], a.Topology); a.Topology != "" && !ok {
			return "affinity: the node has no " + a.Topology
		}
		found, others := false, false
		for _, other := range s.tasks {
			if other.ID != t.ID && selects(a, r.Namespace, other.Request) {
				others = true
				found = found || s.near(a.Topology, t.Node, other.Node)
			}
		}
		if !found && (others || !selects(a, r.Namespace, r)) {
			return "affinity: no such task near"
		}
	}
	return ""
}
