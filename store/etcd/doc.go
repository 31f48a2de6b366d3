// Package etcd keeps a fleet's state in etcd, for a fleet on many machines. Any
// number of control planes and agents open the same one.
//
//	s, err := etcd.Open(etcd.Options{
//		Endpoints: []string{"https://10.0.0.1:2379", "https://10.0.0.2:2379", "https://10.0.0.3:2379"},
//		TLS:       tlsConfig, // a client's certificate, and the CA of the servers
//	})
//	defer s.Close()
//	fleet, err := orchestrate.New(s)
//
// It speaks etcd's v3 API, to etcd 3.5.8 or newer or to what serves the same
// API. Package store/etcd/embed runs etcd's own server inside the program.
//
// Consistency: List and Get are linearizable, also while members are lost or cut
// off, and a List of many pages is of one revision. Commit is one etcd
// transaction; a condition is compared inside of it. Package doc of store says
// what that means for callers.
//
// Outages: a call that can be repeated tries the servers in turn until one
// answers or [Options.Timeout] has gone by; then it is [ErrUnavailable]. A
// Commit is repeated only when it certainly did not happen: otherwise its error
// is ErrUnavailable, and the change may have happened or may happen yet. A watch
// has no timeout: it waits for the servers for as long as its context lasts, and
// goes on where it was, without a gap, or says store.ErrCompacted.
// A server that was cut off, and so says nothing, is noticed after two to three
// seconds. Who has a server on its own machine names it: [Options.Near].
//
// Leases are etcd's: whole seconds, no shorter than one and a half election
// timeouts of the servers (with their defaults, 2 s), and they outlive the
// process. After a change of etcd's own leader every lease starts its time anew.
//
// Several fleets share one etcd by their [Options.Prefix]. They share its
// revision counter too, so revisions grow with what others write; and Compact
// cuts the history of all of them.
//
// Size: what store.Txn promises fits etcd's defaults (--max-txn-ops 128,
// --max-request-bytes 1.5 MiB). A server that was given less refuses what is
// larger with a [ServerLimitError]; [Store.Check] tells beforehand.
package etcd
