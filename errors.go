package orchestrate

import (
	"errors"
	"fmt"
	"strings"
)

// Conditions that a caller can act on. ErrInvalid is beside [ValidationError].
var (
	ErrNotFound   = errors.New("not found")
	ErrNotRunning = errors.New("not running")
	ErrInUse      = errors.New("in use")
	ErrClosed     = errors.New("the fleet is closed")
	ErrNoAccess   = errors.New("the node cannot be reached from here")
	ErrNoResolver = errors.New("this fleet cannot tell what images' tags mean; open it with WithResolver")
)

// NameError is an object that does not exist. It matches [ErrNotFound].
type NameError struct {
	Kind string // such as "service"
	Name string
}

func (e *NameError) Error() string { return fmt.Sprintf("%s %q does not exist", e.Kind, e.Name) }

// Is reports whether target is [ErrNotFound].
func (e *NameError) Is(target error) bool { return target == ErrNotFound }

// PortError is a published port that another service has. It matches
// [ErrInUse].
type PortError struct {
	Service  string // the refused one, NAMESPACE/NAME
	Owner    string // the one that has it
	Protocol Protocol
	Port     uint16
}

func (e *PortError) Error() string {
	return fmt.Sprintf("service %s: published port %d/%s belongs to service %s; choose another, or remove it there first", e.Service, e.Port, e.Protocol, e.Owner)
}

// Is reports whether target is [ErrInUse].
func (e *PortError) Is(target error) bool { return target == ErrInUse }

// InUseError is an object that services refer to. It matches [ErrInUse].
type InUseError struct {
	Kind     string
	Name     string
	Services []string // NAMESPACE/NAME
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("%s %q is in use by %s; remove them first", e.Kind, e.Name, strings.Join(e.Services, ", "))
}

// Is reports whether target is [ErrInUse].
func (e *InUseError) Is(target error) bool { return target == ErrInUse }

// splitName reads "NAME" or "NAMESPACE/NAME".
func splitName(name string) (namespace, base string) {
	if ns, base, ok := strings.Cut(name, "/"); ok {
		return ns, base
	}
	return DefaultNamespace, name
}
