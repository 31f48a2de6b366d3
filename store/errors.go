package store

import (
	"errors"
	"fmt"
	"time"
)

var (
	// ErrClosed is returned by every call on a closed store.
	ErrClosed = errors.New("store is closed")
	// ErrConflict says that a condition of a transaction did not hold, so
	// nothing was written. The error is a [*ConflictError] with the facts.
	ErrConflict = errors.New("conflict")
	// ErrCompacted says that the history needed by a watch is no longer kept:
	// take a new List and watch from there, as [Follow] does.
	ErrCompacted = errors.New("history is compacted")
	// ErrLeaseExpired says that a lease is gone: it expired or was revoked.
	ErrLeaseExpired = errors.New("lease expired")
	// ErrTooLarge says that a transaction exceeds a limit. The error is a
	// [*LimitError] with the numbers.
	ErrTooLarge = errors.New("too large")
	// ErrInvalid is what every malformed argument is (errors.Is): a [*KeyError],
	// [*LimitError], [*TTLError] or [*RevisionError]. Trying again cannot help.
	ErrInvalid = errors.New("invalid")
)

// ConflictError names the first condition that did not hold. It is
// [ErrConflict].
type ConflictError struct {
	Key  string
	Want int64 // the revision that the condition asked for; 0: that the key is absent
	Got  int64 // the revision of the key's last write; 0: the key is absent
}

// Error says which key was in which state.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("conflict at %s: want %s, but it is %s", e.Key, state(e.Want), state(e.Got))
}

// Is makes it [ErrConflict].
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

func state(revision int64) string {
	if revision == 0 {
		return "absent"
	}
	return fmt.Sprintf("at revision %d", revision)
}

// KeyError says what is wrong with a key, a prefix, or what a transaction does
// with a key. It is [ErrInvalid].
type KeyError struct {
	Key    string
	Reason string // what is wrong, and what would be right
}

// Error quotes the key, cut to a readable length.
func (e *KeyError) Error() string {
	key := e.Key
	if len(key) > 80 {
		key = key[:77] + "..."
	}
	return fmt.Sprintf("store key %q: %s", key, e.Reason)
}

// Is makes it [ErrInvalid].
func (e *KeyError) Is(target error) bool { return target == ErrInvalid }

// LimitError says which limit a transaction exceeds, and by how much. It is
// [ErrTooLarge] and [ErrInvalid].
type LimitError struct {
	What string // "conditions", "writes" or "bytes"
	Got  int
	Max  int
}

// Error tells both numbers.
func (e *LimitError) Error() string {
	return fmt.Sprintf("transaction has %d %s, at most %d are allowed", e.Got, e.What, e.Max)
}

// Is makes it [ErrTooLarge] and [ErrInvalid].
func (e *LimitError) Is(target error) bool { return target == ErrTooLarge || target == ErrInvalid }

// TTLError refuses the duration of a lease. It is [ErrInvalid].
type TTLError struct{ TTL time.Duration }

// Error tells the duration.
func (e *TTLError) Error() string {
	return fmt.Sprintf("lease of %v: the duration must be positive", e.TTL)
}

// Is makes it [ErrInvalid].
func (e *TTLError) Is(target error) bool { return target == ErrInvalid }

// RevisionError refuses a revision that cannot be meant. It is [ErrInvalid].
type RevisionError struct {
	Revision int64 // as given
	Current  int64 // the store's revision
}

// Error tells both revisions.
func (e *RevisionError) Error() string {
	return fmt.Sprintf("revision %d is out of range: want 0 to %d", e.Revision, e.Current)
}

// Is makes it [ErrInvalid].
func (e *RevisionError) Is(target error) bool { return target == ErrInvalid }
