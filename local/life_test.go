//go:build linux

package local

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store/bolt"
)

// pids are the processes of a service's containers by container.
func pids(t testing.TB, f *Fleet, name string) map[string]int {
	t.Helper()
	all := map[string]int{}
	for _, task := range tasks(t, f, name) {
		for _, c := range task.Containers {
			all[c.ID] = c.PID
		}
	}
	return all
}

// Closing leaves the containers alone, and so does opening again. Traffic goes
// on in between.
func TestCloseAndAdopt(t *testing.T) {
	dir := newFolder(t)
	f := openAt(t, dir)
	s := service("web", 2)
	s.Ports[0].Published = 8081
	up(t, f, s)
	before := pids(t, f, "web")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("second Close: got %v, want nil", err)
	}
	<-f.Done()
	if err := f.Apply(t.Context(), s); !errors.Is(err, orchestrate.ErrClosed) {
		t.Errorf("Apply after Close: got %v, want ErrClosed", err)
	}
	for id, pid := range before {
		if err := syscall.Kill(pid, 0); err != nil {
			t.Errorf("process %d of container %s after Close: %v, want it to run", pid, id, err)
		}
	}
	if counts := answers(t, "127.0.0.1:8081", 20); len(counts) != 2 {
		t.Errorf("while the fleet is closed: answered by %v, want both tasks", counts)
	}
	f = openAt(t, dir)
	defer destroy(t, f)
	completed(t, f, "web")
	if after := pids(t, f, "web"); !maps.Equal(before, after) {
		t.Errorf("containers after opening again: got %v, want those of before, %v", after, before)
	}
	if counts := answers(t, "127.0.0.1:8081", 20); len(counts) != 2 {
		t.Errorf("after opening again: answered by %v, want both tasks", counts)
	}
}

// A container that dies while no program is there is replaced by the next.
func TestDeadWhileClosed(t *testing.T) {
	dir := newFolder(t)
	f := openAt(t, dir)
	s := service("web", 2)
	s.Ports[0].Published = 8081
	up(t, f, s)
	victim := tasks(t, f, "web")[0]
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(victim.Containers[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f = openAt(t, dir)
	defer destroy(t, f)
	events := watch(t, f)
	replaced := func() bool {
		now := tasks(t, f, "web")[0]
		return now.ID == victim.ID && now.Restarts == 1 && now.State == orchestrate.Ready
	}
	if !replaced() {
		until(t, events, "the dead container's successor is ready", func(orchestrate.Event) bool { return replaced() })
	}
	if counts := answers(t, "127.0.0.1:8081", 20); len(counts) != 2 {
		t.Errorf("answered by %v, want both tasks", counts)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := newFolder(t)
	f := openAt(t, dir)
	defer destroy(t, f)
	if second, err := Open(dir); !errors.Is(err, bolt.ErrLocked) {
		if err == nil {
			second.Close()
		}
		t.Errorf("second Open of a folder: got %v, want bolt.ErrLocked", err)
	}
	if _, err := Open(""); err == nil {
		t.Error("Open without a folder: got no error")
	}
	t.Setenv("PATH", "")
	t.Setenv("ORCHESTRATE_BIN", "")
	var missing *containerd.MissingBinaryError
	if _, err := Open(t.TempDir()); !errors.As(err, &missing) {
		t.Errorf("Open without shim and runc: got %v, want a MissingBinaryError", err)
	}
}

// Remove leaves nothing of a service but its volumes.
func TestRemove(t *testing.T) {
	f := openFleet(t)
	up(t, f, service("web", 2))
	if err := f.Remove(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if r := wait(t, f, "web"); r.Outcome != orchestrate.RolloutRemoved || r.Err() != nil {
		t.Errorf("outcome: got %v, want removed", r)
	}
	if _, err := f.Get(t.Context(), "web"); !errors.Is(err, orchestrate.ErrNotFound) {
		t.Errorf("Get of a removed service: got %v, want ErrNotFound", err)
	}
	if err := f.Remove(t.Context(), "web"); !errors.Is(err, orchestrate.ErrNotFound) {
		t.Errorf("Remove of a removed service: got %v, want ErrNotFound", err)
	}
	containers, err := f.runtime.List(t.Context(), nil)
	if err != nil || len(containers) > 0 {
		t.Errorf("containers: got %+v, %v; want none", containers, err)
	}
	namespaces, err := f.network.List(t.Context())
	if err != nil || len(namespaces) > 0 {
		t.Errorf("network namespaces: got %v, %v; want none", namespaces, err)
	}
	if got := backends(t, f.dir); len(got) > 0 {
		t.Errorf("the balancer's endpoints: got %v, want none", got)
	}
}

// Init containers run to their end one after another, then come sidecars, each
// ready before the next, then the main containers; they stop the other way
// round.
func TestOrder(t *testing.T) {
	f := openFleet(t)
	s := silent("web")
	data := []orchestrate.Mount{{Target: "/data", Volume: "lines"}}
	container := func(words ...string) orchestrate.Container {
		return orchestrate.Container{Image: testImage, Command: words, Mounts: data}
	}
	s.Init = []orchestrate.Container{
		container("line=init 0 begins", "sleep=100ms", "line=init 0 ends"),
		container("line=init 1"),
	}
	s.Sidecars = []orchestrate.Container{
		container("line=sidecar 0", "wait", "line=sidecar 0 stops"),
		container("line=sidecar 1", "wait", "line=sidecar 1 stops"),
	}
	// It is ready once it has written: the next begins after that.
	ready := func(text string) *health.Check {
		return &health.Check{Exec: &health.Exec{Command: []string{"/program", "has=" + text}}, Interval: 20 * time.Millisecond, Failures: 100}
	}
	s.Sidecars[0].Readiness, s.Sidecars[1].Readiness = ready("sidecar 0"), ready("sidecar 1")
	s.Containers = []orchestrate.Container{container("line=main", "wait", "line=main stops")}
	s.Containers[0].Readiness = ready("main")
	up(t, f, s)
	if got := one(t, f, "web"); len(got.Containers) != 5 {
		t.Errorf("containers of the task: got %+v, want five", got.Containers)
	}
	if err := f.Remove(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	wait(t, f, "web")
	want := []string{
		"init 0 begins", "init 0 ends", "init 1", "sidecar 0", "sidecar 1", "main",
		"main stops", "sidecar 1 stops", "sidecar 0 stops",
	}
	if got := lines(t, f); !slices.Equal(got, want) {
		t.Errorf("order: got %q, want %q", got, want)
	}
}

// lines reads the volume "lines".
func lines(t testing.TB, f *Fleet) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(f.dir, "volumes", "volumes", "default.lines", "data", "lines"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

// The data of a named volume outlives containers, tasks and the service.
func TestVolume(t *testing.T) {
	f := openFleet(t)
	s := service("web", 1)
	s.Containers[0].Mounts = []orchestrate.Mount{{Target: "/data", Volume: "lines"}}
	up(t, f, s)
	write := func(text string) {
		t.Helper()
		get(t, at(virtual(t, f, "web")[0], 80), "/append?"+text)
	}
	write("first")
	old := one(t, f, "web").ID
	s.Containers[0].Env = map[string]string{"VERSION": "2"}
	up(t, f, s)
	if now := one(t, f, "web").ID; now == old {
		t.Errorf("task after a change of its template: got %s, want another", now)
	}
	write("second")
	if err := f.Remove(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	wait(t, f, "web")
	up(t, f, s)
	write("third")
	if got, want := lines(t, f), []string{"first", "second", "third"}; !slices.Equal(got, want) {
		t.Errorf("the volume has %q, want %q", got, want)
	}
}

// What a container may write to: a tmpfs, a volume, a bind mount of an allowed
// folder, and nothing that is read-only.
func TestMounts(t *testing.T) {
	root := t.TempDir()
	f := openFleet(t, WithBindRoots(root))
	for _, name := range []string{"open", "closed"} {
		if err := os.Mkdir(filepath.Join(root, name), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	s := silent("web", "wait")
	s.Containers[0].Security.ReadOnlyRoot = true
	s.Containers[0].Mounts = []orchestrate.Mount{
		{Target: "/volume", Volume: "v"},
		{Target: "/memory", Tmpfs: &orchestrate.Tmpfs{Size: orchestrate.MiB}},
		{Target: "/open", Bind: filepath.Join(root, "open")},
		{Target: "/closed", Bind: filepath.Join(root, "closed"), ReadOnly: true},
		{Target: "/same", Volume: "v", ReadOnly: true},
	}
	up(t, f, s)
	for dir, want := range map[string]string{
		"/volume": "", "/memory": "", "/open": "",
		"/closed": "read-only file system", "/same": "read-only file system", "/": "read-only file system",
	} {
		code, out := run(t, f, "web", "touch="+filepath.Join(dir, "file"))
		if wrote := code == 0; wrote != (want == "") || !strings.Contains(out, want) {
			t.Errorf("writing to %s: got exit code %d and %q, want %q", dir, code, out, want)
		}
	}
	if code, out := run(t, f, "web", "fill=/memory/big"); code == 0 || !strings.Contains(out, "no space left") {
		t.Errorf("filling the tmpfs: got exit code %d and %q, want no space left", code, out)
	}
	if _, err := os.Stat(filepath.Join(root, "open", "file")); err != nil {
		t.Errorf("the bound folder after writing in the container: %v", err)
	}
}

// run runs the test program once more in a service's container.
func run(t testing.TB, f *Fleet, name string, words ...string) (int, string) {
	t.Helper()
	var out bytes.Buffer
	code, err := f.Exec(t.Context(), name, "", runtime.Exec{Args: append([]string{"/program"}, words...), Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	return code, out.String()
}

// Each way to fail has its type, and says what the container had said.
func TestFailures(t *testing.T) {
	f := openFleet(t)
	outside := t.TempDir()
	sick := func(kind string) orchestrate.Service {
		s := service("sick", 1)
		s.Containers[0].Env = map[string]string{"SICK": kind}
		return s
	}
	quick := func(kind string) *health.Check {
		return &health.Check{HTTP: &health.HTTP{Port: 8080, Path: "/healthy?" + kind}, Interval: 20 * time.Millisecond, Delay: 100 * time.Millisecond}
	}
	cases := map[string]struct {
		service   func() orchestrate.Service
		reason    orchestrate.Reason
		kind      orchestrate.FailureKind
		message   string
		log       string
		permanent bool
	}{
		"image": {
			service: func() orchestrate.Service {
				s := silent("image")
				s.Containers[0].Image, s.Containers[0].Pull = "orchestrate.test/absent:1", runtime.PullNever
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedImage, message: "orchestrate.test/absent:1", permanent: true,
		},
		"command": {
			service: func() orchestrate.Service {
				s := silent("command")
				s.Containers[0].Entrypoint = []string{"/absent"}
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedStart, message: "/absent", permanent: true,
		},
		"bind": {
			service: func() orchestrate.Service {
				s := silent("bind", "wait")
				s.Containers[0].Mounts = []orchestrate.Mount{{Target: "/x", Bind: outside}}
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedVolume, message: outside, permanent: true,
		},
		"crash": {
			service: func() orchestrate.Service {
				s := silent("crash", "print=I give up", "exit=3")
				s.Update.Monitor = 5 * time.Second // it runs for a moment
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedExit, message: "exit code 3", log: "I give up",
		},
		"init": {
			service: func() orchestrate.Service {
				s := silent("init", "wait")
				s.Init = []orchestrate.Container{{Image: testImage, Command: []string{"print=not yet", "exit=4"}}}
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedInit, message: "exit code 4", log: "not yet",
		},
		"memory": {
			service: func() orchestrate.Service {
				s := silent("memory", "print=hungry", "eat=200")
				s.Containers[0].Resources.MemoryLimit = 32 * orchestrate.MiB
				s.Update.Monitor = 5 * time.Second
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedOOM, message: "out of memory", log: "hungry",
		},
		"startup": {
			service: func() orchestrate.Service {
				s := sick("startup")
				s.Containers[0].Startup = quick("startup")
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedStartup, message: "503",
		},
		"readiness": {
			service: func() orchestrate.Service {
				s := sick("readiness")
				s.Update.ProgressDeadline = time.Second
				return s
			},
			reason: orchestrate.ReasonDeadline, kind: orchestrate.FailedReadiness, message: "503",
		},
		"liveness": {
			service: func() orchestrate.Service {
				s := sick("liveness")
				s.Containers[0].Liveness = quick("liveness")
				s.Update.Monitor = 5 * time.Second
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedLiveness, message: "503",
		},
		"capacity": {
			service: func() orchestrate.Service {
				s := silent("capacity", "wait")
				s.Containers[0].Resources.CPU = 1000 * orchestrate.Core
				s.Update.ProgressDeadline = time.Second
				return s
			},
			reason: orchestrate.ReasonCapacity,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := c.service()
			s.Name = name
			// The first failure of a task is its last, and the rollout's.
			s.Restart = orchestrate.RestartPolicy{Attempts: 1, MaxBackoff: 10 * time.Millisecond}
			s.Update.MaxFailures = 1
			apply(t, f, s)
			r := wait(t, f, name)
			var err *orchestrate.RolloutError
			if r.Outcome != orchestrate.RolloutFailed || r.Reason != c.reason || !errors.As(r.Err(), &err) {
				t.Fatalf("got %v, want it failed because of %s; failure %+v", r, c.reason, r.Failure)
			}
			if c.kind == "" {
				return
			}
			if r.Failure == nil || r.Failure.Kind != c.kind || !strings.Contains(r.Failure.Message, c.message) || r.Failure.Permanent != c.permanent {
				t.Fatalf("failure: got %+v, want kind %s, a message with %q, permanent %v", r.Failure, c.kind, c.message, c.permanent)
			}
			if c.log != "" && !slices.Contains(r.Failure.Log, c.log) {
				t.Errorf("the failure's log is %q, want it to have %q", r.Failure.Log, c.log)
			}
		})
	}
}

// Checks of a running service: readiness decides about traffic, liveness
// restarts.
func TestChecks(t *testing.T) {
	f := openFleet(t)
	s := service("web", 1)
	c := &s.Containers[0]
	c.Startup = &health.Check{TCP: &health.TCP{Port: 8080}, Interval: 20 * time.Millisecond, Failures: 100}
	c.Liveness = &health.Check{Exec: &health.Exec{Command: []string{"/program", "get=http://127.0.0.1:8080/healthy?liveness"}}, Interval: 50 * time.Millisecond}
	up(t, f, s)
	// The task itself answers also while it has no traffic.
	task := one(t, f, "web")
	direct := at(task.Addresses[orchestrate.DefaultNetwork][0], 8080)
	service := at(virtual(t, f, "web")[0], 80)
	events := watch(t, f)
	state := func(want orchestrate.State) {
		t.Helper()
		until(t, events, "the task is "+string(want), func(e orchestrate.Event) bool { return e.Task == task.ID && e.State == want })
	}
	get(t, direct, "/sick?readiness")
	state(orchestrate.Running)
	// The state is told first; the balancer follows within moments.
	refused := time.Now().Add(10 * time.Second)
	for {
		if _, err := ask(service, "/"); err != nil {
			break
		}
		if time.Now().After(refused) {
			t.Fatal("a task that is not ready still has traffic")
		}
	}
	get(t, direct, "/well?readiness")
	state(orchestrate.Ready)
	get(t, service, "/")

	get(t, direct, "/sick?liveness")
	e := until(t, events, "the container is restarted", func(e orchestrate.Event) bool {
		return e.Task == task.ID && e.State == orchestrate.Ready && e.Restarts == 1
	})
	if now := one(t, f, "web"); now.Failure == nil || now.Failure.Kind != orchestrate.FailedLiveness {
		t.Errorf("the task's last failure: got %+v, want liveness; event %+v", now.Failure, e)
	}
	get(t, service, "/")
}

func TestExecAndStats(t *testing.T) {
	f := openFleet(t)
	s := service("web", 1)
	s.Containers[0].Resources.MemoryLimit = 64 * orchestrate.MiB
	up(t, f, s)
	code, out := run(t, f, "web", "print=hello", "exit=3")
	if code != 3 || out != "hello\n" {
		t.Errorf("Exec: got exit code %d and %q, want 3 and hello", code, out)
	}
	stats, err := f.Stats(t.Context(), one(t, f, "web").ID, "main")
	if err != nil || stats.Memory <= 0 || stats.MemoryLimit != 64*orchestrate.MiB || stats.Pids < 1 || stats.CPU <= 0 {
		t.Errorf("Stats: got %+v, %v; want what it uses and its limit", stats, err)
	}
	if _, err := f.Exec(t.Context(), "web", "absent", runtime.Exec{Args: []string{"/program"}}); !errors.Is(err, orchestrate.ErrNotFound) {
		t.Errorf("Exec in a container that is not there: got %v, want ErrNotFound", err)
	}
	if _, err := f.Stats(t.Context(), "absent", ""); !errors.Is(err, orchestrate.ErrNotFound) {
		t.Errorf("Stats of a service that is not there: got %v, want ErrNotFound", err)
	}
}

// Following a log goes on over a restart of the container, and ends with the
// task.
func TestLogs(t *testing.T) {
	f := openFleet(t)
	up(t, f, service("web", 1))
	address := at(virtual(t, f, "web")[0], 80)
	task := one(t, f, "web")
	got := make(chan string, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- f.Logs(t.Context(), task.ID, "", runtime.LogOptions{Follow: true}, func(l orchestrate.LogLine) error {
			got <- fmt.Sprintf("%s %s %s", l.Task, l.Stream, l.Text)
			return nil
		})
	}()
	expect := func(text string) {
		t.Helper()
		select {
		case line := <-got:
			if want := task.ID + " stdout " + text; line != want {
				t.Fatalf("line: got %q, want %q", line, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("no line %q within a minute", text)
		}
	}
	get(t, address, "/print?one")
	expect("one")
	events := watch(t, f)
	if _, err := ask(address, "/exit?1"); err == nil {
		t.Fatal("the container answered after its end")
	}
	until(t, events, "the container is restarted", func(e orchestrate.Event) bool {
		return e.Task == task.ID && e.State == orchestrate.Ready && e.Restarts == 1
	})
	get(t, address, "/print?two")
	expect("two")
	var all []string
	if err := f.Logs(t.Context(), "web", "", runtime.LogOptions{}, func(l orchestrate.LogLine) error {
		all = append(all, string(l.Text))
		return nil
	}); err != nil || !slices.Equal(all, []string{"one", "two"}) {
		t.Errorf("Logs: got %q, %v; want the lines of both containers", all, err)
	}
	if err := f.Scale(t.Context(), "web", 0); err != nil {
		t.Fatal(err)
	}
	completed(t, f, "web")
	if err := <-ended; err != nil {
		t.Errorf("following a log to the end of the task: got %v, want nil", err)
	}
}

// Names are answered inside of containers.
func TestNames(t *testing.T) {
	f := openFleet(t)
	apply(t, f, service("one", 1), service("two", 2))
	completed(t, f, "one")
	completed(t, f, "two")
	inside := at(virtual(t, f, "one")[0], 80)
	join := func(addrs []string) string { slices.Sort(addrs); return strings.Join(addrs, " ") }
	var vips, all []string
	for _, a := range virtual(t, f, "two") {
		vips = append(vips, a.String())
	}
	for _, task := range tasks(t, f, "two") {
		for _, a := range task.Addresses[orchestrate.DefaultNetwork] {
			all = append(all, a.String())
		}
	}
	for name, want := range map[string]string{"two": join(vips), "two.default": join(vips), "tasks.two": join(all)} {
		if got := get(t, inside, "/lookup?"+name); got != want {
			t.Errorf("addresses of %s: got %s, want %s", name, got, want)
		}
	}
	answer := get(t, inside, "/fetch?http://two/")
	if id := strings.TrimSpace(answer); !slices.ContainsFunc(tasks(t, f, "two"), func(task orchestrate.Task) bool { return task.ID == id }) {
		t.Errorf("http://two/ from inside: answered by %q, want a task of two", id)
	}
	if got, err := ask(inside, "/lookup?absent"); err == nil {
		t.Errorf("addresses of a service that is not there: got %s, want an error", got)
	}
}

// Destroy leaves nothing, and can be told twice.
func TestDestroy(t *testing.T) {
	dir := newFolder(t)
	f := openAt(t, dir, WithCapacity(scheduler.Resources{CPU: 4000, Memory: 4 << 30, Disk: 1 << 30}))
	s := service("web", 2)
	s.Containers[0].Mounts = []orchestrate.Mount{{Target: "/data", Volume: "lines"}}
	apply(t, f, s, orchestrate.Network{Name: "back"})
	completed(t, f, "web")
	destroy(t, f)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder after Destroy: got %v, want that it is gone", err)
	}
	nothingLeft(t, dir)
	if err := f.Destroy(t.Context()); err != nil {
		t.Errorf("second Destroy: got %v, want nil", err)
	}
}

// Destroy waits also for what was removed before, and is on its way out.
func TestDestroyWhileStopping(t *testing.T) {
	root := t.TempDir()
	dir := newFolder(t)
	f := openAt(t, dir, WithBindRoots(root))
	s := silent("web", "stay")
	s.StopGrace = time.Second
	s.Containers[0].Mounts = []orchestrate.Mount{{Target: "/data", Volume: "lines"}, {Target: "/root", Bind: root}}
	up(t, f, s)
	if err := f.Remove(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	destroy(t, f)
	nothingLeft(t, dir)
}

// A fleet that was killed in the middle of anything can be destroyed at once.
func TestDestroyWhatIsOrphaned(t *testing.T) {
	root := t.TempDir()
	dir := newFolder(t)
	f := openAt(t, dir, WithBindRoots(root))
	s := silent("web", "stay")
	s.Containers[0].Mounts = []orchestrate.Mount{{Target: "/data", Volume: "lines"}, {Target: "/root", Bind: root}}
	up(t, f, s)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	// All memory of the task is lost, and the containers run.
	if err := os.Remove(filepath.Join(dir, "state.db")); err != nil {
		t.Fatal(err)
	}
	destroy(t, openAt(t, dir, WithBindRoots(root)))
	nothingLeft(t, dir)
}
