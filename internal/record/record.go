// Package record holds what the store holds: one Go type and one key form for
// each kind of record, and who writes it.
//
// Every key has one writer (see ARCHITECTURE.md): the application writes
// specs, the leader writes what is derived from them, and a node's agent
// writes its own node's records. Values are JSON. A reader ignores fields it
// does not know, so that records of a newer version can be read.
package record

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// Key prefixes. All end in a slash.
const (
	Services  = "/services/"  // NS/NAME    application  Service
	Networks  = "/networks/"  // NAME       application  Network
	NodeSpecs = "/nodespecs/" // ID         application  NodeSpec
	Tasks     = "/tasks/"     // NODE/ID    leader       Task
	Rollouts  = "/rollouts/"  // NS/NAME    leader       Rollout
	Frontends = "/frontends/" // NS/NAME    leader       Frontend
	Statuses  = "/status/"    // NODE/ID    agent        Status
	Nodes     = "/nodes/"     // ID         agent        Node
	Alive     = "/alive/"     // ID         agent        (leased)
	Endpoints = "/endpoints/" // NODE/NET/NS/SERVICE/TASK  agent  Endpoint (leased)
	Leader    = "/leader"     //            elected      (leased)

	// Events of one commit. Whoever decides writes the key once, in the commit
	// of the decision; the leader deletes it when it is too old.
	Kept = "/events/" // leader/TERM-N, application/ID, node/ID/N  who decides  Events
	// Oblivion is how far that has gone.
	Oblivion = "/forgotten" //  leader  Forgotten
)

// Key joins a prefix and the parts of a name.
func Key(prefix string, parts ...string) string { return prefix + strings.Join(parts, "/") }

// Split returns the parts of a key after its prefix, or nil when there are
// not exactly n of them.
func Split(key, prefix string, n int) []string {
	rest, ok := strings.CutPrefix(key, prefix)
	if !ok {
		return nil
	}
	parts := strings.Split(rest, "/")
	if len(parts) != n {
		return nil
	}
	return parts
}

// Service is a service's spec as the application wrote it.
type Service struct {
	// Spec is the JSON of an orchestrate.Service with its defaults filled
	// in.
	Spec json.RawMessage `json:"spec"`
	// Revision counts the templates of this service from 1: it grows when
	// an Apply changes the template and stays when it changes anything
	// else.
	Revision int64 `json:"revision"`
	// Hash identifies the template.
	Hash string `json:"hash"`
	// Created is when the service was first applied. It tells a service
	// from one of the same name that was removed before.
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
	// Revised is when Revision was made.
	Revised time.Time `json:"revised,omitzero"`
	// Actor is who wrote the spec last.
	Actor string `json:"actor,omitempty"`
	// Digests are what the images of Spec mean that have no digest of their
	// own, by their references. Hash is of the template with them.
	Digests map[string]string `json:"digests,omitempty"`
	// Unresolved says, by reference, why an image has no digest yet. Nothing
	// of the revision is started before it has.
	Unresolved map[string]string `json:"unresolved,omitempty"`
	// Seen is what tags meant when they were last looked up. A tracked tag is
	// followed when it means something else; see Digests for what runs.
	Seen map[string]string `json:"seen,omitempty"`
	// Origin is what made Revision, if that was not an Apply: one of the
	// Origin constants.
	Origin string `json:"origin,omitempty"`
	// History holds the templates before this one, the oldest first: at most
	// MaxHistory, fewer where they are large.
	History []Revision `json:"history,omitempty"`
}

// MaxHistory is the greatest length of Service.History.
const MaxHistory = 10

// Revision is an earlier template of a service.
type Revision struct {
	Revision int64     `json:"revision"`
	Hash     string    `json:"hash"`
	Created  time.Time `json:"created"`
	// Template is the JSON of an orchestrate.Template with its defaults
	// filled in.
	Template json.RawMessage `json:"template"`
	// Digests and Origin are as in Service.
	Digests map[string]string `json:"digests,omitempty"`
	Origin  string            `json:"origin,omitempty"`
	// Failed says that its rollout had failed, for its own fault, when the
	// next came.
	Failed bool `json:"failed,omitempty"`
}

// What made a revision, other than an Apply.
const (
	OriginRollback = "rollback"       // Fleet.Rollback
	OriginMoved    = "image-moved"    // a tag that came to mean another image
	OriginReplaced = "image-replaced" // Fleet.ReplaceImage
)

// Network is a network with its ranges chosen.
type Network struct {
	Name     string            `json:"name"`
	Subnets  []netip.Prefix    `json:"subnets"`
	MTU      int               `json:"mtu,omitempty"`
	Internal bool              `json:"internal,omitempty"`
	Options  map[string]string `json:"options,omitempty"`
	// Virtual are the ranges that services' virtual addresses on this
	// network are taken from, none of them inside a subnet.
	Virtual []netip.Prefix `json:"virtual"`
}

// Driver is the network as its driver takes it.
func (n Network) Driver() network.Network {
	return network.Network{Name: n.Name, Subnets: n.Subnets, MTU: n.MTU, Internal: n.Internal, Options: n.Options, Virtual: n.Virtual}
}

// Node is what an agent says of its machine.
type Node struct {
	scheduler.Node
	Version string    `json:"version,omitempty"` // of the agent
	Started time.Time `json:"started"`           // of the agent
	Address string    `json:"address,omitempty"` // where it answers package remote, HOST:PORT

	// Fetches says that the agent heeds Task.Next.
	Fetches bool `json:"fetches,omitempty"`
	// Resizes says that it can change the resources of containers that run, as
	// Task.Resized asks for.
	Resizes bool `json:"resizes,omitempty"`

	// Registration is another each time the node's lease is a new one. Only a
	// registered agent starts tasks that are fenced.
	Registration string `json:"registration,omitempty"`
	// Fence is the node's promise: so long after its Alive record is gone, by
	// any clock within the bound that package node names, no task of it that is
	// fenced runs any more, whatever became of the agent. 0 promises nothing.
	Fence time.Duration `json:"fence,omitempty"`
}

// NodeSpec is what the application wants of a node.
type NodeSpec struct {
	Labels   map[string]string `json:"labels,omitempty"`
	Cordoned bool              `json:"cordoned,omitempty"` // takes no new task
	Drain    bool              `json:"drain,omitempty"`    // and gives up the ones it has
	Draining *Draining         `json:"draining,omitempty"` // how
	Taints   []scheduler.Taint `json:"taints,omitempty"`
	// Actor is who wrote it last.
	Actor string `json:"actor,omitempty"`
	// Fenced is the Registration of which someone vouches that nothing of it
	// runs any more. It says nothing of a later one, or of one that is alive.
	Fenced string `json:"fenced,omitempty"`
}

// Task is a placed instance of a service: everything its node needs to run
// it.
type Task struct {
	ID        string    `json:"id"` // unique for ever in the fleet; at most 50 characters of [a-z0-9.-]
	Namespace string    `json:"namespace"`
	Service   string    `json:"service"`
	Slot      int       `json:"slot"` // from 0
	Node      string    `json:"node"`
	Revision  int64     `json:"revision"` // of the service
	Hash      string    `json:"hash"`     // of the template
	Created   time.Time `json:"created"`
	// Template is the JSON of an orchestrate.Template with its defaults
	// filled in.
	Template json.RawMessage `json:"template"`
	// Request is what the scheduler set aside for it.
	Request scheduler.Request `json:"request"`
	// Frontend is whether the service has ports, and so a Frontend record
	// without which the task cannot be reached.
	Frontend bool `json:"frontend,omitempty"`

	// Epoch, above 0, is the fencing token of a slot that is run at most once.
	// It grows with each placement of the slot, and with removal and return of
	// the service too: it is the store revision that the placement was planned
	// at. See [Task.Fenced].
	Epoch int64 `json:"epoch,omitempty"`
	// Erase has the agent delete the volumes of the slot. Such a task is told
	// to stop from its first day.
	Erase bool `json:"erase,omitempty"`

	// Measure is how often the agent reports what the task uses; 0 is never.
	// It may change.
	Measure time.Duration `json:"measure,omitempty"`

	// Shape is the hash of the template without what can be changed while the
	// task runs: its containers' resources.
	Shape string `json:"shape,omitempty"`
	// Resized is when Revision, Hash, Template and Request were last changed to
	// those of another revision of the same Shape; zero if never.
	Resized time.Time `json:"resized,omitzero"`

	// Next, when set, is what the agent is to have ready of what comes after the
	// task. It may change.
	Next *Next `json:"next,omitempty"`

	// Job is set in tasks of a job, whose name is Service, whose run is Revision,
	// and of which the task is the index Slot.
	Job *JobTask `json:"job,omitempty"`
	// Stop, when set, tells the agent to stop the task. It is never unset.
	Stop *Stop `json:"stop,omitempty"`
}

// Name is the task's place in its service, such as "web.0".
func (t *Task) Name() string { return fmt.Sprintf("%s.%d", t.Service, t.Slot) }

// Stop says why a task is to be stopped.
type Stop struct {
	Reason string    `json:"reason"` // one of the Reason constants
	At     time.Time `json:"at"`
	// Fenced is the Registration of the task's node that, when this was
	// written, could run nothing that is fenced any more.
	Fenced string `json:"fenced,omitempty"`
}

// Reasons that the planner gives for what it does.
const (
	ReasonRemoved   = "removed"    // the service was removed
	ReasonScaled    = "scaled"     // the service has fewer replicas now
	ReasonUpdated   = "updated"    // a task of a newer revision takes its place
	ReasonRolled    = "rolledback" // its revision is being undone
	ReasonFailed    = "failed"     // it gave up and is replaced
	ReasonDrained   = "drained"    // its node is drained
	ReasonNodeLost  = "node-lost"  // its node is gone
	ReasonReturned  = "returned"   // the task that it replaced has come back with its node
	ReasonUnhealthy = "unhealthy"
	ReasonPreempted = "preempted" // a more important task needs its room
	ReasonWanted    = "wanted"    // of a start: the spec wants one more
)

// State is where a task is in its life, as its agent sees it.
type State string

// The states, in the order of a life. Stopped, Completed and Failed are final:
// the agent has released everything the task held.
const (
	Preparing State = "preparing" // image, network, volumes
	Starting  State = "starting"  // init containers, containers, startup checks
	Running   State = "running"   // runs, but is not ready
	Ready     State = "ready"     // runs, and its endpoints are published
	Stopping  State = "stopping"
	Stopped   State = "stopped"   // was told to stop, and did
	Completed State = "completed" // ended by itself with success and is not to be restarted
	Failed    State = "failed"    // gave up
)

// Final reports whether the agent is done with the task.
func (s State) Final() bool { return s == Stopped || s == Completed || s == Failed }

// Status is what an agent observes of a task.
type Status struct {
	Task      string    `json:"task"`
	Namespace string    `json:"namespace"`
	Service   string    `json:"service"`
	Node      string    `json:"node"`
	State     State     `json:"state"`
	Since     time.Time `json:"since"`             // when State was entered
	Ready     time.Time `json:"ready,omitzero"`    // when the task last became ready
	Failure   *Failure  `json:"failure,omitempty"` // the last one, also after a restart
	Restarts  int       `json:"restarts,omitempty"`
	// Addresses by network.
	Addresses  map[string][]netip.Addr `json:"addresses,omitempty"`
	Containers []ContainerStatus       `json:"containers,omitempty"`

	// InForce is the Hash of the record whose resources the containers have been
	// given while they ran, the last time that was asked for, and InForceSince
	// when that was done. Refused is the Hash of one whose resources could not
	// be set: those from before are in force.
	InForce      string    `json:"inForce,omitempty"`
	InForceSince time.Time `json:"inForceSince,omitzero"`
	Refused      string    `json:"refused,omitempty"`

	// Next is how far the agent is with the record's Next.
	Next *Fetched `json:"next,omitempty"`
}

// FailureKind classifies failures.
type FailureKind string

// The kinds of failure of a task on its node.
const (
	FailedImage     FailureKind = "image"     // cannot be pulled
	FailedNetwork   FailureKind = "network"   // cannot be attached
	FailedVolume    FailureKind = "volume"    // cannot be mounted
	FailedStart     FailureKind = "start"     // the process cannot be started
	FailedInit      FailureKind = "init"      // an init container failed
	FailedExit      FailureKind = "exit"      // a container ended
	FailedOOM       FailureKind = "oom"       // a container ran out of memory
	FailedStartup   FailureKind = "startup"   // the startup check
	FailedLiveness  FailureKind = "liveness"  // the liveness check
	FailedReadiness FailureKind = "readiness" // the readiness check
	FailedConflict  FailureKind = "conflict"  // a port or an exclusive thing is taken
	FailedNode      FailureKind = "node"      // the node is gone
)

// Failure says what went wrong with a task.
type Failure struct {
	Kind      FailureKind `json:"kind"`
	Container string      `json:"container,omitempty"`
	Message   string      `json:"message"`
	ExitCode  int         `json:"exitCode,omitempty"`
	At        time.Time   `json:"at"`
	Log       []string    `json:"log,omitempty"` // the container's last lines
	// Permanent failures are not mended by trying again with the same
	// revision: a missing image, a command that is not in it.
	Permanent bool `json:"permanent,omitempty"`
}

// ContainerStatus is what an agent observes of a container.
type ContainerStatus struct {
	Name     string    `json:"name"`
	ID       string    `json:"id"` // in the runtime
	Running  bool      `json:"running,omitempty"`
	Ready    bool      `json:"ready,omitempty"`
	PID      int       `json:"pid,omitempty"`
	Restarts int       `json:"restarts,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	ExitCode int       `json:"exitCode,omitempty"`
	OOM      bool      `json:"oom,omitempty"`
}

// Endpoint is a ready task on a network. The agent keeps it under a lease: it
// vanishes when the node dies.
type Endpoint struct {
	Task      string       `json:"task"`
	Node      string       `json:"node"`
	Slot      int          `json:"slot"`
	Revision  int64        `json:"revision"`
	Hash      string       `json:"hash,omitempty"` // of the template; see Frontend.Held
	Addresses []netip.Addr `json:"addresses"`
	// Name is that of a slot, which stands for the addresses as long as the task
	// has them; else empty. NotReady is an endpoint for the name alone.
	Name     string `json:"name,omitempty"`
	NotReady bool   `json:"notReady,omitempty"`
	// Leaving is an endpoint, not ready, whose task stops as soon as the others have
	// acknowledged that they send it nothing; see Ack.
	Leaving bool `json:"leaving,omitempty"`
}

// Frontend is where a service is reached.
type Frontend struct {
	// Addresses are its virtual addresses by network.
	Addresses map[string][]netip.Addr `json:"addresses"`
	Ports     []Port                  `json:"ports,omitempty"`
	// Measure is how often agents report how many connections there are; 0 is
	// never.
	Measure time.Duration `json:"measure,omitempty"`
	// Held are the hashes of templates whose tasks take no traffic for now,
	// ready or not: that is how traffic is switched from one set of tasks to
	// another in one write. Where no other task serves, it is not heeded. A
	// service without ports has a Frontend while there is something to hold.
	Held []string `json:"held,omitempty"`
}

// Port maps a frontend's port to the tasks'.
type Port struct {
	Name      string `json:"name,omitempty"`
	Protocol  string `json:"protocol"` // "tcp" or "udp"
	Port      uint16 `json:"port"`     // of the tasks
	Virtual   uint16 `json:"virtual"`
	Published uint16 `json:"published,omitempty"`
	HostIP    string `json:"hostIP,omitempty"`
	Local     bool   `json:"local,omitempty"` // Published leads to the tasks of the node that is asked alone
}

// RolloutState is where a rollout is.
type RolloutState string

// The rollout states.
const (
	Progressing      RolloutState = "progressing"
	RolloutCompleted RolloutState = "completed"
	RolloutFailed    RolloutState = "failed"
)

// Rollout is how far the leader has made a service's spec true. It lasts as
// long as the service has a spec or tasks.
type Rollout struct {
	// Spec is the store revision of the service's record that this is
	// about, and Created the record's: a rollout of another Spec has been
	// superseded.
	Spec    int64     `json:"spec"`
	Created time.Time `json:"created"`

	// Attempt is to make the spec true. Rollback, which is nil unless there is
	// one, is to make its last completed revision true again after that failed.
	Attempt
	Rollback *Attempt `json:"rollback,omitempty"`

	// Phase is what the rollout is at, or was at when it failed; empty once it
	// has completed. Since is when that began to be so, Until when a bake ends
	// if all stays well: zero while something is not.
	Phase Phase     `json:"phase,omitempty"`
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// Strategy is how it is made, "" for rolling.
	Strategy Strategy `json:"strategy,omitempty"`
	// Began is the Spec at which the revision began to be rolled out: a change
	// of anything but the template goes on with what it finds. Directives for
	// any Spec from there on are obeyed.
	Began int64 `json:"began,omitempty"`
	// Trial is as Slots is, for the canaries or the second set, which are
	// beside the others.
	Trial map[int]Slot `json:"trial,omitempty"`
	// Held are the templates that take no traffic; see Frontend.
	Held []string `json:"held,omitempty"`

	Desired int `json:"desired"` // tasks wanted
	Updated int `json:"updated"` // of the spec's revision
	Ready   int `json:"ready"`   // ready, of any revision
	// Unplaced is set while replicas have no place, in the words of the
	// scheduler.
	Unplaced string `json:"unplaced,omitempty"`

	// Waiting is what the revision depends on that does not hold. Cleared is the
	// last revision for which it all did.
	Waiting []Unmet `json:"waiting,omitempty"`
	Cleared Mark    `json:"cleared,omitzero"`

	// Slots holds the back-off of slots whose tasks failed.
	Slots map[int]Slot `json:"slots,omitempty"`

	// Erase is whether the volumes of the service's slots go with it.
	Erase bool `json:"erase,omitempty"`

	// Completed are the revisions whose rollout completed with tasks, in
	// that order: at most MaxHistory and the one that is served.
	Completed []Mark `json:"completed,omitempty"`
}

// Attempt is to make one revision of a service true.
type Attempt struct {
	Revision int64  `json:"revision"`
	Hash     string `json:"hash"`

	State      RolloutState `json:"state"`
	Reason     string       `json:"reason,omitempty"` // of a failure: one of the Why constants
	Message    string       `json:"message,omitempty"`
	Failure    *Failure     `json:"failure,omitempty"` // the task failure behind it
	Started    time.Time    `json:"started"`
	Progressed time.Time    `json:"progressed"` // when it last got nearer to its end; see Best
	Ended      time.Time    `json:"ended,omitzero"`
	Failures   int          `json:"failures"` // of its tasks, in a row

	// Best and Settled are how far it has got at most, which is what makes it
	// end: Progressed moves only when Best grows, Failures are forgiven only
	// when Settled does, and both are bounded. Settled counts new tasks that
	// have stayed ready; Best adds those that are ready and takes away those
	// that have to go.
	Best    int `json:"best"`
	Settled int `json:"settled"`
}

// Current is the attempt that is under way or was the last.
func (r *Rollout) Current() *Attempt {
	if r.Rollback != nil {
		return r.Rollback
	}
	return &r.Attempt
}

// Mark names a revision. Its template is in the service's history, unless that
// has become too long, or in its spec.
type Mark struct {
	Revision int64  `json:"revision"`
	Hash     string `json:"hash"`
}

// Slot remembers the failures of a slot's tasks, so that its next is started
// later and elsewhere.
type Slot struct {
	Failures int       `json:"failures"`
	Last     time.Time `json:"last"`
	Node     string    `json:"node"` // where it failed last
	Task     string    `json:"task"` // the ID of the last one, which is counted once
}

// Why a rollout failed.
const (
	WhyAborted  = "aborted"           // a call asked for it
	WhyBake     = "bake-failed"       // tasks that had the traffic stopped being ready, while the old ones could take it
	WhyDeadline = "progress-deadline" // no further task became ready in time
	WhyFailures = "task-failures"     // too many tasks failed
	WhyCapacity = "no-capacity"       // tasks could not be placed in time
	WhyNetwork  = "no-network"        // a network that it wants does not exist
	WhyAddress  = "no-address"        // a network has no virtual address left
	WhySpec     = "bad-spec"          // the record cannot be read or placed by any rule
	WhyImage    = "no-image"          // what a tag means could not be found out in time
)
