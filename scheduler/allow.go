package scheduler

import "fmt"

// Allows says whether a task of r may run on n as far as that does not depend
// on what else runs there: readiness, platform, drivers, taints, volumes,
// constraints and the keys of a MaxSkew. It is nil or a *RefusedError. A
// controller asks it of running tasks after a node or a request has changed.
func (r *Request) Allows(n *Node) error {
	refuse := func(filter, reason string) error { return &RefusedError{n.ID, filter, reason} }
	switch readiness(n) {
	case whyNotReady:
		return refuse(FilterReady, "is not ready")
	case whyPaused:
		return refuse(FilterReady, "is paused")
	case whyDrained:
		return refuse(FilterReady, "is drained")
	}
	if !r.platformFits(n) {
		return refuse(FilterPlatform, "is "+n.Platform.String())
	}
	if d := r.driverMissing(n); d != "" {
		return refuse(FilterDrivers, "has no "+d)
	}
	if t := r.untolerated(n); t != nil {
		return refuse(FilterTaint, "has taint "+t.String())
	}
	if v := r.volumeOutOfReach(n); v != nil {
		return refuse(FilterVolume, "can not reach "+v.Name)
	}
	for i := range r.Constraints {
		c := &r.Constraints[i]
		if err := c.Validate(); err != nil {
			return fmt.Errorf("constraints[%d]: %w", i, err)
		}
		if !c.Matches(n) {
			return refuse(FilterConstraint, "does not satisfy "+c.String())
		}
	}
	for _, s := range r.Spread {
		if _, ok := n.attribute(s.Key); !ok && s.MaxSkew > 0 {
			return refuse(FilterSpreadKey, "has no "+s.Key)
		}
	}
	return nil
}

// Eligible lists, in the order of their ids, the nodes that r Allows: those
// where a service that runs once on every node belongs. The error is an
// *InvalidError.
func (c *Cluster) Eligible(r *Request) ([]string, error) {
	sh, err := c.intern(r)
	if err != nil {
		return nil, err
	}
	set := c.static(sh)
	c.rank()
	var ids []string
	for _, slot := range c.order {
		if set.why[slot] == whyFits {
			ids = append(ids, c.specs[slot].ID)
		}
	}
	return ids, nil
}
