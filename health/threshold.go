package health

// threshold is the state machine of one check: how many probes in a row said
// the same, and what that makes of the target. It is pure; the zero value is
// before the first probe.
type threshold struct {
	status Status // "" is Unknown
	row    int32  // outcomes in a row that speak against status
	failed bool   // what those outcomes were, while status is unknown
}

// observe takes the next outcome and reports whether the status changed. From
// the unknown state either side needs its whole row, so one probe that fails
// while a container starts does not make it unhealthy.
func (t *threshold) observe(healthy bool, failures, successes int) (changed bool) {
	switch t.status {
	case Healthy:
		if healthy {
			t.row = 0
			return false
		}
	case Unhealthy:
		if !healthy {
			t.row = 0
			return false
		}
	default:
		if t.failed == healthy { // the row was of the other outcome, or is empty
			t.row = 0
		}
		t.failed = !healthy
	}
	t.row++
	need, next := failures, Unhealthy
	if healthy {
		need, next = successes, Healthy
	}
	if int(t.row) < need {
		return false
	}
	t.status, t.row = next, 0
	return true
}

// settled reports whether more outcomes like the last change nothing.
func (t *threshold) settled() bool { return t.status != "" && t.row == 0 }

// current is the status reached.
func (t *threshold) current() Status {
	if t.status == "" {
		return Unknown
	}
	return t.status
}
