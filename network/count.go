package network

import "context"

// Counter is a [Balancer] that counts the connections it sees to the rules that
// have Count set.
type Counter interface {
	// Connections returns how many new connections there have been so far to
	// each service's rules that are counted, also those that found no endpoint.
	// Numbers only grow, but for a restart of the machine or of what counts: one
	// that is less than before has begun anew.
	Connections(ctx context.Context) (map[string]uint64, error)
}
