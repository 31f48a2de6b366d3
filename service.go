package orchestrate

import (
	"time"

	"github.com/orchestrate-go/orchestrate/autoscale"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/volume"
)

// Service is a long-running workload: a number of identical tasks, kept
// running, reachable under one name.
//
// The zero value of a field is its default, as each comment says, and an empty
// list or map is the same as none; [Service.WithDefaults] fills the defaults
// in. Apply refuses a Service that breaks a rule here with a
// [*ValidationError] that names every mistake at once, as [Service.Validate]
// does. In JSON, [DecodeService] reads it.
type Service struct {
	// Namespace is "default" when empty. A DNS label (RFC 1123): lower-case
	// letters, digits and, not at the ends, hyphens; at most 63.
	Namespace string `json:"namespace,omitempty"`
	// Name is unique among the services of its namespace: a DNS label.
	Name string `json:"name"`
	// Labels are the application's own. Keys are 1 to 253 characters of
	// [A-Za-z0-9./_-], values at most 4096 bytes.
	Labels map[string]string `json:"labels,omitempty"`

	// Replicas is the number of tasks, at most [MaxReplicas]; 0 means 1.
	// [None] runs none.
	Replicas int `json:"replicas,omitempty"`

	// Mode is [Replicated] when empty; [Global] runs one task on every node.
	Mode Mode `json:"mode,omitempty"`
	// Stateful, when set, gives each task a name and volumes of its own that
	// outlive it, and runs none twice.
	Stateful *Stateful `json:"stateful,omitempty"`

	// Template is what each task runs. A change of it is a new revision and
	// is rolled out as Update says; a change of anything else restarts
	// nothing.
	Template

	Update UpdatePolicy `json:"update,omitzero"`

	// Budget is how many tasks serve at least while they are moved: off a node
	// that is drained, or because of [Fleet.Evict].
	Budget Budget `json:"budget,omitzero"`

	// LossPolicy is what becomes of tasks whose node is silent.
	LossPolicy

	// Autoscale, when set, has the number of tasks follow their load. Replicas
	// is then the number to begin with, kept within Min and Max. See [WithMetric]
	// for metrics of the application's own. Not for [Global].
	Autoscale *autoscale.Policy `json:"autoscale,omitempty"`

	// Track follows the tags of the images; not at all when zero.
	Track TrackPolicy `json:"track,omitzero"`

	// DependsOn is what must be healthy or have completed before a revision is
	// first started; see [Dependency]. At most 64.
	DependsOn []Dependency `json:"dependsOn,omitempty"`
}

// None is a number of Replicas that asks for no task at all.
const None = -1

// Template describes a task: containers that share a network namespace and
// volumes.
type Template struct {
	// Init containers run one after another, each to its end with exit code
	// 0, before anything else of the task starts.
	Init []Container `json:"init,omitempty"`
	// Sidecars start after Init in the given order, each once the one
	// before is ready, and stop after Containers, in reverse order.
	Sidecars []Container `json:"sidecars,omitempty"`
	// Containers are the main ones: at least one. They start together. The
	// three lists hold at most [MaxContainers].
	Containers []Container `json:"containers"`

	// Networks the task attaches to; the network "default" when empty. The
	// first is its way out.
	Networks []string `json:"networks,omitempty"`
	// HostNetwork runs the task in the node's own network namespace, under
	// the node's name. It excludes Networks and Hostname; Ports are the
	// node's own, without a virtual address and without publishing.
	HostNetwork bool `json:"hostNetwork,omitempty"`
	// Ports are served under the service's virtual address on each of its
	// networks, and outside where they are published.
	Ports []Port `json:"ports,omitempty"`
	// Volumes declares the named volumes that mounts refer to, each once and
	// none that is not mounted. One that is mounted but not declared is made
	// with no limits on first use. Names are unique in the namespace and
	// have at most 64 characters, the rest as [volume.Volume] says. An
	// exclusive volume allows one replica.
	Volumes []volume.Volume `json:"volumes,omitempty"`
	// SlotVolumes are the volumes that each slot of a [Stateful] service has of
	// its own; mounts refer to them by name. Each is exclusive. A larger Size
	// takes effect with the slot's next task where the driver can expand;
	// nothing else of a volume that exists can be changed.
	SlotVolumes []volume.Volume `json:"slotVolumes,omitempty"`

	// Hostname inside the containers: a host name of at most 64 characters;
	// the task's ID when empty.
	Hostname string `json:"hostname,omitempty"`
	// DNS changes name resolution in all containers.
	DNS DNS `json:"dns,omitzero"`

	Restart   RestartPolicy `json:"restart,omitzero"`
	Placement Placement     `json:"placement,omitzero"`

	// StopGrace is the time between the stop signal and SIGKILL; 10 s when
	// 0. Like every duration of a spec but those of health checks it is at
	// least 1 ms and at most 7 days.
	StopGrace time.Duration `json:"stopGrace,omitempty"`
	// DrainDelay is the time between the withdrawal of the task's endpoints
	// and the stop signal, in which requests under way can end: when 0, 1 s
	// with Ports and none without. Negative means none.
	DrainDelay time.Duration `json:"drainDelay,omitempty"`
}

// Container is one container of a task.
type Container struct {
	// Name is unique in its task: a DNS label of at most 32 characters;
	// when empty "main" for the first of Containers, else "initN",
	// "sidecarN" or "mainN", counted from 0.
	Name string `json:"name,omitempty"`
	// Image is a reference, [domain[:port]/]path[:tag][@digest], such as
	// "web:1" or "host/repo@sha256:…".
	Image string `json:"image"`
	// Pull says when the registry is asked; see [runtime.PullPolicy], and
	// [WithResolver] for what of it is asked when.
	Pull runtime.PullPolicy `json:"pull,omitempty"`

	// Entrypoint replaces the image's entrypoint, and then its command is
	// ignored too. Command replaces the image's command. No shell reads
	// them and no variable in them is expanded.
	Entrypoint []string `json:"entrypoint,omitempty"`
	Command    []string `json:"command,omitempty"`
	// Env is added to the image's environment and wins over it.
	Env map[string]string `json:"env,omitempty"`
	// Dir is the working directory: absolute; the image's when empty.
	Dir string `json:"dir,omitempty"`
	// User is user[:group], names of the image or numbers; the image's when
	// empty.
	User string `json:"user,omitempty"`

	// Resources are requests and limits of CPU, memory and processes.
	Resources Resources `json:"resources,omitzero"`
	// Security is capabilities, seccomp, privileges and a read-only root;
	// the zero value is secure.
	Security runtime.Security `json:"security,omitzero"`
	// Ulimits are limits of getrlimit(2), each name once; unlimited is
	// [math.MaxUint64], which nofile cannot be.
	Ulimits []runtime.Ulimit `json:"ulimits,omitempty"`
	// Sysctls are kernel parameters that a container has of its own, by
	// their names with dots: net.*, fs.mqueue.*, kernel.msg*, kernel.sem and
	// kernel.shm*. Those of net.* are the whole task's, so its containers
	// must agree on them, and HostNetwork excludes them.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// Devices of the node, by absolute paths; the target is the source, and
	// the permissions "rwm", when empty.
	Devices []runtime.Device `json:"devices,omitempty"`
	// Mounts, each at a target of its own. They are made in this order, so
	// one below another comes after it.
	Mounts []Mount `json:"mounts,omitempty"`
	// Labels of the container in its runtime, as [Service.Labels], but key
	// and value have at most 4096 bytes together, and keys that begin with
	// "orchestrate." are the agent's.
	Labels map[string]string `json:"labels,omitempty"`
	// Terminal gives the process a pseudo-terminal.
	Terminal bool `json:"terminal,omitempty"`

	// Init containers have no checks: their exit code counts.

	// Startup gates the other checks: until it succeeded they do not run,
	// and when it fails the container is restarted.
	Startup *health.Check `json:"startup,omitempty"`
	// Readiness decides whether the task takes traffic. Without it, a task
	// is ready once its containers run and their Startup succeeded.
	Readiness *health.Check `json:"readiness,omitempty"`
	// Liveness restarts the container when it fails.
	Liveness *health.Check `json:"liveness,omitempty"`

	// StopSignal is a name such as "SIGTERM" or a number, as [ParseSignal]
	// reads it; when empty the image's, or SIGTERM.
	StopSignal string `json:"stopSignal,omitempty"`

	// Logs bounds what is kept of the output on disk; 16 MiB a file and 2
	// rotated files when 0.
	Logs runtime.LogLimits `json:"logs,omitzero"`
}

// Units for [Resources].
const (
	Core = 1000 // CPU: thousandths of a core

	KiB = int64(1) << 10
	MiB = int64(1) << 20
	GiB = int64(1) << 30
)

// Resources are what a container asks for and what it may use at most.
type Resources struct {
	// CPU and Memory are requests: what the scheduler sets aside. CPU is in
	// thousandths of a core, Memory in bytes. When 0 they equal their limit.
	CPU    int64 `json:"cpu,omitempty"`
	Memory int64 `json:"memory,omitempty"`
	// CPULimit and MemoryLimit are enforced by the kernel; 0 is no limit.
	// The least are 10, a hundredth of a core, and 6 MiB.
	CPULimit    int64 `json:"cpuLimit,omitempty"`
	MemoryLimit int64 `json:"memoryLimit,omitempty"`
	// Pids limits processes and threads; 0 means 4096, negative none.
	Pids int64 `json:"pids,omitempty"`
	// CPUSet pins to cores, in the list format of cpuset(7), such as
	// "0-3,6".
	CPUSet string `json:"cpuSet,omitempty"`
}

// Protocol of a [Port].
type Protocol string

// The protocols.
const (
	TCP Protocol = "tcp" // also when empty
	UDP Protocol = "udp"
)

// Port is a port that a task listens on.
type Port struct {
	// Name is optional and unique in the task: a DNS label.
	Name string `json:"name,omitempty"`
	// Port that the task listens on: 1 to 65535.
	Port uint16 `json:"port"`
	// Virtual is the port at the virtual address; Port when 0. It is unique
	// in the task with its protocol.
	Virtual uint16 `json:"virtual,omitempty"`
	// Published is the port on every address of the node; not published
	// when 0. Two services cannot publish one port and protocol.
	Published uint16 `json:"published,omitempty"`
	// HostIP narrows Published to one address of the node.
	HostIP string `json:"hostIP,omitempty"`
	// Ingress says which nodes serve Published; [IngressAll] when empty.
	Ingress Ingress `json:"ingress,omitempty"`
	// Protocol is [TCP] when empty.
	Protocol Protocol `json:"protocol,omitempty"`
}

// Ingress says which nodes serve a published port.
type Ingress string

// The ways in.
const (
	// IngressAll, also when empty, serves the port on every node, and leads to
	// any of the service's tasks. One on another node sees the address of the
	// node that was asked.
	IngressAll Ingress = "all"
	// IngressLocal serves the port where a task runs, and leads to the tasks
	// there. They see their clients' own addresses; other nodes refuse.
	IngressLocal Ingress = "local"
)

// Mount makes storage visible in a container. Exactly one of Volume, Bind and
// Tmpfs is set.
type Mount struct {
	// Target is an absolute path in the container: not the root, nothing
	// under /proc, and neither /etc/hosts nor /etc/resolv.conf, which DNS
	// decides.
	Target string `json:"target"`
	// Volume is the name of a volume of the service's namespace.
	Volume string `json:"volume,omitempty"`
	// Bind is an absolute path on the node, inside a root that the node's
	// volume driver allows.
	Bind string `json:"bind,omitempty"`
	// Tmpfs is memory that vanishes with the container. It counts towards
	// the memory limit.
	Tmpfs *Tmpfs `json:"tmpfs,omitempty"`
	// ReadOnly refuses writing through this mount.
	ReadOnly bool `json:"readOnly,omitempty"`
}

// Tmpfs bounds a memory filesystem.
type Tmpfs struct {
	Size int64  `json:"size,omitempty"` // bytes; 0: the kernel's default, half of the node's memory
	Mode uint32 `json:"mode,omitempty"` // permission bits of its root, in JSON a decimal number; 0 means 01777
}

// DNS changes name resolution inside a task. By default names are resolved by
// the networks' own server, which forwards what it does not know.
type DNS struct {
	Servers []string            `json:"servers,omitempty"` // addresses asked instead; at most 3
	Search  []string            `json:"search,omitempty"`  // domains appended to short names
	Options []string            `json:"options,omitempty"` // of resolv.conf(5), such as "ndots:2"
	Hosts   map[string][]string `json:"hosts,omitempty"`   // name to addresses, for /etc/hosts
}

// RestartCondition says after which ends a container is restarted.
type RestartCondition string

// The restart conditions.
const (
	RestartAlways    RestartCondition = "always" // also when empty
	RestartOnFailure RestartCondition = "on-failure"
	RestartNever     RestartCondition = "never"
)

// RestartPolicy is how an ended container is restarted in place: the first
// time at once, then after Backoff, doubled each time up to MaxBackoff. A
// container that ran for Reset starts afresh. After Attempts restarts the
// task has failed, and the planner replaces it.
type RestartPolicy struct {
	Condition  RestartCondition `json:"condition,omitempty"`
	Attempts   int              `json:"attempts,omitempty"`   // 10 when 0; negative: without end
	Backoff    time.Duration    `json:"backoff,omitempty"`    // when 0: 100 ms, or MaxBackoff if that is shorter
	MaxBackoff time.Duration    `json:"maxBackoff,omitempty"` // when 0: 5 min, or Backoff if that is longer
	Reset      time.Duration    `json:"reset,omitempty"`      // 10 min when 0
}

// Placement says where tasks may run and where best.
type Placement struct {
	// Strategy is the name of a registered one; "spread" when empty.
	Strategy string `json:"strategy,omitempty"`
	// Constraints must all hold, such as "node.labels.zone == eu"; see
	// [scheduler.ParseConstraint].
	Constraints []string `json:"constraints,omitempty"`
	// MaxPerNode bounds the service's tasks on one node; 0 is no bound.
	MaxPerNode int `json:"maxPerNode,omitempty"`
	// Priority: higher goes first; from -1e9 to 1e9.
	Priority int `json:"priority,omitempty"`
}

// Network is a network that tasks attach to.
type Network struct {
	// Name is unique in the fleet: a DNS label of at most 32 characters.
	Name string `json:"name"`
	// Subnets: at most one IPv4 and one IPv6 prefix, of at most 30 and 126
	// bits. When empty, free ones are chosen.
	Subnets []string `json:"subnets,omitempty"`
	// MTU from 576, or with IPv6 1280, to 65535; the driver's default when
	// 0.
	MTU int `json:"mtu,omitempty"`
	// Internal networks have no way to the world outside.
	Internal bool `json:"internal,omitempty"`
	// Options are the driver's own.
	Options map[string]string `json:"options,omitempty"`
}
