package control_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// TestMain draws the random cases of the short mode from one seed, so that the
// same tree has the same verdict each time; the long mode, and whoever gives a
// seed, draws others.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("rapid.seed"); f.Value.String() == f.DefValue && os.Getenv("ORCHESTRATE_LONG") == "" {
		if err := f.Value.Set("1"); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// spec is the spec of a service in these tests.
type spec struct {
	Replicas int             `json:"replicas"`
	Image    string          `json:"image"` // what its tasks do: see agent; "v1/200" takes 200 of memory, and can be changed in place to "v1/300"
	Memory   int64           `json:"memory"`
	Priority int32           `json:"priority"`
	Networks []string        `json:"networks,omitempty"`
	Ports    []record.Port   `json:"ports,omitempty"`
	Update   control.Update  `json:"update"`
	Labels   string          `json:"labels"` // of no consequence
	Budget   *control.Budget `json:"budget,omitempty"`
	Scaled   *control.Bounds `json:"scaled,omitempty"`

	Global     bool              `json:"global,omitempty"`
	Constraint string            `json:"constraint,omitempty"`
	Stateful   *control.Stateful `json:"stateful,omitempty"`

	DependsOn []control.Dependency `json:"dependsOn,omitempty"`

	LostAfter    time.Duration `json:"lostAfter,omitempty"`
	KeepOriginal bool          `json:"keepOriginal,omitempty"`
}

func decode(namespace, name string, rec record.Service, at *record.Revision) (control.Workload, error) {
	var s spec
	if err := json.Unmarshal(rec.Spec, &s); err != nil {
		return control.Workload{}, err
	}
	if at != nil {
		rec.Revision = at.Revision
		if err := json.Unmarshal(at.Template, &s.Image); err != nil {
			return control.Workload{}, err
		}
	}
	template, err := json.Marshal(s.Image)
	if err != nil {
		return control.Workload{}, err
	}
	w := control.Workload{
		Namespace: namespace, Name: name, Replicas: s.Replicas, Hash: s.Image, Revision: rec.Revision,
		Template: template, Request: scheduler.Request{Resources: scheduler.Resources{Memory: s.Memory}, Priority: s.Priority},
		Networks: s.Networks, Ports: s.Ports, Update: s.Update, Global: s.Global, Stateful: s.Stateful, Budget: s.Budget, Scaled: s.Scaled,
		DependsOn: s.DependsOn, LostAfter: s.LostAfter, KeepOriginal: s.KeepOriginal,
	}
	if shape, memory, ok := strings.Cut(s.Image, "/"); ok {
		if w.Request.Resources.Memory, err = strconv.ParseInt(memory, 10, 64); err != nil {
			return control.Workload{}, err
		}
		w.Shape = shape
	}
	w.Images, w.Request.Images = []record.NextImage{{Ref: s.Image}}, []string{s.Image}
	if s.Stateful != nil {
		w.Update.StopFirst = true
	}
	if s.Constraint != "" {
		c, err := scheduler.ParseConstraint(s.Constraint)
		if err != nil {
			return control.Workload{}, err
		}
		w.Request.Constraints = []scheduler.Constraint{c}
	}
	return w, nil
}

func serviceRecord(t testing.TB, s spec, revision int64, created time.Time, history ...record.Revision) []byte {
	t.Helper()
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return marshal(t, record.Service{Spec: data, Revision: revision, Hash: s.Image, Created: created, History: history})
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func newScheduler(t testing.TB) *scheduler.Scheduler {
	t.Helper()
	s, err := scheduler.New(scheduler.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// agent is a node that pretends to run tasks. A task whose image begins with
// "bad" fails after a second; one that begins with "slow" never gets ready;
// "flaky" ones get ready, and fail five seconds later; all others are ready
// after a second. Stopping takes a second.
type agent struct {
	store store.Store
	id    string

	mu   sync.Mutex
	runs map[string]context.CancelFunc // by task
	wg   sync.WaitGroup
}

// run registers the node and obeys until ctx ends; then the node is dead.
func (a *agent) run(ctx context.Context) error {
	a.runs = map[string]context.CancelFunc{}
	lease, err := a.store.Lease(ctx, 5*time.Second)
	if err != nil {
		return err
	}
	node := record.Node{Node: scheduler.Node{ID: a.id, Ready: true, Capacity: scheduler.Resources{Memory: 1000}}}
	data, err := json.Marshal(node)
	if err != nil {
		return err
	}
	_, err = a.store.Commit(ctx, store.Txn{Writes: []store.Write{
		store.Put(record.Key(record.Nodes, a.id), data),
		store.PutLeased(record.Key(record.Alive, a.id), nil, lease.ID()),
	}})
	if err != nil {
		return err
	}
	defer a.wg.Wait()
	a.wg.Go(func() { _ = store.Keep(ctx, lease) })
	err = store.Follow(ctx, a.store, record.Key(record.Tasks, a.id, ""), &follower{a, ctx})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

type follower struct {
	a   *agent
	ctx context.Context
}

func (f *follower) Reset(s store.Snapshot) error {
	for _, i := range s.Items {
		if err := f.a.obey(f.ctx, i); err != nil {
			return err
		}
	}
	return nil
}

func (f *follower) Apply(b store.Batch) error {
	for _, c := range b.Changes {
		if c.Deleted {
			id := c.Item.Key[strings.LastIndex(c.Item.Key, "/")+1:]
			if _, err := f.a.store.Commit(f.ctx, store.Txn{Writes: []store.Write{store.Delete(record.Key(record.Statuses, f.a.id, id))}}); err != nil {
				return err
			}
			continue
		}
		if err := f.a.obey(f.ctx, c.Item); err != nil {
			return err
		}
	}
	return nil
}

func (a *agent) obey(ctx context.Context, item store.Item) error {
	var t record.Task
	if err := json.Unmarshal(item.Value, &t); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	stop, runs := a.runs[t.ID]
	if !runs {
		life, cancel := context.WithCancel(ctx)
		a.runs[t.ID] = cancel
		stop = cancel
		a.wg.Go(func() { a.live(ctx, life, t) })
	}
	if t.Stop != nil {
		stop()
	}
	return nil
}

// live is the life of a task: ctx is the node's, life ends when it is to stop.
func (a *agent) live(ctx, life context.Context, t record.Task) {
	var image string
	if err := json.Unmarshal(t.Template, &image); err != nil {
		panic(err)
	}
	status := record.Status{Task: t.ID, Namespace: t.Namespace, Service: t.Service, Node: a.id}
	say := func(s record.State) {
		status.State, status.Since = s, time.Now().UTC()
		if s == record.Ready {
			status.Ready = status.Since
		}
		if s == record.Failed {
			status.Failure = &record.Failure{Kind: record.FailedExit, Message: "it is " + image, At: status.Since}
		}
		data, err := json.Marshal(status)
		if err != nil {
			panic(err)
		}
		// After its end the node says no more.
		_, _ = a.store.Commit(ctx, store.Txn{Writes: []store.Write{store.Put(record.Key(record.Statuses, a.id, t.ID), data)}})
	}
	say(record.Starting)
	for {
		switch {
		case !pause(life, time.Second):
			say(record.Stopping)
			if pause(ctx, time.Second) {
				say(record.Stopped)
			}
			return
		case status.State == record.Starting && strings.HasPrefix(image, "bad"):
			say(record.Failed)
			return
		case status.State == record.Starting && !strings.HasPrefix(image, "slow"):
			say(record.Ready)
		case status.State == record.Ready && strings.HasPrefix(image, "flaky") && time.Since(status.Since) >= 5*time.Second:
			say(record.Failed)
			return
		}
	}
}

// pause waits for d, and reports whether ctx lasted that long.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return ctx.Err() == nil
	}
}

// fleet is a control loop with nodes, in virtual time.
type fleet struct {
	t      *testing.T
	store  store.Store
	ctx    context.Context
	mu     sync.Mutex
	events []control.Event
	nodes  map[string]context.CancelFunc
	wg     sync.WaitGroup
	revs   map[string]int64
	images map[string]string
}

// startFleet runs a loop and nodes n1 to nN until the test ends.
func startFleet(t *testing.T, s store.Store, nodes int) *fleet {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &fleet{t: t, store: s, ctx: ctx, nodes: map[string]context.CancelFunc{}, revs: map[string]int64{}, images: map[string]string{}}
	t.Cleanup(func() {
		cancel()
		f.wg.Wait()
		if err := s.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	for i := range nodes {
		f.node(fmt.Sprintf("n%d", i+1))
	}
	synctest.Wait() // the nodes are there
	f.loop(ctx, "leader")
	synctest.Wait() // and it leads
	return f
}

func (f *fleet) loop(ctx context.Context, id string) {
	f.t.Helper()
	f.loopOn(ctx, f.store, id)
}

func (f *fleet) loopOn(ctx context.Context, s store.Store, id string) {
	f.t.Helper()
	loop, err := control.New(control.Options{
		Store: s, ID: id, Scheduler: newScheduler(f.t), Decode: decode,
		Observe: func(e control.Event) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.events = append(f.events, e)
		},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.wg.Go(func() {
		if err := loop.Run(ctx); err != nil {
			f.t.Errorf("loop %s ended with %v, want nil: its context ended", id, err)
		}
	})
}

// node starts a node; f.nodes[id] kills it.
func (f *fleet) node(id string) {
	ctx, cancel := context.WithCancel(f.ctx)
	f.nodes[id] = cancel
	f.wg.Go(func() {
		if err := (&agent{store: f.store, id: id}).run(ctx); err != nil {
			f.t.Errorf("agent %s: %v", id, err)
		}
	})
}

// apply writes a spec and returns its store revision.
func (f *fleet) apply(name string, s spec) int64 {
	f.t.Helper()
	if f.images[name] != s.Image {
		f.images[name] = s.Image
		f.revs[name]++
	}
	return f.commit(store.Put(record.Key(record.Services, "default", name), serviceRecord(f.t, s, f.revs[name], time.Now())))
}

func (f *fleet) commit(writes ...store.Write) int64 {
	f.t.Helper()
	rev, err := f.store.Commit(f.ctx, store.Txn{Writes: writes})
	if err != nil {
		f.t.Fatal(err)
	}
	return rev
}

// wait returns the rollout of a spec once it has ended.
func (f *fleet) wait(name string, spec int64) record.Rollout {
	f.t.Helper()
	for deadline := time.Now().Add(2 * time.Hour); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if r, ok := f.rollout(name); ok && r.Spec == spec && r.State != record.Progressing {
			return r
		}
	}
	r, _ := f.rollout(name)
	f.t.Fatalf("the rollout of %s has not ended in two hours: %+v", name, r)
	return record.Rollout{}
}

func (f *fleet) rollout(name string) (record.Rollout, bool) {
	f.t.Helper()
	item, found, err := store.Get(f.ctx, f.store, record.Key(record.Rollouts, "default", name))
	if err != nil {
		f.t.Fatal(err)
	}
	var r record.Rollout
	if found {
		unmarshal(f.t, item.Value, &r)
	}
	return r, found
}

func unmarshal(t testing.TB, data []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
}

// tasks lists the tasks of a service that are not over, by their names.
func (f *fleet) tasks(name string) []record.Task {
	f.t.Helper()
	snapshot, err := f.store.List(f.ctx, record.Tasks)
	if err != nil {
		f.t.Fatal(err)
	}
	var out []record.Task
	for _, i := range snapshot.Items {
		var t record.Task
		unmarshal(f.t, i.Value, &t)
		if t.Service == name {
			out = append(out, t)
		}
	}
	return out
}
