package orchestrate

import "slices"

func (c *checks) update(s *Service) {
	u := &s.Update
	c.amount("update.parallelism", u.Parallelism)
	if u.Parallelism.none() {
		c.add("update.parallelism", u.Parallelism, "is no task at all, so nothing could ever change; use at least 1")
	}
	orders := []UpdateOrder{OrderAuto, StartFirst, StopFirst}
	if !slices.Contains(orders, u.Order) {
		c.add("update.order", u.Order, "is not an order; use one of %s", list(orders))
	}
	c.surge(s)
	c.strategy(s)
	if u.Monitor > 0 {
		c.duration("update.monitor", u.Monitor, 0)
	}
	c.duration("update.progressDeadline", u.ProgressDeadline, 0)
	if u.ProgressDeadline > 0 && u.ProgressDeadline <= u.Monitor {
		c.add("update.progressDeadline", u.ProgressDeadline, "is not longer than monitor, which is %v, so no task could ever count; raise it", u.Monitor)
	}
	c.count("update.maxFailures", int64(u.MaxFailures), MaxReplicas)
	if actions := []FailureAction{RollBack, Pause, Continue}; u.OnFailure != "" && !slices.Contains(actions, u.OnFailure) {
		c.add("update.onFailure", u.OnFailure, "is not an action; use one of %s", list(actions))
	}
}

// surge checks that what is allowed to be missing and to be too much lets a
// rollout get on, and fits the order.
func (c *checks) surge(s *Service) {
	u := &s.Update
	c.amount("update.maxSurge", u.MaxSurge)
	c.amount("update.maxUnavailable", u.MaxUnavailable)
	switch {
	case u.Order == StartFirst && u.MaxSurge.none():
		c.add("update.maxSurge", u.MaxSurge, "leaves no room for a task to start first; raise it, or use order %q", StopFirst)
	case s.stopFirst() && u.MaxSurge != "" && !u.MaxSurge.none():
		c.add("update.maxSurge", u.MaxSurge, "has no meaning where a task stops before its successor starts, as here; leave it away")
	case s.stopFirst() && u.MaxUnavailable.none():
		c.add("update.maxUnavailable", u.MaxUnavailable, "lets no task stop before its successor starts, as here all must; use at least 1")
	}
}

// strategy checks how a new revision is tried.
func (c *checks) strategy(s *Service) {
	u := &s.Update
	strategies := []UpdateStrategy{RollingUpdate, CanaryUpdate, BlueGreenUpdate}
	if !slices.Contains(strategies, u.Strategy) {
		c.add("update.strategy", u.Strategy, "is not a strategy; use one of %s", list(strategies))
	}
	c.amount("update.canary.tasks", u.Canary.Tasks)
	if u.Canary.Bake != 0 {
		c.duration("update.canary.bake", u.Canary.Bake, 0)
	}
	if u.BlueGreen.Bake > 0 {
		c.duration("update.blueGreen.bake", u.BlueGreen.Bake, 0)
	}
	if u.Canary.Tasks.none() {
		c.add("update.canary.tasks", u.Canary.Tasks, "is no canary at all; use at least 1, or strategy %q", RollingUpdate)
	}
	if u.Canary != (Canary{}) && u.Strategy != CanaryUpdate {
		c.add("update.canary", nil, "is for strategy %q, and this is %q; leave it away", CanaryUpdate, u.Strategy)
	}
	if u.BlueGreen != (BlueGreen{}) && u.Strategy != BlueGreenUpdate {
		c.add("update.blueGreen", nil, "is for strategy %q, and this is %q; leave it away", BlueGreenUpdate, u.Strategy)
	}
	if u.Strategy != CanaryUpdate && u.Strategy != BlueGreenUpdate {
		return
	}
	switch {
	case s.Mode == Global:
		c.add("update.strategy", u.Strategy, "needs two tasks on a node, and a global service has one; use %q", RollingUpdate)
	case s.stopFirst():
		c.add("update.strategy", u.Strategy, "needs two tasks at a time, and here one stops before the next starts; use %q, or order %q if there are nodes enough", RollingUpdate, StartFirst)
	case u.Strategy == BlueGreenUpdate && s.HostNetwork && len(s.Ports) > 0:
		c.add("update.strategy", u.Strategy, "cannot switch the traffic of ports that are the nodes' own; use %q or %q", CanaryUpdate, RollingUpdate)
	}
}

// amount checks the form of a.
func (c *checks) amount(path string, a Amount) {
	if _, _, err := a.parse(); err != nil {
		c.add(path, a, "%v", err)
	}
}
