package record

import "time"

// Fleet is the prefix of what all nodes are to know of the fleet, and SizeKey
// where its size is.
const (
	Fleet   = "/fleet/"      // leader
	SizeKey = Fleet + "size" // leader  Size
)

// Size is how many nodes there are, about, and what follows for their leases. It
// is written only where it makes a difference, see Resize: without it, TTLs are as
// each node's agent has them by itself.
type Size struct {
	// Nodes is at least the number of nodes, and a quarter more when it was
	// written, so that it does not change with each that joins.
	Nodes int `json:"nodes"`
	// Renewals is how many renewals a second of all nodes' leases together the
	// store is to bear.
	Renewals int `json:"renewals"`
}

// RenewalsPerTTL is how often a node's lease is renewed within its TTL at most:
// three times, by a clock that runs up to a fifth faster for some nodes than for
// others so that they do not all come at once.
const RenewalsPerTTL = 3.75

// DefaultRenewals is the limit of renewals a second that 0 stands for.
const DefaultRenewals = 1000

// TTL is for how long leases of nodes are to last whose agents would have them
// last for base: longer where all together would else be renewed more often than
// Renewals a second. It is rounded up to whole seconds, which is what etcd counts.
func (s Size) TTL(base time.Duration) time.Duration {
	if s.Nodes <= 0 || s.Renewals <= 0 {
		return base
	}
	need := time.Duration(RenewalsPerTTL * float64(s.Nodes) / float64(s.Renewals) * float64(time.Second))
	return max(base, (need + time.Second - 1).Truncate(time.Second))
}

// Spread is the time over which nodes are to change their leases after the size
// has changed, so that this takes a tenth of the renewals.
func (s Size) Spread() time.Duration {
	if s.Nodes <= 0 || s.Renewals <= 0 {
		return 0
	}
	return time.Duration(10 * float64(s.Nodes) / float64(s.Renewals) * float64(time.Second))
}

// Resize is what the size is to say of a fleet of so many nodes, when it was s
// before, the zero Size if it was not there. While any TTL from a second on would
// do it is not needed. It then grows when there are more nodes than it says, and
// shrinks when there are less than half. Limit is that of renewals; negative is
// none.
func (s Size) Resize(nodes, limit int) Size {
	if limit < 0 {
		if s.Nodes == 0 {
			return s
		}
		return Size{Nodes: s.Nodes} // it says that there is no limit
	}
	least := int(float64(limit) / RenewalsPerTTL)
	if s.Nodes == 0 && nodes <= least {
		return s
	}
	out := Size{Nodes: s.Nodes, Renewals: limit}
	if nodes > s.Nodes || nodes < s.Nodes/2 {
		out.Nodes = max(least, nodes+(nodes+3)/4)
	}
	return out
}
