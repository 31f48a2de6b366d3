package store

import (
	"context"
	"time"
)

// Store is an ordered key space with one revision counter.
//
// All methods may be called from any goroutine. Every method returns the
// context's error when ctx has ended, and [ErrClosed] after Close. The model is
// that of etcd v3 (https://etcd.io/docs/v3.5/learning/data_model/), without old
// values, ranges and nested transactions.
type Store interface {
	// List returns all items whose key starts with prefix, sorted by key, as
	// they were at one revision. The prefix is a plain string prefix: end it
	// with "/" to mean a folder, since "/tasks/n1" also matches "/tasks/n10/x".
	// An empty prefix means everything. A malformed one is a [*KeyError].
	//
	// A List that starts after a Commit returned sees that commit.
	List(ctx context.Context, prefix string) (Snapshot, error)

	// Watch delivers every change under prefix with a revision greater than
	// after, in order and without gaps: one Batch for each commit that changed
	// something under prefix. Start it from a Snapshot's Revision to miss
	// nothing.
	//
	// If the changes after that revision are not all kept any more, Watch
	// either returns ErrCompacted or its first Batch carries it: list again.
	// The channel is closed after ctx ends, after the store is closed, or after
	// a Batch whose Err is not nil. A slow receiver blocks nobody and loses
	// nothing silently: when it has fallen behind all kept history its last
	// Batch has Err = ErrCompacted.
	Watch(ctx context.Context, prefix string, after int64) (<-chan Batch, error)

	// Commit applies all writes of txn as one revision if all its conditions
	// hold, and returns that revision. If one does not hold, nothing changes
	// and the error is a [*ConflictError]. A transaction that changes nothing
	// (no writes, or only deletions of absent keys) takes no revision of its
	// own and returns the current one.
	//
	// A malformed transaction is refused whole, see [Txn.Validate]. Writing
	// under a lease that is gone is [ErrLeaseExpired]. When Commit returns
	// without error the change is as durable as the store makes it. When it
	// returns any error that this package does not define, for instance
	// because ctx ended while waiting, the change may have happened.
	Commit(ctx context.Context, txn Txn) (revision int64, err error)

	// Lease grants a lease that lasts ttl after its grant and after each
	// renewal. A store may grant a longer time than was asked for (etcd rounds
	// up to seconds), never a shorter one: [Lease.TTL] tells. A ttl that is not
	// positive is a [*TTLError].
	Lease(ctx context.Context, ttl time.Duration) (Lease, error)

	// Close ends all watches and calls and frees what the store holds. Leases
	// are not revoked: their items vanish when their time is over, or, in a
	// store that one process owns, when it is opened again. Calling Close again
	// does nothing and returns nil.
	Close() error
}

// Compacter is implemented by stores whose history can be cut by hand. Stores
// bound their history by themselves too, so nobody has to call it.
type Compacter interface {
	// Compact forgets the history up to and including revision: a watch after
	// an older revision gets ErrCompacted. Items are not touched. A revision
	// that is yet to come is a [*RevisionError]; one that is compacted already
	// is no error.
	Compact(ctx context.Context, revision int64) error
}

// Getter is implemented by stores that can read one key more cheaply than by
// List. Call [Get], which works with every store.
type Getter interface {
	// Get returns the item at key and whether there is one.
	Get(ctx context.Context, key string) (item Item, found bool, err error)
}

// Snapshot is the items under a prefix as they were at one revision.
type Snapshot struct {
	Revision int64  // the store's revision when the snapshot was taken; 0 for a new, empty store
	Items    []Item // sorted by key
}

// Item is one key and its value.
type Item struct {
	Key      string
	Value    []byte  // read-only; an empty value may be nil
	Revision int64   // of the commit that last wrote it
	Created  int64   // revision of the commit that made the key exist
	Lease    LeaseID // the lease it vanishes with; empty if none
}

// Unchanged is the condition that the item is still as it was read: for the
// zero Item of an absent key use [Absent] instead.
func (i Item) Unchanged() Condition { return Condition{Key: i.Key, Revision: i.Revision} }

// Batch is all that one commit changed under the watched prefix, or the reason
// why a watch ended.
type Batch struct {
	Revision int64    // of the commit; 0 if Err is set
	Changes  []Change // never empty unless Err is set; read-only; in the order of the transaction's writes
	Err      error    // not nil: the watch is over and the channel closes next
}

// Change is one written or deleted key.
type Change struct {
	Item    Item // as written; of a deletion only Key and Revision are set, Revision being that of the deletion
	Deleted bool
}

// Txn is a transaction: writes that happen if all conditions hold.
type Txn struct {
	If     []Condition
	Writes []Write // no key twice
}

// Condition is what must be true of one key.
type Condition struct {
	Key      string
	Revision int64 // 0: the key is absent; otherwise: the key exists and this is the revision of its last write
}

// Absent is the condition that key does not exist.
func Absent(key string) Condition { return Condition{Key: key} }

// Write puts a value at a key or deletes the key. [Put] and [Delete] make one.
type Write struct {
	Key    string
	Value  []byte
	Delete bool    // true: delete the key; Value and Lease must be empty. An absent key is no error
	Lease  LeaseID // of a put: the lease that the item vanishes with; empty detaches it from any lease it had
}

// Put is the write of value at key, which belongs to no lease.
func Put(key string, value []byte) Write { return Write{Key: key, Value: value} }

// PutLeased is the write of value at key, to vanish with lease.
func PutLeased(key string, value []byte, lease LeaseID) Write {
	return Write{Key: key, Value: value, Lease: lease}
}

// Delete is the deletion of key.
func Delete(key string) Write { return Write{Key: key, Delete: true} }

// LeaseID names a lease within its store. It is opaque.
type LeaseID string

// Lease is a promise to stay alive: when it is not renewed for its TTL, the
// store deletes all items written under it, in one commit.
type Lease interface {
	// ID is what [Write.Lease] takes.
	ID() LeaseID
	// TTL is how long the lease lasts after its grant and after each renewal: as
	// long as was asked for, or longer.
	TTL() time.Duration
	// KeepAlive renews the lease once. It returns ErrLeaseExpired when the
	// lease is gone, whatever ended it; it never comes back. [Keep] renews
	// again and again.
	KeepAlive(ctx context.Context) error
	// Revoke ends the lease: when it returns nil, its items are deleted.
	// Revoking a lease that is gone already is no error.
	Revoke(ctx context.Context) error
}
