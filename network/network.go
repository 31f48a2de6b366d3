package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Driver connects tasks to networks on one node. Every method is idempotent
// and may be called from many goroutines; running it again after a crash
// adopts what is already there.
type Driver interface {
	// Ensure makes the network true on this node, or changes it where that
	// is possible without breaking what is attached ([*ConfigError] where
	// it is not).
	Ensure(ctx context.Context, network Network) error

	// Remove takes the network off this node. With attachments left it is
	// an [*InUseError]. A network that is not there is not an error.
	Remove(ctx context.Context, name string) error

	// Attach connects the network namespace of a task to a network and
	// returns the interface it got. The same attachment again returns the
	// same addresses, also after a restart of the program. The network must
	// have been ensured: [ErrNoNetwork].
	Attach(ctx context.Context, a Attachment) (Interface, error)

	// Detach undoes Attach and frees the addresses. It succeeds when the
	// namespace or the attachment is gone already.
	Detach(ctx context.Context, a Attachment) error

	// Attachments lists what is attached on this node, so that what no task
	// owns any more can be detached.
	Attachments(ctx context.Context) ([]Attachment, error)
}

// Namespaces makes the network namespaces that tasks live in. They belong to
// the agent and outlive containers: a container that is restarted keeps its
// task's addresses.
type Namespaces interface {
	// Create makes the namespace, with its loopback interface up and the
	// sysctls set, and returns a path that a runtime can join. One that
	// exists is returned as it is.
	Create(ctx context.Context, id string, sysctls map[string]string) (path string, err error)
	// Delete removes the namespace. One that is not there is not an error.
	Delete(ctx context.Context, id string) error
	// List returns the IDs of all namespaces, sorted.
	List(ctx context.Context) ([]string, error)
}

// Balancer sends connections for virtual addresses and published ports to
// endpoints.
type Balancer interface {
	// Program makes rules the whole truth of this node in one atomic step:
	// no packet sees half of it. When it returns, no new connection goes to
	// an endpoint that rules does not name; established ones go on until
	// they end. Rules that contradict each other are refused whole with a
	// [*ConflictError].
	Program(ctx context.Context, rules []Rule) error
}

// Network is a network that tasks attach to.
type Network struct {
	// Name is unique on the node.
	Name string
	// Subnets are the ranges that tasks' addresses are taken from: at most
	// one IPv4 and one IPv6. The first usable address of each is the
	// gateway's.
	Subnets []netip.Prefix
	// Virtual are ranges that the addresses of rules on this network are
	// taken from, outside its subnets. They are routed to the node from
	// every attachment, whether or not it is the default one, and from the
	// node itself. Left empty, virtual addresses are reached by the default
	// route alone.
	Virtual []netip.Prefix
	// Whole are the ranges of the network on all nodes, where Subnets are this
	// node's part of it. They are routed from every attachment, as Virtual is,
	// and what another node sends from them comes from the network. Empty where
	// the network is on this node alone.
	Whole []netip.Prefix
	// MTU of the interfaces; 0 means the driver's default.
	MTU int
	// Internal networks have no way out to the world beyond the node.
	Internal bool
	// Options are the driver's own.
	Options map[string]string
}

// Gateways returns the address of the node in each of the network's subnets:
// the first usable one. DNS is served there.
func (n Network) Gateways() []netip.Addr {
	var gws []netip.Addr
	for _, p := range n.Subnets {
		gws = append(gws, p.Masked().Addr().Next())
	}
	return gws
}

// Attachment names the connection of one task to one network.
type Attachment struct {
	Network   string
	Task      string // task ID
	Namespace string // path of the network namespace
	// Interface is the name inside the namespace, such as "eth0".
	Interface string
	// Default makes this attachment the way to the rest of the world. One
	// of a task's attachments has it.
	Default bool
	// Addresses asks for these addresses; free ones are taken when empty.
	Addresses []netip.Addr
}

// Interface is what a task got by attaching.
type Interface struct {
	Name      string // inside the namespace
	Addresses []netip.Prefix
	Gateways  []netip.Addr
	MAC       string
}

// Protocol is a transport protocol.
type Protocol string

// The transport protocols.
const (
	TCP Protocol = "tcp" // also when empty
	UDP Protocol = "udp"
)

// Rule sends what arrives at a frontend to endpoints, new connections spread
// evenly over them. A rule without endpoints refuses connections.
type Rule struct {
	// Service names the owner in errors, such as "default/web".
	Service string
	// Protocol of both sides.
	Protocol Protocol
	// Address is the virtual address. The zero Addr makes it a published
	// port: every address of the node itself, loopback included.
	Address netip.Addr
	// HostIP narrows a published port to one address of the node.
	HostIP netip.Addr
	// Port at the frontend.
	Port uint16
	// Endpoints are where connections go. Those of another address family
	// than the frontend's are left out.
	Endpoints []netip.AddrPort
	// SourceAffinity sends connections of one client address to one
	// endpoint as long as the endpoints do not change.
	SourceAffinity bool
	// Count has a [Counter] count the connections.
	Count bool
}

// Errors that a caller can act on.
var (
	ErrNoNetwork   = errors.New("no such network")
	ErrNoNamespace = errors.New("no such network namespace")
	ErrExhausted   = errors.New("no free address left")
	ErrClosed      = errors.New("the network driver is closed")
)

// ConfigError is a network, attachment or rule that cannot be made true.
type ConfigError struct {
	Network string // of a network or an attachment
	Service string // of a rule
	Field   string
	Reason  string
}

func (e *ConfigError) Error() string {
	switch {
	case e.Service != "":
		return fmt.Sprintf("rule of service %q: %s: %s", e.Service, e.Field, e.Reason)
	case e.Network != "":
		return fmt.Sprintf("network %q: %s: %s", e.Network, e.Field, e.Reason)
	default:
		return e.Field + ": " + e.Reason
	}
}

// InUseError is a network that cannot be removed yet.
type InUseError struct {
	Network string
	Tasks   []string
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("network %q is in use by %d tasks, such as %s; stop them first", e.Network, len(e.Tasks), e.Tasks[0])
}

// ConflictError is two rules that claim the same frontend, or a published
// port that a process of the host listens on.
type ConflictError struct {
	Frontend string // such as "tcp 0.0.0.0:8080"
	Services []string
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s is claimed by %s; publish one of them on another port", e.Frontend, strings.Join(e.Services, " and "))
}
