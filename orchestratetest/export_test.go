package orchestratetest

// Trace has each call at the gate told.
func (s Scenario) Trace(each func(string)) Scenario {
	s.trace = each
	return s
}
