//go:build linux

package local

import (
	"bytes"
	"errors"
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
