package orchestrate

import "github.com/orchestrate-go/orchestrate/internal/record"

// NodeKeys are the keys of the store that a node's agent reads, and those that it
// writes and reads: what an access control in front of the store has to allow,
// and no more. One that ends in a slash stands for all keys that begin with it.
// What else runs on the node, such as a network driver, has keys of its own.
func NodeKeys(node string) (read, write []string) { return record.Rights(node) }
