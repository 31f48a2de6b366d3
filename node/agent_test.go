package node_test

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/network"
	netmem "github.com/orchestrate-go/orchestrate/network/memory"
	"github.com/orchestrate-go/orchestrate/node"
	"github.com/orchestrate-go/orchestrate/runtime"
	runmem "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
	storemem "github.com/orchestrate-go/orchestrate/store/memory"
	volmem "github.com/orchestrate-go/orchestrate/volume/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine is one node with everything in memory, that outlives its agents as
// a real one does.
type machine struct {
	t       *testing.T
	store   store.Store
	runtime *runmem.Runtime
	network *netmem.Node
	volumes *volmem.Driver
	fleet   *orchestrate.Fleet
	dir     string
	id      string // n1 when empty
	resolve node.Resolver

	// Replaced by some tests before they start an agent.
	agentStore store.Store
	balancer   network.Balancer
	checkers   map[string]health.Checker
	holdless   bool // its runtime ends nothing by itself
	running    *node.Agent
}

// newMachine makes a machine and a fleet that leads. It must be called inside
// a synctest bubble.
func newMachine(t *testing.T, opts ...orchestrate.Option) *machine {
	t.Helper()
	m := &machine{
		t: t, store: storemem.New(storemem.Options{}), runtime: runmem.New(runmem.Options{}),
		network: netmem.New(netmem.Options{}), volumes: new(volmem.Driver), dir: t.TempDir(),
	}
	m.agentStore, m.balancer = m.store, m.network
	var err error
	m.fleet, err = orchestrate.New(m.store, append([]orchestrate.Option{orchestrate.WithLogger(logger()),
		orchestrate.WithAccess(func(string) (orchestrate.Access, error) { return m.running, nil })}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- m.fleet.Run(context.Background()) }()
	t.Cleanup(func() {
		if err := m.fleet.Close(); err != nil {
			t.Errorf("close the fleet: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("the fleet's Run returned %v, want nil after Close", err)
		}
		m.runtime.Close()
		m.store.Close()
	})
	return m
}

func logger() *slog.Logger {
	if os.Getenv("ORCHESTRATE_DEBUG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// agent runs an agent until the returned function is called, which leaves
// everything as a killed agent would.
func (m *machine) agent() (kill func()) {
	m.t.Helper()
	a, err := node.New(m.agentStore, m.options())
	if err != nil {
		m.t.Fatal(err)
	}
	m.running = a
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	killed := false
	kill = func() {
		if killed {
			return
		}
		killed = true
		cancel()
		if err := <-done; err != nil {
			m.t.Errorf("the agent's Run returned %v, want nil", err)
		}
	}
	m.t.Cleanup(kill)
	return kill
}

func (m *machine) options() node.Options {
	return node.Options{
		Node:    scheduler.Node{ID: cmp.Or(m.id, "n1"), Capacity: scheduler.Resources{CPU: 8000, Memory: 8 << 30}},
		Runtime: m.containersOf(), Resolver: m.resolve, Network: m.network, Namespaces: m.network, Balancer: m.balancer,
		Volumes: m.volumes, Dir: m.dir, Logger: logger(), Checkers: m.checkers,
	}
}

// containersOf is the runtime as the agent sees it.
func (m *machine) containersOf() runtime.Runtime {
	if m.holdless {
		return struct{ runtime.Runtime }{m.runtime}
	}
	return m.runtime
}

// wait fails the test unless the rollout ends as it should.
func (m *machine) wait(name string, want orchestrate.Outcome) orchestrate.Result {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	r, err := m.fleet.Wait(ctx, name)
	if err != nil {
		m.t.Fatalf("wait for %s: %v", name, err)
	}
	if r.Outcome != want {
		m.t.Fatalf("outcome of %s is %s, want %s: %v", name, r.Outcome, want, r)
	}
	return r
}

func (m *machine) apply(s orchestrate.Service) {
	m.t.Helper()
	if err := m.fleet.Apply(context.Background(), s); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) containers() []runtime.Container {
	m.t.Helper()
	cs, err := m.runtime.List(context.Background(), nil)
	if err != nil {
		m.t.Fatal(err)
	}
	return cs
}

// empty fails the test if anything of a task is left on the machine or in the
// store.
func (m *machine) empty() {
	m.t.Helper()
	synctest.Wait()
	ctx := context.Background()
	if cs := m.containers(); len(cs) > 0 {
		m.t.Errorf("%d containers are left, such as %s", len(cs), cs[0].ID)
	}
	if ns, err := m.network.List(ctx); err != nil || len(ns) > 0 {
		m.t.Errorf("namespaces left: %v, %v", ns, err)
	}
	if as, err := m.network.Attachments(ctx); err != nil || len(as) > 0 {
		m.t.Errorf("attachments left: %v, %v", as, err)
	}
	for _, prefix := range []string{"/tasks/", "/status/", "/endpoints/", "/rollouts/", "/frontends/", "/services/"} {
		s, err := m.store.List(ctx, prefix)
		if err != nil || len(s.Items) > 0 {
			m.t.Errorf("records left under %s: %v, %v", prefix, s.Items, err)
		}
	}
	if files, err := os.ReadDir(m.dir + "/tasks"); err != nil && !os.IsNotExist(err) || len(files) > 0 {
		m.t.Errorf("files left: %v, %v", files, err)
	}
}

func web(replicas int) orchestrate.Service {
	return orchestrate.Service{
		Name: "web", Replicas: replicas,
		Template: orchestrate.Template{
			Containers: []orchestrate.Container{{Image: "web:1"}},
			Ports:      []orchestrate.Port{{Port: 8080, Published: 80}},
		},
		Update: orchestrate.UpdatePolicy{Monitor: time.Second},
	}
}

func TestServiceLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.agent()
		ctx := context.Background()
		m.apply(web(3))
		r := m.wait("web", orchestrate.RolloutCompleted)
		if r.Ready != 3 || len(m.containers()) != 3 {
			t.Fatalf("ready %d with %d containers, want 3: %v", r.Ready, len(m.containers()), r)
		}
		published := 0
		for _, rule := range m.network.Rules() {
			if len(rule.Endpoints) != 3 && len(rule.Endpoints) != 6 {
				t.Errorf("rule %v has %d endpoints, want those of 3 tasks", rule, len(rule.Endpoints))
			}
			if rule.Port == 80 {
				published++
			}
		}
		if published != 1 {
			t.Errorf("%d rules for the published port, want 1", published)
		}

		// A killed container is replaced in place, and keeps its address.
		before, _ := m.fleet.Tasks(ctx, "web")
		m.runtime.Crash(m.containers()[0].ID, 137)
		synctest.Wait()
		after, _ := m.fleet.Tasks(ctx, "web")
		restarts := 0
		for i, task := range after {
			restarts += task.Restarts
			if task.ID != before[i].ID || task.Addresses["default"][0] != before[i].Addresses["default"][0] {
				t.Errorf("task %d is %s at %v, want %s at %v", i, task.ID, task.Addresses, before[i].ID, before[i].Addresses)
			}
		}
		if restarts != 1 {
			t.Errorf("%d restarts, want 1 after one crash", restarts)
		}

		if err := m.fleet.Scale(ctx, "web", 5); err != nil {
			t.Fatal(err)
		}
		m.wait("web", orchestrate.RolloutCompleted)
		if n := len(m.containers()); n != 5 {
			t.Fatalf("%d containers after scaling to 5", n)
		}

		s := web(5)
		s.Containers[0].Image = "web:2"
		m.apply(s)
		m.wait("web", orchestrate.RolloutCompleted)
		time.Sleep(time.Minute)
		for _, c := range m.containers() {
			if c.Image != "web:2" {
				t.Errorf("container %s runs %s after the rollout to web:2", c.ID, c.Image)
			}
		}

		if err := m.fleet.Remove(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		m.wait("web", orchestrate.RolloutRemoved)
		m.empty()
	})
}

func TestAgentAdopts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		kill := m.agent()
		m.apply(web(3))
		m.wait("web", orchestrate.RolloutCompleted)
		before := m.containers()
		programs := m.network.Programs()
		kill()
		time.Sleep(2 * time.Second)
		m.agent()
		time.Sleep(time.Minute)
		after := m.containers()
		if len(after) != len(before) {
			t.Fatalf("%d containers after the agent's restart, want %d", len(after), len(before))
		}
		for i, c := range after {
			if c.ID != before[i].ID || !c.Started.Equal(before[i].Started) {
				t.Errorf("container %s was started at %v, want %s of %v: it must be adopted", c.ID, c.Started, before[i].ID, before[i].Started)
			}
		}
		if m.network.Programs() == programs {
			t.Error("the new agent has not programmed the balancer")
		}
		for _, rule := range m.network.Rules() {
			if len(rule.Endpoints) == 0 {
				t.Errorf("rule %v lost its endpoints by the agent's restart", rule)
			}
		}
		tasks, err := m.fleet.Tasks(context.Background(), "web")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if task.Restarts != 0 || task.State != orchestrate.Ready {
				t.Errorf("task %s is %s after %d restarts, want ready after none", task.ID, task.State, task.Restarts)
			}
		}
	})
}

// An agent that was killed when it had started a container's successor has not
// removed the container: the next agent does, and need not wait for a next start.
func TestSuccessorStartedAndKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		kill := m.agent()
		m.apply(web(1))
		m.wait("web", orchestrate.RolloutCompleted)
		kill()
		ctx := context.Background()
		old := m.containers()[0]
		if err := m.runtime.Kill(ctx, old.ID, runtime.SIGKILL); err != nil {
			t.Fatal(err)
		}
		labels := maps.Clone(old.Labels)
		labels[runtime.LabelAttempt] = "1"
		successor := strings.TrimSuffix(old.ID, "0") + "1"
		if err := m.runtime.Start(ctx, runtime.Spec{ID: successor, Image: old.Image, Args: []string{"/web"}, Labels: labels}); err != nil {
			t.Fatal(err)
		}
		m.agent()
		time.Sleep(time.Second)
		if cs := m.containers(); len(cs) != 1 || cs[0].ID != successor {
			t.Errorf("containers: got %+v, want %s alone", cs, successor)
		}
	})
}

func TestRemovedWhileTheAgentWasAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		kill := m.agent()
		m.apply(web(3))
		m.wait("web", orchestrate.RolloutCompleted)
		kill()
		if err := m.fleet.Remove(context.Background(), "web"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		m.agent()
		m.wait("web", orchestrate.RolloutRemoved)
		m.empty()
	})
}

// A task that was told to stop while no agent was there has stopped in the end,
// and has not failed: nobody is to take its stop for a mistake of its revision.
func TestStoppedWhileTheAgentWasAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		kill := m.agent()
		m.apply(web(2))
		m.wait("web", orchestrate.RolloutCompleted)
		kill()
		ctx, cancel := context.WithCancel(context.Background())
		events, err := m.fleet.Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.fleet.Remove(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the leader has told the tasks
		m.agent()
		for gone := 0; gone < 2; {
			e := <-events
			if e.Kind == orchestrate.TaskGone {
				gone++
			}
			if e.State == orchestrate.Failed {
				t.Errorf("task %s has failed with %+v, want it stopped", e.Task, e.Failure)
			}
		}
		cancel()
		for range events {
		}
		m.empty()
	})
}

func TestMissingImageFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.agent()
		m.runtime.SetImage("web:1", runmem.Image{PullErr: runtime.ErrImageNotFound})
		m.apply(web(2))
		r := m.wait("web", orchestrate.RolloutFailed)
		if r.Reason != orchestrate.ReasonFailures || r.Failure == nil || r.Failure.Kind != orchestrate.FailedImage {
			t.Fatalf("result %v with failure %+v, want task-failures by a missing image", r, r.Failure)
		}
	})
}

func TestCrashLoopFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.agent()
		m.runtime.SetImage("web:1", runmem.Image{Program: runmem.Exits(time.Second, 3)})
		s := web(1)
		s.Update.Monitor = 20 * time.Second
		m.apply(s)
		r := m.wait("web", orchestrate.RolloutFailed)
		if r.Failure == nil || r.Failure.Kind != orchestrate.FailedExit || r.Failure.ExitCode != 3 {
			t.Fatalf("result %v with failure %+v, want exit code 3", r, r.Failure)
		}
	})
}
