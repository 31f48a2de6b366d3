package node_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/node"
	"github.com/orchestrate-go/orchestrate/runtime"
	runmem "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/store"
)

// diary notes the calls of a runtime with the time since its begin.
type diary struct {
	mu    sync.Mutex
	began time.Time
	lines []string
}

func (m *machine) diary() *diary {
	d := &diary{began: time.Now()}
	m.runtime.SetFault(func(op runmem.Op) error {
		if !op.Done {
			d.note(op.Method + " " + short(op.ID))
		}
		return nil
	})
	return d
}

func (d *diary) note(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, line+" at "+time.Since(d.began).Round(time.Millisecond).String())
}

// only returns the lines that begin with one of the calls.
func (d *diary) only(calls ...string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var lines []string
	for _, l := range d.lines {
		if slices.Contains(calls, strings.Fields(l)[0]) {
			lines = append(lines, l)
		}
	}
	return lines
}

// short cuts a container's ID to its role, index and attempt.
func short(id string) string {
	parts := strings.Split(id, ".")
	if len(parts) < 2 {
		return id
	}
	return strings.Join(parts[len(parts)-2:], ".")
}

func (m *machine) task(service string) orchestrate.Task {
	m.t.Helper()
	tasks, err := m.fleet.Tasks(context.Background(), service)
	if err != nil || len(tasks) != 1 {
		m.t.Fatalf("tasks of %s: %+v, %v; want one", service, tasks, err)
	}
	return tasks[0]
}

// one is a service of one task.
func one(t orchestrate.Template) orchestrate.Service {
	return orchestrate.Service{Name: "one", Template: t, Update: orchestrate.UpdatePolicy{Monitor: time.Second}}
}

func custom(name string) *health.Check {
	return &health.Check{Custom: &health.Custom{Name: name}, Interval: time.Second, Failures: 2}
}

// switches are checks that a test turns on and off.
type switches struct {
	mu  sync.Mutex
	bad map[string]bool
}

func (s *switches) set(name string, bad bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bad[name] = bad
}

func (s *switches) checkers(names ...string) map[string]health.Checker {
	all := map[string]health.Checker{}
	for _, name := range names {
		all[name] = health.CheckerFunc(func(context.Context, health.Target, health.Check) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.bad[name] {
				return errors.New(name + " is off")
			}
			return nil
		})
	}
	return all
}

func TestOrderOfContainers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		d := m.diary()
		m.agent()
		m.runtime.SetImage("migrate", runmem.Image{Program: runmem.Exits(3*time.Second, 0)})
		m.runtime.SetImage("proxy", runmem.Image{Program: runmem.Program{StopTime: time.Second}})
		m.apply(one(orchestrate.Template{
			Init:       []orchestrate.Container{{Image: "migrate"}, {Image: "migrate"}},
			Sidecars:   []orchestrate.Container{{Image: "proxy"}},
			Containers: []orchestrate.Container{{Image: "web"}, {Image: "web"}},
		}))
		m.wait("one", orchestrate.RolloutCompleted)
		starts := d.only("Start")
		slices.Sort(starts[3:]) // main containers start together
		want := []string{"Start i0.0 at 0s", "Start i1.0 at 3s", "Start s0.0 at 6s", "Start c0.0 at 6s", "Start c1.0 at 6s"}
		if !slices.Equal(starts, want) {
			t.Errorf("starts %q, want %q", starts, want)
		}
		if err := m.fleet.Remove(context.Background(), "one"); err != nil {
			t.Fatal(err)
		}
		m.wait("one", orchestrate.RolloutRemoved)
		kills := d.only("Kill")
		slices.Sort(kills[:2])
		for i, id := range []string{"c0.0", "c1.0", "s0.0"} {
			if !strings.HasPrefix(kills[i], "Kill "+id) {
				t.Errorf("kill %d is %q, want %s: sidecars stop after the main containers", i, kills[i], id)
			}
		}
		m.empty()
	})
}

func TestInitFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.agent()
		m.runtime.SetImage("migrate", runmem.Image{Program: runmem.Program{Life: time.Second, Code: 7,
			Output: []runmem.Output{{Text: "no such table"}}}})
		m.apply(one(orchestrate.Template{
			Init:       []orchestrate.Container{{Image: "migrate"}},
			Containers: []orchestrate.Container{{Image: "web"}},
			Restart:    orchestrate.RestartPolicy{Attempts: 2},
		}))
		r := m.wait("one", orchestrate.RolloutFailed)
		f := r.Failure
		if f == nil || f.Kind != orchestrate.FailedInit || f.ExitCode != 7 || f.Container != "init0" || !slices.Contains(f.Log, "no such table") {
			t.Errorf("failure %+v, want init0 with exit code 7 and its last lines", f)
		}
	})
}

func TestReadinessGatesTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		sw := &switches{bad: map[string]bool{"ready": true}}
		m.checkers = sw.checkers("ready")
		m.agent()
		s := web(1)
		s.Containers[0].Readiness = custom("ready")
		m.apply(s)
		endpoints := func() int {
			synctest.Wait()
			n := 0
			for _, r := range m.network.Rules() {
				n += len(r.Endpoints)
			}
			return n
		}
		time.Sleep(10 * time.Second)
		task := m.task("web")
		if n := endpoints(); n != 0 || task.State != orchestrate.Running {
			t.Errorf("%d endpoints and state %s before it is ready, want none and running", n, task.State)
		}
		if task.Failure == nil || task.Failure.Kind != orchestrate.FailedReadiness || !strings.Contains(task.Failure.Message, "ready is off") {
			t.Errorf("failure %+v, want why it is not ready", task.Failure)
		}
		sw.set("ready", false)
		m.wait("web", orchestrate.RolloutCompleted)
		if endpoints() == 0 {
			t.Error("no endpoint though it is ready")
		}
		sw.set("ready", true)
		time.Sleep(3 * time.Second)
		if n := endpoints(); n != 0 || m.task("web").State != orchestrate.Running {
			t.Errorf("%d endpoints and state %s after readiness was lost, want none and running", n, m.task("web").State)
		}
		if m.task("web").Restarts != 0 {
			t.Error("lost readiness restarted the container")
		}
	})
}

func TestLivenessRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		sw := &switches{bad: map[string]bool{}}
		m.checkers = sw.checkers("alive", "started")
		d := m.diary()
		m.agent()
		m.runtime.SetImage("web:1", runmem.Image{Program: runmem.Program{StopTime: -1}}) // ignores SIGTERM
		s := web(1)
		s.Containers[0].Startup, s.Containers[0].Liveness = custom("started"), custom("alive")
		s.StopGrace = 5 * time.Second
		m.apply(s)
		m.wait("web", orchestrate.RolloutCompleted)
		sw.set("alive", true)
		time.Sleep(3 * time.Second) // two failures
		sw.set("alive", false)
		time.Sleep(10 * time.Second)
		task := m.task("web")
		if task.Restarts != 1 || task.State != orchestrate.Ready || task.Failure == nil || task.Failure.Kind != orchestrate.FailedLiveness {
			t.Errorf("%d restarts, state %s, failure %+v; want one restart for liveness and ready again", task.Restarts, task.State, task.Failure)
		}
		if kills := d.only("Kill"); len(kills) != 2 {
			t.Errorf("kills %q, want the stop signal and, after the grace, SIGKILL", kills)
		}
		sw.set("started", true)
		m.runtime.Crash(m.containers()[0].ID, 1)
		time.Sleep(10 * time.Second)
		if f := m.task("web").Failure; f == nil || f.Kind != orchestrate.FailedStartup {
			t.Errorf("failure %+v, want startup", f)
		}
	})
}

// The grace is for the container: where the signal itself takes long to send, since
// the machine hangs or its runtime is busy, it has all of it from then on.
func TestGraceBeginsWithTheSignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.agent()
		m.runtime.SetImage("web:1", runmem.Image{Program: runmem.Program{StopTime: 4 * time.Second}})
		s := web(1)
		s.StopGrace, s.DrainDelay = 5*time.Second, -1
		m.apply(s)
		m.wait("web", orchestrate.RolloutCompleted)
		var kills atomic.Int32
		m.runtime.SetFault(func(op runmem.Op) error {
			if op.Method == "Kill" && !op.Done && kills.Add(1) == 1 {
				time.Sleep(time.Minute)
			}
			return nil
		})
		if err := m.fleet.Remove(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if n := kills.Load(); n != 1 || len(m.containers()) > 0 {
			t.Errorf("%d signals were sent and %d containers are left, want the one after which it ended in time", n, len(m.containers()))
		}
	})
}

// The endpoint goes before the signal, by the drain delay.
func TestStopDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.agent()
		s := web(1)
		s.DrainDelay = 3 * time.Second
		m.apply(s)
		m.wait("web", orchestrate.RolloutCompleted)
		d := m.diary()
		if err := m.fleet.Remove(context.Background(), "web"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		for _, r := range m.network.Rules() {
			if len(r.Endpoints) > 0 {
				t.Errorf("rule %v still has endpoints while the task drains", r)
			}
		}
		if cs := m.containers(); len(cs) != 1 || cs[0].State != runtime.Running {
			t.Errorf("containers %+v while draining, want the one running", cs)
		}
		m.wait("web", orchestrate.RolloutRemoved)
		if kills := d.only("Kill"); len(kills) != 1 || kills[0] != "Kill c0.0 at 3s" {
			t.Errorf("kills %q, want one, after the drain delay", kills)
		}
		m.empty()
	})
}

// An agent that dies in the middle of a stop is followed by one that ends it.
func TestAgentDiesWhileStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		kill := m.agent()
		s := web(2)
		s.DrainDelay = 5 * time.Second
		m.apply(s)
		m.wait("web", orchestrate.RolloutCompleted)
		if err := m.fleet.Remove(context.Background(), "web"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		kill()
		if len(m.containers()) != 2 {
			t.Fatal("the containers ended before the drain delay")
		}
		m.agent()
		m.wait("web", orchestrate.RolloutRemoved)
		m.empty()
	})
}

// An agent whose network and volumes have things of tasks that nobody knows
// releases them.
func TestOrphansAreReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		ctx := context.Background()
		if _, err := m.network.Create(ctx, "ghost.0.a", nil); err != nil {
			t.Fatal(err)
		}
		if _, err := m.runtime.Pull(ctx, "web:1", runtime.PullOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := m.runtime.Start(ctx, runtime.Spec{ID: "ghost.0.a.c0.0", Image: "web:1", Labels: map[string]string{runtime.LabelTask: "ghost.0.a"}}); err != nil {
			t.Fatal(err)
		}
		if err := m.runtime.Start(ctx, runtime.Spec{ID: "foreign", Image: "web:1"}); err != nil {
			t.Fatal(err)
		}
		m.agent()
		time.Sleep(time.Minute)
		if cs := m.containers(); len(cs) != 1 || cs[0].ID != "foreign" {
			t.Errorf("containers %+v, want only the one that is not a task's", cs)
		}
		if ns, _ := m.network.List(ctx); len(ns) > 0 {
			t.Errorf("namespaces %v are left", ns)
		}
		if err := m.runtime.Remove(ctx, "foreign"); err != nil {
			t.Fatal(err)
		}
	})
}

// shaky is a store that cannot be reached for a while.
type shaky struct {
	store.Store
	mu   sync.Mutex
	down bool
}

var errDown = errors.New("the store is down")

func (s *shaky) set(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

func (s *shaky) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	if down {
		return 0, errDown
	}
	return s.Store.Commit(ctx, txn)
}

// Without a store, containers are restarted, and the store learns of it when
// it is back.
func TestStoreIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		s := &shaky{Store: m.store}
		m.agentStore = s
		m.agent()
		m.apply(web(2))
		m.wait("web", orchestrate.RolloutCompleted)
		s.set(true)
		m.runtime.Crash(m.containers()[0].ID, 1)
		time.Sleep(10 * time.Second)
		for _, c := range m.containers() {
			if c.State != runtime.Running {
				t.Errorf("container %s is %s while the store is away, want running", c.ID, c.State)
			}
		}
		s.set(false)
		time.Sleep(time.Minute)
		tasks, err := m.fleet.Tasks(context.Background(), "web")
		if err != nil {
			t.Fatal(err)
		}
		restarts := 0
		for _, task := range tasks {
			restarts += task.Restarts
			if task.State != orchestrate.Ready {
				t.Errorf("task %s is %s, want ready", task.ID, task.State)
			}
		}
		if restarts != 1 {
			t.Errorf("%d restarts are known, want 1", restarts)
		}
		if s, err := m.store.List(context.Background(), "/endpoints/"); err != nil || len(s.Items) != 2 {
			t.Errorf("%d endpoints, %v; want 2 after the lease was made anew", len(s.Items), err)
		}
	})
}

// taken is a balancer on whose node a process has a published port.
type taken struct {
	network.Balancer
	mu   sync.Mutex
	port uint16
}

func (b *taken) set(port uint16) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.port = port
}

func (b *taken) Program(ctx context.Context, rules []network.Rule) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range rules {
		if !r.Address.IsValid() && r.Port == b.port {
			return &network.ConflictError{Frontend: "tcp 0.0.0.0:80", Services: []string{r.Service, "process 1 (httpd)"}}
		}
	}
	return b.Balancer.Program(ctx, rules)
}

func TestPortTakenByTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		b := &taken{Balancer: m.network, port: 80}
		m.balancer = b
		m.agent()
		m.apply(web(1))
		other := one(orchestrate.Template{Containers: []orchestrate.Container{{Image: "web:1"}}, Ports: []orchestrate.Port{{Port: 81}}})
		m.apply(other)
		m.wait("one", orchestrate.RolloutCompleted) // one bad service does not stop the others
		task := m.task("web")
		if task.State != orchestrate.Running || task.Failure == nil || task.Failure.Kind != orchestrate.FailedConflict {
			t.Errorf("state %s and failure %+v, want running with a conflict", task.State, task.Failure)
		}
		b.set(0)
		m.wait("web", orchestrate.RolloutCompleted)
	})
}

func TestRunTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		a, err := node.New(m.store, m.options())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		synctest.Wait()
		if err := a.Run(ctx); err == nil {
			t.Error("a second Run succeeded")
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v after its context ended, want nil", err)
		}
	})
}

// The last n lines are those of the service, whichever runs wrote them.
func TestLogsTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.agent()
		m.runtime.SetImage("web:1", runmem.Image{Program: runmem.Program{Output: []runmem.Output{{Text: "a"}, {Text: "b"}}}})
		s := web(1)
		m.apply(s)
		m.wait("web", orchestrate.RolloutCompleted)
		m.runtime.Crash(m.containers()[0].ID, 1)
		time.Sleep(time.Second)
		for n, want := range map[int]string{0: "abab", 1: "b", 2: "ab", 3: "bab", 4: "abab", 9: "abab"} {
			got := ""
			err := m.fleet.Logs(context.Background(), "web", "", runtime.LogOptions{Tail: n}, func(l orchestrate.LogLine) error {
				got += string(l.Text)
				return nil
			})
			if err != nil || got != want {
				t.Errorf("the last %d lines are %q, %v; want %q", n, got, err, want)
			}
		}
	})
}

func TestLogsFollowRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.agent()
		m.runtime.SetImage("web:1", runmem.Image{Program: runmem.Program{Life: 10 * time.Second, Code: 1, Output: []runmem.Output{{Text: "hello"}}}})
		s := web(1)
		s.Update.Monitor = -1
		m.apply(s)
		m.wait("web", orchestrate.RolloutCompleted)
		enough := errors.New("enough")
		lines := 0
		err := m.fleet.Logs(context.Background(), "web", "", runtime.LogOptions{Follow: true}, func(l orchestrate.LogLine) error {
			if string(l.Text) != "hello" {
				t.Errorf("line %q, want hello", l.Text)
			}
			if lines++; lines == 3 {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) || lines != 3 {
			t.Errorf("%d lines and error %v, want three of three starts", lines, err)
		}
	})
}
