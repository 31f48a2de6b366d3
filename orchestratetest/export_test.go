package orchestratetest

import "github.com/orchestrate-go/orchestrate/store"

// Tamper changes each commit, as a mistake in the code would.
func (s Scenario) Tamper(change func(actor string, txn store.Txn) store.Txn) Scenario {
	s.tamper = change
	return s
}

// Trace has each call at the gate told.
func (s Scenario) Trace(each func(string)) Scenario {
	s.trace = each
	return s
}
