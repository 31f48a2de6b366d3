package embed

import "fmt"

// Leads reports whether this member leads its cluster, as far as it knows.
func (m *Member) Leads() bool {
	return m.etcd.Server.Leader() == m.etcd.Server.MemberID()
}

// Yield hands the lead to another member that votes and is connected, and waits
// until that one leads; writes wait for as long, which is mostly some
// milliseconds. Where this member does not lead, or is alone, it does nothing.
//
// It is for a program whose own leader should not be where etcd's is: when a
// member dies that leads, the others elect one, and that one begins the time of
// every lease anew. What waits for a lease to end waits for all of that.
func (m *Member) Yield() error {
	if err := m.etcd.Server.TryTransferLeadershipOnShutdown(); err != nil {
		return fmt.Errorf("etcd member %s yields the lead: %w", m.opts.Name, err)
	}
	return nil
}
