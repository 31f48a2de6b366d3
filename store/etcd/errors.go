package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/orchestrate-go/orchestrate/store"
)

// What can be wrong with etcd; an [*Error] is one of these (errors.Is).
var (
	// ErrUnavailable says that no server answered in time, or that those that
	// did have no leader. It may pass. A Commit may have happened.
	ErrUnavailable = errors.New("etcd is unavailable")
	// ErrNoSpace says that etcd's quota is used up: it takes deletions and
	// nothing else until it is compacted, defragmented and its alarm disarmed,
	// as embed.Member's Reclaim does. Nothing was written.
	ErrNoSpace = errors.New("etcd's quota is used up")
	// ErrUnauthenticated says that etcd does not know who is asking: a wrong
	// name or password, or a client certificate without a user of its name.
	ErrUnauthenticated = errors.New("not authenticated at etcd")
	// ErrDenied says that no role of the user allows this. Nothing was written.
	ErrDenied = errors.New("not allowed at etcd")
	// ErrCorrupt says that etcd found its members' data to differ and stopped
	// writing. Replace the member that is wrong, or restore a snapshot.
	ErrCorrupt = errors.New("etcd's data is damaged")
)

// Error is a call that etcd, or the way to it, let fail.
type Error struct {
	Op   string // what was being done, such as "list /tasks/"
	Kind error  // ErrUnavailable, ErrNoSpace, ErrUnauthenticated, ErrDenied or ErrCorrupt; nil if none of them
	Err  error  // of the client, often with the server's words
}

// Error tells what was being done and why it failed.
func (e *Error) Error() string {
	if e.Kind == nil {
		return fmt.Sprintf("%s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("%s: %v: %v", e.Op, e.Kind, e.Err)
}

// Unwrap returns Kind and Err.
func (e *Error) Unwrap() []error {
	if e.Kind == nil {
		return []error{e.Err}
	}
	return []error{e.Kind, e.Err}
}

// ServerLimitError says that the servers were given smaller limits than etcd's
// defaults, and that a transaction exceeds one. It is store.ErrTooLarge and
// store.ErrInvalid; nothing was written.
type ServerLimitError struct {
	What string // "operations" or "bytes"
	Got  int    // of the transaction
	Flag string // of the server: want it at its default or more
}

// Error names the flag to raise.
func (e *ServerLimitError) Error() string {
	return fmt.Sprintf("transaction of %d %s is more than this etcd allows; raise its %s to the default or more", e.Got, e.What, e.Flag)
}

// Is makes it store.ErrTooLarge and store.ErrInvalid.
func (e *ServerLimitError) Is(target error) bool {
	return target == store.ErrTooLarge || target == store.ErrInvalid
}

// OptionError is an option that is missing or wrong.
type OptionError struct{ Option, Reason string }

// Error names the option and what would be right.
func (e *OptionError) Error() string { return fmt.Sprintf("etcd: option %s %s", e.Option, e.Reason) }

// kindOf sorts an error of the client.
func kindOf(err error) error {
	switch err := known(err); {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return ErrNoSpace
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return ErrDenied
	case errors.Is(err, rpctypes.ErrAuthFailed), errors.Is(err, rpctypes.ErrUserEmpty),
		errors.Is(err, rpctypes.ErrInvalidAuthToken), errors.Is(err, rpctypes.ErrAuthOldRevision),
		errors.Is(err, rpctypes.ErrUserNotFound):
		return ErrUnauthenticated
	case errors.Is(err, rpctypes.ErrCorrupt):
		return ErrCorrupt
	}
	switch code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Internal:
		return ErrUnavailable
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || untouched(err) {
		return ErrUnavailable
	}
	return nil
}

// known is err as the client's own value for it, if it has one. Of a watch that
// was refused the client keeps the text alone.
func known(err error) error {
	if _, words, found := strings.Cut(err.Error(), "desc = "); found && status.Code(err) == codes.Unknown {
		err = status.Error(codes.Unknown, words)
	}
	return rpctypes.Error(err)
}

// code is the gRPC code of an error, as it came or as the client turned it into
// one of its own.
func code(err error) codes.Code {
	var known rpctypes.EtcdError
	if errors.As(err, &known) {
		return known.Code()
	}
	return status.Code(err)
}

// passing reports whether a call that may be repeated should be.
func passing(err error) bool {
	kind := kindOf(err)
	return kind == ErrUnavailable || untouched(err)
}

// untouched reports whether a server refused a request before it did anything
// about it, in a way that another try may cure. Everything else that can be said
// of a write that failed is that it may have happened.
func untouched(err error) bool {
	err = rpctypes.Error(err)
	if errors.Is(err, rpctypes.ErrNoLeader) || errors.Is(err, rpctypes.ErrTooManyRequests) {
		return true
	}
	// Raft has no leader to hand a proposal to. The server has no code for it.
	return status.Convert(err).Message() == "raft proposal dropped"
}
