package orchestrate

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// ServiceStatus is a service and how it is.
type ServiceStatus struct {
	Service
	Revision int64     // counts its templates from 1
	Created  time.Time // when it was first applied
	Updated  time.Time
	// Digests are what its images mean that have no digest of their own, by
	// reference; see [WithResolver].
	Digests map[string]string
	// Addresses are its virtual addresses by network.
	Addresses map[string][]netip.Addr
	// Rollout is how far the last Apply has come; nil before the leader has
	// seen it.
	Rollout *Rollout
	// Scale is what the autoscaler has decided; nil without one, and before it
	// has. Replicas are what the spec says nevertheless.
	Scale *Scale
}

// Rollout is the way of a service to its newest revision.
type Rollout struct {
	Outcome  Outcome // empty while it goes on
	Reason   Reason
	Message  string
	Failure  *Failure // the last failure of a new task
	Revision int64
	Strategy UpdateStrategy
	// Phase is what it is at, or was at when it failed; empty once it has
	// completed. Since is when that began.
	Phase Phase
	Since time.Time
	// Until is when a bake ends if all stays well; zero in other phases, and
	// while something of what bakes is not ready.
	Until    time.Time
	Started  time.Time
	Ended    time.Time
	Desired  int // tasks wanted
	Updated  int // tasks of the newest revision
	Ready    int // tasks that take traffic, of any revision
	Failures int // of new tasks, in a row
	// Rollback is what follows a failure; nil when nothing does.
	Rollback *Rollback
	// Unplaced says why tasks have no place, in the scheduler's words.
	Unplaced string
	// Waiting is what must hold before any task of the revision is started; see
	// [Dependency].
	Waiting []Unmet
}

// Task is one placed instance of a service.
type Task struct {
	ID        string
	Namespace string
	Service   string
	Slot      int // its place in the service, from 0
	Node      string
	Revision  int64
	Created   time.Time
	// State as the node sees it; empty until it has.
	State State
	// Attempt is how often its index had failed before, in a task of a job.
	Attempt int
	Since   time.Time // when State was entered
	// Stopping says why the task is to stop: empty unless it is.
	Stopping   string
	Restarts   int // of its containers
	Failure    *Failure
	Addresses  map[string][]netip.Addr // by network
	Containers []ContainerStatus
}

// State is where a task is in its life.
type State string

// The states. The last three are final.
const (
	Preparing State = "preparing" // image, network, volumes
	Starting  State = "starting"  // init containers, containers, startup checks
	Running   State = "running"   // runs, and is not ready
	Ready     State = "ready"     // takes traffic
	Stopping  State = "stopping"
	Stopped   State = "stopped"
	Completed State = "completed" // ended by itself, as it should
	Failed    State = "failed"    // gave up
)

// ContainerStatus is how one container of a task is.
type ContainerStatus struct {
	Name     string
	ID       string // in the node's runtime
	Running  bool
	Ready    bool
	PID      int
	Restarts int
	Started  time.Time
	ExitCode int // of the last run that ended
	OOM      bool
}

// FailureKind classifies the failures of tasks.
type FailureKind string

// The kinds of failure.
const (
	FailedImage     FailureKind = "image"     // cannot be pulled
	FailedNetwork   FailureKind = "network"   // cannot be attached
	FailedVolume    FailureKind = "volume"    // cannot be mounted
	FailedStart     FailureKind = "start"     // the process cannot be started
	FailedInit      FailureKind = "init"      // an init container failed
	FailedExit      FailureKind = "exit"      // a container ended
	FailedOOM       FailureKind = "oom"       // a container ran out of memory
	FailedStartup   FailureKind = "startup"   // the startup check failed
	FailedLiveness  FailureKind = "liveness"  // the liveness check failed
	FailedReadiness FailureKind = "readiness" // the readiness check fails
	FailedConflict  FailureKind = "conflict"  // a port is taken on the node
	FailedNode      FailureKind = "node"      // the node is gone
)

// Failure says what went wrong with a task.
type Failure struct {
	Kind      FailureKind
	Container string
	Message   string
	ExitCode  int
	At        time.Time
	Log       []string // the container's last lines
	// Permanent failures are not mended by trying again.
	Permanent bool
}

// Node is a machine of the fleet.
type Node struct {
	scheduler.Node
	Alive   bool // its agent has a lease
	Version string
	Started time.Time // of its agent
	Address string    // where it lets control planes reach its tasks, HOST:PORT; empty: nowhere
}

// Get returns a service. One that does not exist is a [*NameError].
func (f *Fleet) Get(ctx context.Context, name string) (ServiceStatus, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return ServiceStatus{}, err
	}
	defer done()
	return f.service(ctx, name)
}

func (f *Fleet) service(ctx context.Context, name string) (ServiceStatus, error) {
	ns, base := splitName(name)
	item, err := f.existing(ctx, "service", name, record.Key(record.Services, ns, base))
	if err != nil {
		return ServiceStatus{}, err
	}
	st, err := readService(item)
	if err != nil {
		return st, err
	}
	return st, f.complete(ctx, &st)
}

// List returns the services of a namespace, or of all with "", by namespace
// and name.
func (f *Fleet) List(ctx context.Context, namespace string) ([]ServiceStatus, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	services, err := f.services(ctx, namespace)
	if err != nil {
		return nil, err
	}
	for i := range services {
		if err := f.complete(ctx, &services[i]); err != nil {
			return nil, err
		}
	}
	return services, nil
}

// services reads specs alone.
func (f *Fleet) services(ctx context.Context, namespace string) ([]ServiceStatus, error) {
	return listOf(ctx, f, record.Services, namespace, readService)
}

// listOf reads the objects below a prefix, of a namespace or of all with "".
func listOf[T any](ctx context.Context, f *Fleet, prefix, namespace string, read func(store.Item) (T, error)) ([]T, error) {
	if namespace != "" {
		prefix = record.Key(prefix, namespace, "")
	}
	snapshot, err := f.store.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	var all []T
	for _, item := range snapshot.Items {
		object, err := read(item)
		if err != nil {
			return nil, err
		}
		all = append(all, object)
	}
	return all, nil
}

func readService(item store.Item) (ServiceStatus, error) {
	var rec record.Service
	var st ServiceStatus
	parts := record.Split(item.Key, record.Services, 2)
	if parts == nil {
		return st, fmt.Errorf("%s is not a service's key", item.Key)
	}
	if err := json.Unmarshal(item.Value, &rec); err != nil {
		return st, fmt.Errorf("read %s: %w", item.Key, err)
	}
	if err := json.Unmarshal(rec.Spec, &st.Service); err != nil {
		return st, fmt.Errorf("read %s: %w", item.Key, err)
	}
	st.Namespace, st.Name = parts[0], parts[1]
	st.Revision, st.Created, st.Updated = rec.Revision, rec.Created, rec.Updated
	st.Digests = rec.Digests
	return st, nil
}

// complete adds what the leader says of a service.
func (f *Fleet) complete(ctx context.Context, st *ServiceStatus) error {
	item, found, err := store.Get(ctx, f.store, record.Key(record.Rollouts, st.Namespace, st.Name))
	if err != nil {
		return err
	}
	if found {
		var rec record.Rollout
		if err := json.Unmarshal(item.Value, &rec); err != nil {
			return fmt.Errorf("read %s: %w", item.Key, err)
		}
		st.Rollout = readRollout(rec)
	}
	if err := f.readScale(ctx, st); err != nil {
		return err
	}
	item, found, err = store.Get(ctx, f.store, record.Key(record.Frontends, st.Namespace, st.Name))
	if err != nil || !found {
		return err
	}
	var fe record.Frontend
	if err := json.Unmarshal(item.Value, &fe); err != nil {
		return fmt.Errorf("read %s: %w", item.Key, err)
	}
	st.Addresses = fe.Addresses
	return nil
}

func readRollout(rec record.Rollout) *Rollout {
	r := &Rollout{
		Reason: Reason(rec.Reason), Message: rec.Message, Failure: readFailure(rec.Failure), Revision: rec.Revision,
		Started: rec.Started, Ended: rec.Ended, Desired: rec.Desired, Updated: rec.Updated,
		Ready: rec.Ready, Failures: rec.Failures, Unplaced: rec.Unplaced, Waiting: readUnmet(rec.Waiting),
		Strategy: UpdateStrategy(cmp.Or(string(rec.Strategy), string(RollingUpdate))), Phase: readPhase(&rec), Since: rec.Since, Until: rec.Until,
	}
	r.Outcome, r.Rollback = readOutcome(rec.State), readRollback(rec.Rollback)
	return r
}

// readPhase is the phase of a rollout; those of an earlier version's record are
// all rolling.
func readPhase(rec *record.Rollout) Phase {
	if rec.Phase == "" && rec.State == record.Progressing {
		return PhaseRolling
	}
	return Phase(rec.Phase)
}

func readOutcome(s record.RolloutState) Outcome {
	switch s {
	case record.RolloutCompleted:
		return RolloutCompleted
	case record.RolloutFailed:
		return RolloutFailed
	}
	return ""
}

func readRollback(rec *record.Attempt) *Rollback {
	if rec == nil {
		return nil
	}
	return &Rollback{
		Revision: rec.Revision, Outcome: readOutcome(rec.State), Reason: Reason(rec.Reason), Message: rec.Message,
		Failure: readFailure(rec.Failure), Started: rec.Started, Ended: rec.Ended,
	}
}

func readFailure(f *record.Failure) *Failure {
	if f == nil {
		return nil
	}
	return &Failure{
		Kind: FailureKind(f.Kind), Container: f.Container, Message: f.Message, ExitCode: f.ExitCode,
		At: f.At, Log: f.Log, Permanent: f.Permanent,
	}
}

// Tasks returns the tasks of a service by slot, those that are stopping
// included; of all services with "".
func (f *Fleet) Tasks(ctx context.Context, service string) ([]Task, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return f.tasks(ctx, service)
}

func (f *Fleet) tasks(ctx context.Context, service string) ([]Task, error) {
	ns, base := splitName(service)
	snapshot, err := f.store.List(ctx, record.Tasks)
	if err != nil {
		return nil, err
	}
	statuses, err := f.store.List(ctx, record.Statuses)
	if err != nil {
		return nil, err
	}
	status := map[string][]byte{}
	for _, item := range statuses.Items {
		status[strings.TrimPrefix(item.Key, record.Statuses)] = item.Value
	}
	var tasks []Task
	for _, item := range snapshot.Items {
		var rec record.Task
		if err := json.Unmarshal(item.Value, &rec); err != nil {
			return nil, fmt.Errorf("read %s: %w", item.Key, err)
		}
		if service != "" && (rec.Namespace != ns || rec.Service != base) {
			continue
		}
		t, err := readTask(&rec, status[strings.TrimPrefix(item.Key, record.Tasks)])
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, t)
	}
	slices.SortFunc(tasks, func(a, b Task) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Service, b.Service),
			cmp.Compare(a.Slot, b.Slot), a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return tasks, nil
}

// readTask joins a task's record with its status, which may be missing.
func readTask(rec *record.Task, status []byte) (Task, error) {
	t := Task{
		ID: rec.ID, Namespace: rec.Namespace, Service: rec.Service, Slot: rec.Slot,
		Node: rec.Node, Revision: rec.Revision, Created: rec.Created,
	}
	if rec.Job != nil {
		t.Attempt = rec.Job.Attempt
	}
	if rec.Stop != nil {
		t.Stopping = rec.Stop.Reason
	}
	if status == nil {
		return t, nil
	}
	var st record.Status
	if err := json.Unmarshal(status, &st); err != nil {
		return t, fmt.Errorf("read the status of task %s: %w", rec.ID, err)
	}
	t.State, t.Since, t.Restarts = State(st.State), st.Since, st.Restarts
	t.Failure, t.Addresses = readFailure(st.Failure), st.Addresses
	for _, c := range st.Containers {
		t.Containers = append(t.Containers, ContainerStatus(c))
	}
	return t, nil
}

// Nodes returns the fleet's nodes by ID.
func (f *Fleet) Nodes(ctx context.Context) ([]Node, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	snapshot, err := f.store.List(ctx, record.Nodes)
	if err != nil {
		return nil, err
	}
	alive, err := f.store.List(ctx, record.Alive)
	if err != nil {
		return nil, err
	}
	lives := map[string]bool{}
	for _, item := range alive.Items {
		lives[strings.TrimPrefix(item.Key, record.Alive)] = true
	}
	var nodes []Node
	for _, item := range snapshot.Items {
		var rec record.Node
		if err := json.Unmarshal(item.Value, &rec); err != nil {
			return nil, fmt.Errorf("read %s: %w", item.Key, err)
		}
		nodes = append(nodes, Node{Node: rec.Node, Alive: lives[rec.ID], Version: rec.Version, Started: rec.Started, Address: rec.Address})
	}
	return nodes, nil
}

// Networks returns the fleet's networks by name, with the subnets chosen for
// them.
func (f *Fleet) Networks(ctx context.Context) ([]Network, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	b := &batch{}
	if err := f.readNetworks(ctx, b); err != nil {
		return nil, err
	}
	var networks []Network
	for _, rec := range b.networks {
		networks = append(networks, readNetwork(rec))
	}
	slices.SortFunc(networks, func(a, b Network) int { return strings.Compare(a.Name, b.Name) })
	return networks, nil
}

func readNetwork(rec record.Network) Network {
	n := Network{Name: rec.Name, MTU: rec.MTU, Internal: rec.Internal, Options: rec.Options}
	for _, p := range rec.Subnets {
		n.Subnets = append(n.Subnets, p.String())
	}
	return n
}
