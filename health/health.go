package health

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// Check is a probe of a container as data. Exactly one of HTTP, TCP, GRPC,
// Exec and Custom is set.
type Check struct {
	HTTP   *HTTP   `json:"http,omitempty"`
	TCP    *TCP    `json:"tcp,omitempty"`
	GRPC   *GRPC   `json:"grpc,omitempty"`
	Exec   *Exec   `json:"exec,omitempty"`
	Custom *Custom `json:"custom,omitempty"`

	// Interval between the end of one probe and the begin of the next;
	// default 10 s, at least 10 ms.
	Interval time.Duration `json:"interval,omitempty"`
	// Timeout of one probe; default 1 s.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Delay before the first probe after the container's start; default 0.
	Delay time.Duration `json:"delay,omitempty"`
	// Failures in a row that make it unhealthy; default 3.
	Failures int `json:"failures,omitempty"`
	// Successes in a row that make it healthy again; default 1.
	Successes int `json:"successes,omitempty"`
}

// HTTP probes by a GET request. A status from 200 to 399 is healthy, or the
// ones in Status when it is set.
type HTTP struct {
	Port    uint16            `json:"port"`
	Path    string            `json:"path,omitempty"` // default "/"
	Host    string            `json:"host,omitempty"` // Host header
	Headers map[string]string `json:"headers,omitempty"`
	TLS     bool              `json:"tls,omitempty"` // certificates are not verified, as the kubelet does
	Status  []int             `json:"status,omitempty"`
}

// TCP probes by connecting.
type TCP struct {
	Port uint16 `json:"port"`
}

// GRPC probes by the gRPC health checking protocol (grpc.health.v1), which
// must answer SERVING.
type GRPC struct {
	Port    uint16 `json:"port"`
	Service string `json:"service,omitempty"`
	TLS     bool   `json:"tls,omitempty"`
}

// Exec probes by a command inside the container: exit code 0 is healthy.
type Exec struct {
	Command []string `json:"command"`
}

// Custom probes by a Checker that the application registered under a name.
type Custom struct {
	Name   string            `json:"name"`
	Params map[string]string `json:"params,omitempty"`
}

// Target is what a probe is directed at.
type Target struct {
	// ID names the target in a Monitor: one container's one probe.
	ID string
	// Address of the task.
	Address netip.Addr
	// Exec runs a command in the container; nil when the runtime cannot.
	Exec func(ctx context.Context, command []string) (exitCode int, output []byte, err error)
}

// Checker runs one probe. Its context ends at the check's timeout.
type Checker interface {
	// Check returns nil when target is healthy, or a reason why not. An
	// error is a failed probe like any other.
	Check(ctx context.Context, target Target, check Check) error
}

// Foreteller is a [Checker] that knows when an answer of its own changes. A
// [Monitor] does not ask it again and again: a target whose status cannot change
// as long as the answer does not is probed when it does, at the next multiple of
// the interval after its last probe, as if it had been probed all the time. It is
// for simulations, where asking ten thousand containers each second costs more
// than all else.
type Foreteller interface {
	Checker
	// Await has changed called, once, when the answer about target may be
	// another than Check gave last, but not from within Await. Stop takes that
	// back.
	Await(target Target, check Check, changed func()) (stop func())
}

// CheckerFunc is a function as a Checker.
type CheckerFunc func(ctx context.Context, target Target, check Check) error

// Check calls f.
func (f CheckerFunc) Check(ctx context.Context, target Target, check Check) error {
	return f(ctx, target, check)
}

// Status is what a Monitor concluded about a target.
type Status string

// The statuses.
const (
	Unknown   Status = "unknown" // not enough probes yet
	Healthy   Status = "healthy"
	Unhealthy Status = "unhealthy"
)

// Result is a change of a target's status, or its first.
type Result struct {
	Target string // Target.ID
	Status Status
	At     time.Time
	Reason error // of the last failed probe, when unhealthy
	Probes int   // since the target was added
}

// SpecError is a check that cannot be run: the field and what would be right.
type SpecError struct {
	Field  string // such as "http.port"
	Reason string
}

func (e *SpecError) Error() string { return fmt.Sprintf("health check: %s: %s", e.Field, e.Reason) }
