// Package bolt is a durable store in one file, for a fleet on one machine:
// nothing to install, nothing to run. It is built on go.etcd.io/bbolt.
//
//	s, err := bolt.Open("/var/lib/myapp/state.db", bolt.Options{})
//	if errors.Is(err, bolt.ErrLocked) {
//		// another process is the orchestrator of this machine
//	}
//	defer s.Close()
//
// Durability: Commit returns when the change is on the disk. Commits that come
// while the disk is busy share the next sync, so the rate of commits grows with
// the number of writers; each keeps its own conditions, result and revision,
// and one that conflicts fails alone. Killing the process at any instruction,
// or the machine, loses no commit that returned and leaves no half of one.
//
// One process: the file is locked while it is open, and opening it again is
// ErrLocked at once. The lock ends with the process, however that ends.
//
// Leases do not survive the process that made them. They say "I am alive", and
// the file's lock proves that who said it is dead, so Open deletes all leased
// items, as one commit that watches can see. That is why a restarted program
// need not wait for its own former leadership to expire.
//
// Memory: all items are kept in memory too, and List, Get and Watch never touch
// the disk. The state must fit: a hundred thousand tasks of 2 KB are 200 MB.
// The history for watches is in memory alone. After opening it begins anew, and
// a Watch from an older revision gets store.ErrCompacted, never a gap.
//
// The file does not shrink; the room of deleted items is used again.
//
// A write that fails (disk full, I/O error) leaves the file's state unknown to
// this process, so the store stops: this and every later call return the same
// [WriteError]. Open reads what is really there.
package bolt
