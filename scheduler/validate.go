package scheduler

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
)

// Validate reports the first thing wrong with r as an *InvalidError. It does
// not know which strategies there are.
func (r *Request) Validate() error {
	if err := r.validateGroup(); err != nil {
		return err
	}
	return r.validateShape()
}

// validateGroup looks at what is said of this group in this Place alone.
func (r *Request) validateGroup() error {
	if r.Count < 0 || r.Count > MaxCount {
		return invalid("count", r.Count, fmt.Sprintf("a number from 0 to %d", MaxCount))
	}
	if r.Tasks != nil && len(r.Tasks) != r.Count {
		return invalid("tasks", len(r.Tasks), fmt.Sprintf("as many ids as count, %d, or none", r.Count))
	}
	if r.Gang != nil && (r.Gang.Min < 0 || r.Gang.Min > r.Count) {
		return invalid("gang.min", r.Gang.Min, fmt.Sprintf("a number from 0, which is all, to count, %d", r.Count))
	}
	for _, node := range slices.Sorted(maps.Keys(r.Failures)) {
		if n := r.Failures[node]; n < 0 {
			return invalid("failures["+node+"]", n, "a number from 0")
		}
	}
	return nil
}

// validateShape looks at what the replicas keep for as long as they run.
func (r *Request) validateShape() error {
	if r.Service == "" {
		return invalid("service", r.Service, "a name")
	}
	if err := r.Resources.Validate(); err != nil {
		return err
	}
	if r.MaxPerNode < 0 || r.MaxPerNode > MaxCount {
		return invalid("maxPerNode", r.MaxPerNode, fmt.Sprintf("a number from 0, which is no bound, to %d", MaxCount))
	}
	for i, v := range r.Volumes {
		if v.Name == "" {
			return invalid(fmt.Sprintf("volumes[%d].name", i), v.Name, "a name")
		}
	}
	if err := r.validatePorts(); err != nil {
		return err
	}
	return r.validateRules()
}

func (r *Request) validatePorts() error {
	for i, p := range r.Ports {
		field := fmt.Sprintf("ports[%d]", i)
		if p.Port == 0 {
			return invalid(field+".port", p.Port, "a port from 1 to 65535")
		}
		if _, ok := protocols[p.Protocol]; !ok {
			return invalid(field+".protocol", p.Protocol, "tcp, udp or sctp")
		}
		if p.IP != "" {
			if _, err := netip.ParseAddr(p.IP); err != nil {
				return invalid(field+".ip", p.IP, "an IP address, or nothing for all")
			}
		}
		for _, q := range r.Ports[:i] {
			if p.conflicts(q) {
				return invalid(field, p.String(), "a port that the request does not take already")
			}
		}
	}
	return nil
}

func (r *Request) validateRules() error {
	for i := range r.Constraints {
		if err := r.Constraints[i].Validate(); err != nil {
			return fmt.Errorf("constraints[%d]: %w", i, err)
		}
	}
	for i, s := range r.Spread {
		field := fmt.Sprintf("spread[%d]", i)
		if s.Key == "" {
			return invalid(field+".key", s.Key, "a node attribute such as node.labels.zone")
		}
		if s.MaxSkew < 0 {
			return invalid(field+".maxSkew", s.MaxSkew, "a number from 0, which is no bound")
		}
		if s.MaxSkew > 0 && len(s.Weights) > 0 {
			return invalid(field+".maxSkew", s.MaxSkew, "either weights or a maximum skew: unequal parts are skewed by intent")
		}
		for _, value := range slices.Sorted(maps.Keys(s.Weights)) {
			w := s.Weights[value]
			if math.IsNaN(w) || w < minWeight || w > maxWeight {
				return invalid(field+".weights["+value+"]", w, fmt.Sprintf("a weight from %g to %g", minWeight, maxWeight))
			}
		}
		for _, t := range r.Spread[:i] {
			if t.Key == s.Key {
				return invalid(field+".key", s.Key, "each key once")
			}
		}
	}
	if err := validateAffinity("affinity", r.Affinity); err != nil {
		return err
	}
	return validateAffinity("antiAffinity", r.AntiAffinity)
}

func validateAffinity(field string, list []Affinity) error {
	for i, a := range list {
		if a.Service == "" && len(a.Labels) == 0 {
			return invalid(fmt.Sprintf("%s[%d]", field, i), "", "a service or labels to select tasks by")
		}
	}
	return nil
}

// Weights outside these bounds would vanish beside 1, or make it vanish.
const (
	minWeight = 1e-6
	maxWeight = 1e6
)

var protocols = map[string]uint8{"": 0, "tcp": 0, "udp": 1, "sctp": 2}

// conflicts reports whether both ports can not be had on one node.
func (p HostPort) conflicts(q HostPort) bool {
	return p.Port == q.Port && protocols[p.Protocol] == protocols[q.Protocol] &&
		(p.IP == q.IP || p.address() == q.address() || p.address().IsUnspecified() || q.address().IsUnspecified())
}

// address is the IP in its one form; every address when there is none.
func (p HostPort) address() netip.Addr {
	a, err := netip.ParseAddr(p.IP)
	if err != nil {
		return netip.IPv4Unspecified()
	}
	return a.Unmap()
}

// String is the port and its protocol, such as 80/tcp, after the address if
// there is one: 192.0.2.1:80/tcp.
func (p HostPort) String() string {
	proto := p.Protocol
	if proto == "" {
		proto = "tcp"
	}
	if p.IP == "" {
		return fmt.Sprintf("%d/%s", p.Port, proto)
	}
	return fmt.Sprintf("%s:%d/%s", p.IP, p.Port, proto)
}
