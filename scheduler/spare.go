package scheduler

// Spare bounds how many tasks of a service preemption may stop from now on, in
// all Places together until it is said again: its disruption budget, less what
// does not serve. Below 0 is any number, as of services that it is not said of. It
// bounds nothing else: tasks are released as ever.
func (c *Cluster) Spare(namespace, name string, tasks int) {
	key := serviceKey{namespace, name}
	if tasks < 0 {
		delete(c.budgets, key)
		return
	}
	if c.budgets == nil {
		c.budgets = map[serviceKey]int{}
	}
	c.budgets[key] = tasks
}

// mayGo reports whether one task more can be stopped beside others.
func (c *Cluster) mayGo(task int32, others []int32) bool {
	if len(c.budgets) == 0 {
		return true
	}
	svc := c.shapes[c.tasks.entries[task].shape].svc
	left, bounded := c.budgets[c.services[svc].key]
	for _, i := range others {
		if c.shapes[c.tasks.entries[i].shape].svc == svc {
			left--
		}
	}
	return !bounded || left > 0
}

// spend counts tasks of a service that are stopped, or with a negative number are
// not after all.
func (c *Cluster) spend(svc int32, tasks int) {
	if key := c.services[svc].key; len(c.budgets) > 0 {
		if left, bounded := c.budgets[key]; bounded {
			c.budgets[key] = left - tasks
		}
	}
}
