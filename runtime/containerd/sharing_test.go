//go:build linux

package containerd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
)

// parent returns the process that has started a container: its shim.
func parent(t *testing.T, pid int) int {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// pid (name) state ppid … (proc_pid_stat(5))
	_, after, _ := strings.Cut(string(stat), ") ")
	ppid, err := strconv.Atoi(strings.Fields(after)[1])
	if err != nil {
		t.Fatalf("%q: %v", stat, err)
	}
	return ppid
}

// Twelve tasks that start at once share four shims. When one of these dies its
// tasks end, all of them and no other, and can be started again; the others do
// not notice, nor does it matter that the program was restarted before.
func TestSharedShimDies(t *testing.T) {
	root := t.TempDir()
	rt := open(t, root)
	spec := func(i int, args ...string) runtime.Spec {
		return runtime.Spec{ID: fmt.Sprintf("t%d.c", i), Group: fmt.Sprint("t", i), Image: testImage, Args: args}
	}
	const n = 12
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := rt.Start(t.Context(), spec(i, "ignore")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	side := runtime.Spec{ID: "t0.side", Group: "t0", Image: testImage, Args: []string{"ignore"}}
	if err := rt.Start(t.Context(), side); err != nil {
		t.Fatal(err)
	}
	if err := rt.Close(); err != nil {
		t.Fatal(err)
	}
	rt = open(t, root)
	list, err := rt.List(t.Context(), nil)
	if err != nil || len(list) != n+1 {
		t.Fatalf("after a restart: got %v, %v; want the %d containers", list, err, n+1)
	}
	shimOf, inShim := map[string]int{}, map[int]int{}
	for _, c := range list {
		shimOf[c.ID] = parent(t, c.PID)
		inShim[shimOf[c.ID]]++
	}
	if len(inShim) != 4 || shimOf["t0.c"] != shimOf["t0.side"] {
		t.Fatalf("got shims %v, want four, and the containers of t0 in one", shimOf)
	}
	killed := shimOf["t0.c"]
	if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for id, pid := range shimOf {
		if pid != killed {
			continue
		}
		if exit, err := rt.Wait(t.Context(), id); err != nil || exit.Code != 137 {
			t.Errorf("%s, whose shim was killed: got %v, %v; want exit code 137", id, exit, err)
		}
	}
	for i := range n {
		wg.Go(func() {
			// A start of what runs does nothing.
			if err := rt.Start(t.Context(), spec(i, "ignore")); err != nil {
				t.Errorf("start after the shim's death: %v", err)
			}
		})
	}
	wg.Wait()
	after, err := rt.List(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	before := map[string]runtime.Container{}
	for _, c := range list {
		before[c.ID] = c
	}
	for _, c := range after {
		switch was := before[c.ID]; {
		case shimOf[c.ID] != killed:
			if c.PID != was.PID || c.State != runtime.Running {
				t.Errorf("%s, whose shim lives: got %+v, want the process %d", c.ID, c, was.PID)
			}
		case c.ID == "t0.side":
			if c.State != runtime.Exited {
				t.Errorf("%s: got %+v, want it to have ended with its shim", c.ID, c)
			}
		case c.State != runtime.Running || parent(t, c.PID) == killed:
			t.Errorf("%s was started again: got %+v, want it to run, in another shim", c.ID, c)
		}
	}
	for _, c := range after {
		if err := rt.Remove(t.Context(), c.ID); err != nil {
			t.Error(err)
		}
	}
}

// What fails to start leaves nothing behind in a shim that others use.
func TestFailedStartInSharedShim(t *testing.T) {
	rt := open(t, t.TempDir())
	start(t, rt, runtime.Spec{ID: "runs", Group: "g", Args: []string{"ignore"}})
	for range 3 {
		err := rt.Start(t.Context(), runtime.Spec{ID: "fails", Group: "g", Image: testImage, Entrypoint: []string{"/none"}})
		if err == nil {
			t.Fatal("a start of a program that does not exist: got no error")
		}
	}
	start(t, rt, runtime.Spec{ID: "ends", Group: "g", Args: []string{"exit=3"}})
	if exit, err := rt.Wait(t.Context(), "ends"); err != nil || exit.Code != 3 {
		t.Errorf("beside failed starts: got %v, %v; want exit code 3", exit, err)
	}
	list, err := rt.List(t.Context(), nil)
	if err != nil || len(list) != 2 {
		t.Errorf("got %v, %v; want the container that runs and the one that ended", list, err)
	}
}

// A start that can never end, for runc waits for a process that its seccomp
// profile has killed, ends with its context. The shim that it was in is as good
// as before.
func TestStartThatHangs(t *testing.T) {
	root := t.TempDir()
	rt := open(t, root)
	start(t, rt, runtime.Spec{ID: "before", Group: "g", Args: []string{"ignore"}})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	err := rt.Start(ctx, runtime.Spec{
		ID: "hangs", Group: "g", Image: testImage, Args: []string{"ignore"},
		Security: runtime.Security{Seccomp: `{"defaultAction":"SCMP_ACT_KILL"}`},
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the end of the context", err)
	}
	start(t, rt, runtime.Spec{ID: "after", Group: "g", Args: []string{"ignore"}})
	list, err := rt.List(t.Context(), nil)
	if err != nil || len(list) != 2 {
		t.Fatalf("got %v, %v; want the two that run", list, err)
	}
	if parent(t, list[0].PID) != parent(t, list[1].PID) {
		t.Error("the group has another shim after a start that hung: want the same")
	}
	if runcs := processesOf(containerd.StateDir(root), "hangs"); len(runcs) > 0 {
		t.Errorf("processes %v of the start that hung are left", runcs)
	}
}
