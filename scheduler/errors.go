package scheduler

import (
	"errors"
	"fmt"
	"strings"
)

// Conditions that a caller acts on. The errors returned carry more and match
// these with errors.Is.
var (
	// ErrInvalid is behind every error about input that makes no sense.
	ErrInvalid = errors.New("invalid")
	// ErrNodeUnknown: the cluster has no node of that id.
	ErrNodeUnknown = errors.New("node unknown")
	// ErrTaskUnknown: the cluster has no task of that id.
	ErrTaskUnknown = errors.New("task unknown")
	// ErrTaskExists: a task of that id is bound already.
	ErrTaskExists = errors.New("task is bound already")
	// ErrStrategyUnknown: no strategy is registered under that name.
	ErrStrategyUnknown = errors.New("strategy unknown")
	// ErrUnplaced is matched by what Decision.Err returns.
	ErrUnplaced = errors.New("not all replicas were placed")
)

// InvalidError says which field had what value, and what would be right.
type InvalidError struct {
	Field string
	Value any
	Want  string
}

func (e *InvalidError) Error() string {
	if s, ok := e.Value.(string); ok {
		return fmt.Sprintf("%s is %q, want %s", e.Field, s, e.Want)
	}
	return fmt.Sprintf("%s is %v, want %s", e.Field, e.Value, e.Want)
}

// Is makes an InvalidError match ErrInvalid.
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

func invalid(field string, value any, want string) error {
	return &InvalidError{Field: field, Value: value, Want: want}
}

// RequestError says which of the requests given to Place was wrong. Nothing
// was placed.
type RequestError struct {
	Index   int
	Request string // namespace/service
	Err     error
}

func (e *RequestError) Error() string {
	return fmt.Sprintf("request %d (%s): %v", e.Index, e.Request, e.Err)
}

// Unwrap returns Err: what was wrong with the one request.
func (e *RequestError) Unwrap() error { return e.Err }

// CycleError says that requests wait for each other: each requires affinity to
// the next, the last to the first, and none of them has a task yet.
type CycleError struct{ Services []string }

func (e *CycleError) Error() string {
	return fmt.Sprintf("required affinity goes in a circle: %s → %s; make one of them preferred",
		strings.Join(e.Services, " → "), e.Services[0])
}

// Is makes a CycleError match ErrInvalid.
func (e *CycleError) Is(target error) bool { return target == ErrInvalid }

// StrategyError names a strategy that is not registered, and those that are.
type StrategyError struct {
	Name  string
	Known []string
}

func (e *StrategyError) Error() string {
	return fmt.Sprintf("strategy %q is not registered; there are %s", e.Name, strings.Join(e.Known, ", "))
}

// Is makes a StrategyError match ErrStrategyUnknown and ErrInvalid.
func (e *StrategyError) Is(target error) bool {
	return target == ErrStrategyUnknown || target == ErrInvalid
}
