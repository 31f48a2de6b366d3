package orchestratetest

import (
	"fmt"
	"slices"

	"github.com/orchestrate-go/orchestrate"
)

// mistake is what is wrong with a scenario, or nil: what would make a test pass that
// tests nothing, such as a fault of a node that there is none of.
func (w *world) mistake() error {
	s := &w.scenario
	for _, inv := range s.Always {
		if inv.Check == nil && inv.state == nil {
			return fmt.Errorf("orchestratetest: the invariant %q has no Check", inv.Name)
		}
	}
	for _, e := range s.Eventually {
		if e.Check == nil || e.Within <= 0 {
			return fmt.Errorf("orchestratetest: %q, which is to hold eventually, has no Check or no time", e.Name)
		}
	}
	known := s.services()
	for _, step := range s.Script {
		if step.Do == nil {
			return fmt.Errorf("orchestratetest: the step at %v does nothing", step.At)
		}
		if step.At > s.For {
			return fmt.Errorf("orchestratetest: the step %q is at %v, after the end at %v; change For", step.Do, step.At, s.For)
		}
		nodes, service := concerns(step.Do)
		for _, id := range nodes {
			if w.actorOf(id) == nil {
				return fmt.Errorf("orchestratetest: the step %q is about %q, which is no node: a NodeGroup's are its Name, or n, with a number from 1", step.Do, id)
			}
		}
		if service != "" && known != nil && !slices.Contains(known, qualified(service)) {
			return fmt.Errorf("orchestratetest: the step %q is about %q, and nothing of that name is applied: there are %v", step.Do, service, known)
		}
	}
	return nil
}

// services are all that are ever applied, or nil where that cannot be known.
func (s *Scenario) services() []string {
	objects := slices.Clone(s.Objects)
	for _, step := range s.Script {
		switch a := step.Do.(type) {
		case Apply:
			objects = append(objects, a.Objects...)
		case Do:
			return nil
		}
	}
	names := []string{}
	for _, o := range objects {
		switch o := o.(type) {
		case orchestrate.Service:
			o = o.WithDefaults()
			names = append(names, o.Namespace+"/"+o.Name)
		case orchestrate.Job:
			o = o.WithDefaults()
			names = append(names, o.Namespace+"/"+o.Name)
		}
	}
	return names
}

// concerns are the nodes, or control planes, and the service that an action is about.
func concerns(a Action) (nodes []string, service string) {
	switch a := a.(type) {
	case NodeDies:
		return []string{a.Node}, ""
	case NodeHangs:
		return []string{a.Node}, ""
	case NodeSlow:
		return []string{a.Node}, ""
	case AgentRestarts:
		return []string{a.Node}, ""
	case Partition:
		return a.Nodes, ""
	case ClockSkew:
		return []string{a.Node}, ""
	case Drain:
		return []string{a.Node}, ""
	case Cordon:
		return []string{a.Node}, ""
	case Uncordon:
		return []string{a.Node}, ""
	case RemoveNode:
		return []string{a.Node}, ""
	case WatchLost:
		if a.Of != "" {
			return []string{a.Of}, ""
		}
	case PullSlow:
		if a.Node != "" {
			return []string{a.Node}, ""
		}
	case Scale:
		return nil, a.Name
	case ContainerCrashes:
		return nil, a.Service
	case ContainerLeaks:
		return nil, a.Service
	case NeverReady:
		return nil, a.Service
	}
	return nil, ""
}
