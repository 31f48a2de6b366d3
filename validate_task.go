package orchestrate

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// What the containers of a task share: networks, ports, volumes, name
// resolution and the place.

func (c *checks) networks(t *Template) {
	if t.HostNetwork && len(t.Networks) > 0 {
		c.add("networks", nil, "contradict hostNetwork; keep one of the two")
	}
	if len(t.Networks) > maxNetworks {
		c.add("networks", nil, "are %d; at most %d", len(t.Networks), maxNetworks)
		return
	}
	seen := map[string]string{}
	for i, name := range t.Networks {
		c.label(at("networks", i), name, 32)
		c.unique(seen, at("networks", i), name)
	}
}

func (c *checks) ports(t *Template) {
	if len(t.Ports) > maxPorts {
		c.add("ports", nil, "are %d; at most %d", len(t.Ports), maxPorts)
		return
	}
	names := map[string]string{}
	virtual := map[string]string{}
	published := map[string][]publication{}
	for i := range t.Ports {
		p, path := &t.Ports[i], at("ports", i)
		if p.Name != "" {
			c.label(path+".name", p.Name, 63)
			c.unique(names, path+".name", p.Name)
		}
		if p.Protocol != TCP && p.Protocol != UDP {
			c.add(path+".protocol", p.Protocol, "is not a protocol; use \"tcp\" or \"udp\"")
			continue
		}
		if p.Port == 0 {
			c.add(path+".port", nil, "is missing; give the port that the task listens on, from 1 to 65535")
			continue
		}
		if t.HostNetwork {
			c.hostPort(path, p, virtual)
			continue
		}
		field := ".virtual"
		if p.Virtual == p.Port {
			field = ".port" // most likely the default
		}
		key := strconv.Itoa(int(p.Virtual)) + "/" + string(p.Protocol)
		if first, ok := virtual[key]; ok {
			c.add(path+field, p.Virtual, "is the second %s port %d at the virtual address, after %s; give it another virtual port", p.Protocol, p.Virtual, first)
		} else {
			virtual[key] = path + field
		}
		c.published(path, p, published)
	}
}

// hostPort checks a port of a task in the node's own network, which has no
// virtual address and needs no publishing.
func (c *checks) hostPort(path string, p *Port, seen map[string]string) {
	if p.Virtual != 0 {
		c.add(path+".virtual", p.Virtual, "has no meaning with hostNetwork, which has no virtual address; remove it")
	}
	if p.Published != 0 {
		c.add(path+".published", p.Published, "has no meaning with hostNetwork, whose ports are the node's own; remove it")
	}
	if p.Ingress != "" {
		c.add(path+".ingress", p.Ingress, "has no meaning with hostNetwork, whose ports are the node's own; remove it")
	}
	if p.HostIP != "" {
		c.add(path+".hostIP", p.HostIP, "has no meaning with hostNetwork; let the task listen on that address alone")
	}
	key := strconv.Itoa(int(p.Port)) + "/" + string(p.Protocol)
	if first, ok := seen[key]; ok {
		c.add(path+".port", p.Port, "is used twice with %s, first at %s; give each its own", p.Protocol, first)
	} else {
		seen[key] = path + ".port"
	}
}

// publication is a published port and the address it is narrowed to.
type publication struct {
	path string
	host string // empty: every address
}

// published checks that no two ports of the spec claim one address and port
// of the node.
func (c *checks) published(path string, p *Port, seen map[string][]publication) {
	if p.HostIP != "" {
		if _, ok := c.address(path+".hostIP", p.HostIP); !ok {
			return
		}
		if p.Published == 0 {
			c.add(path+".hostIP", p.HostIP, "narrows a published port, but none is; set published or remove it")
			return
		}
	}
	switch {
	case p.Ingress != "" && p.Ingress != IngressAll && p.Ingress != IngressLocal:
		c.add(path+".ingress", p.Ingress, "is not known; use %q or %q", IngressAll, IngressLocal)
	case p.Ingress != "" && p.Published == 0:
		c.add(path+".ingress", p.Ingress, "is about a published port, but none is; set published or remove it")
	}
	if p.Published == 0 {
		return
	}
	key := strconv.Itoa(int(p.Published)) + "/" + string(p.Protocol)
	for _, other := range seen[key] {
		if record.SharedHost(p.HostIP, other.host) {
			c.add(path+".published", p.Published, "is published twice with %s, first at %s; publish one of them on another port or address", p.Protocol, other.path)
			break
		}
	}
	seen[key] = append(seen[key], publication{path + ".published", p.HostIP})
}

func (c *checks) volumes(t *Template) {
	mounted := map[string]bool{}
	for _, l := range [][]Container{t.Init, t.Sidecars, t.Containers} {
		for i := range l {
			for _, m := range l[i].Mounts {
				mounted[m.Volume] = true
			}
		}
	}
	seen := map[string]string{}
	for i := range t.Volumes {
		c.volume(at("volumes", i), &t.Volumes[i], mounted, seen)
	}
	c.slotVolumes(t, mounted, seen)
}

// exclusive checks that no more than one task at a time needs an exclusive
// volume.
func (c *checks) exclusive(s *Service) {
	for i := range s.Volumes {
		if !s.Volumes[i].Exclusive {
			continue
		}
		name := show(s.Volumes[i].Name)
		if s.Replicas > 1 {
			c.add("replicas", s.Replicas, "is more than one task, which cannot share the exclusive volume %s; use 1, or a volume that is not exclusive", name)
		}
		if s.Update.Order == StartFirst {
			c.add("update.order", s.Update.Order, "needs two tasks at a time, which cannot share the exclusive volume %s; use %q", name, StopFirst)
		}
		return
	}
}

func (c *checks) dns(d *DNS) {
	// MAXNS of resolv.conf(5): further ones are ignored without a word.
	if len(d.Servers) > 3 {
		c.add("dns.servers", nil, "are %d; resolvers ask the first 3 alone, so give at most 3", len(d.Servers))
	}
	for i, s := range d.Servers {
		c.address(at("dns.servers", i), s)
	}
	total := 0
	for i, s := range d.Search {
		if total += len(s) + 1; s != "." {
			c.hostname(at("dns.search", i), strings.TrimSuffix(s, "."), 253)
		}
	}
	if len(d.Search) > 32 || total > 2048 {
		c.add("dns.search", nil, "is too long; at most 32 domains with 2048 characters together")
	}
	for i, o := range d.Options {
		name, value, hasValue := strings.Cut(o, ":")
		needs := slices.Contains([]string{"ndots", "timeout", "attempts"}, name)
		switch {
		case !only(name, func(b byte) bool { return isLower(b) || isDigit(b) || b == '-' }) || name == "" || hasValue && (value == "" || !only(value, isDigit)):
			c.add(at("dns.options", i), o, "is not an option of resolv.conf(5); write such as \"rotate\" or \"ndots:2\"")
		case needs && !hasValue:
			c.add(at("dns.options", i), o, "has no number; write such as \"%s:2\"", name)
		}
	}
	for _, name := range keysOf(d.Hosts) {
		path := atKey("dns.hosts", name)
		c.hostname(path, name, 253)
		if len(d.Hosts[name]) == 0 {
			c.add(path, nil, "has no address; give at least one")
		}
		for i, s := range d.Hosts[name] {
			c.address(at(path, i), s)
		}
	}
}

func (c *checks) placement(p *Placement) {
	if !isLabel(strings.NewReplacer(".", "a", "_", "a").Replace(strings.ToLower(p.Strategy)), 63) {
		c.add("placement.strategy", p.Strategy, "is not the name of a strategy; use at most 63 letters, digits and . _ -")
	}
	if len(p.Constraints) > maxConstraints {
		c.add("placement.constraints", nil, "are %d; at most %d", len(p.Constraints), maxConstraints)
		return
	}
	seen := map[string]string{}
	for i, s := range p.Constraints {
		c.constraint(at("placement.constraints", i), s)
		c.unique(seen, at("placement.constraints", i), s)
	}
	c.count("placement.maxPerNode", int64(p.MaxPerNode), math.MaxInt32)
	if p.Priority > maxPriority || p.Priority < -maxPriority {
		c.add("placement.priority", p.Priority, "is out of range; from %d to %d", -maxPriority, maxPriority)
	}
}

func (c *checks) constraint(path, s string) {
	_, err := scheduler.ParseConstraint(s)
	if err == nil {
		return
	}
	reason := err.Error()
	if e, ok := errors.AsType[*scheduler.ParseError](err); ok {
		reason = fmt.Sprintf("at byte %d, give %s", e.Offset, e.Want)
	}
	c.add(path, s, "is not a constraint such as \"node.labels.zone == eu\": %s", reason)
}
