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

// amount checks the form of a.
func (c *checks) amount(path string, a Amount) {
	if _, _, err := a.parse(); err != nil {
		c.add(path, a, "%v", err)
	}
}
