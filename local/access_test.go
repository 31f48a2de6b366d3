//go:build linux

package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

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
