//go:build linux

package containerd_test

import (
	"bufio"
	stdcontext "context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
	"github.com/orchestrate-go/orchestrate/runtime/image"
)

// Some tests need a program of their own, to be killed or because it cannot be
// cleared up. They run this test binary again, with the name of one of these
// in the environment and a folder as the first argument.
const childEnv = "ORCHESTRATE_TEST_CHILD"

var children = map[string]func() error{"serve": serve, "churn": churn, "unified": unified, "daemon": daemonChild, "client-churn": clientChurn, "held": held, "flood": flood}

func child(t *testing.T, name, root string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], root)
	cmd.Env = append(os.Environ(), childEnv+"="+name, childEnv+"_PROGRAM="+program)
	cmd.Stderr = os.Stderr
	return cmd
}

// runUntilReady starts a child and waits for its first line.
func runUntilReady(t *testing.T, name, root string) (kill func()) {
	t.Helper()
	cmd := child(t, name, root)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		cmd.Process.Signal(syscall.SIGKILL)
		cmd.Wait()
	})
	t.Cleanup(kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the child %s said %q, %v: want ready", name, line, err)
	}
	return kill
}

func openChild(opts containerd.Options) (*containerd.Runtime, error) {
	rt, err := containerd.Open(opts)
	if err != nil {
		return nil, err
	}
	img, err := image.FromBinary(testImage, program, image.Options{})
	if err != nil {
		return nil, err
	}
	r := img.Reader()
	defer r.Close()
	_, err = rt.Import(stdcontext.Background(), r)
	return rt, err
}

// serve starts a container that writes for a while, and hangs.
func serve() error {
	rt, err := openChild(containerd.Options{Root: os.Args[1]})
	if err != nil {
		return err
	}
	if err := rt.Start(stdcontext.Background(), runtime.Spec{
		ID: "a", Image: testImage, Args: []string{"lines=20000", "sleep=300ms", "lines=20000", "exit=4"},
	}); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = rt.Wait(stdcontext.Background(), "none")
	for err != nil {
		time.Sleep(time.Hour) // until it is killed
	}
	return nil
}

// A program that is killed loses no container, no exit code and no line.
func TestKilledProgram(t *testing.T) {
	root := t.TempDir()
	runUntilReady(t, "serve", root)()
	rt := open(t, root)
	list, err := rt.List(t.Context(), nil)
	if err != nil || len(list) != 1 || list[0].ID != "a" {
		t.Fatalf("after the kill: got %v, %v; want the container that ran", list, err)
	}
	n := 0
	err = rt.Logs(t.Context(), "a", runtime.LogOptions{Follow: true}, func(l runtime.LogLine) error {
		if got, want := string(l.Text), fmt.Sprint("line ", n%20000+1); got != want {
			return fmt.Errorf("line %d: got %q, want %q", n, got, want)
		}
		n++
		return nil
	})
	if err != nil || n != 40000 {
		t.Errorf("got %d lines, %v; want 40000", n, err)
	}
	exit, err := rt.Wait(t.Context(), "a")
	if err != nil || exit.Code != 4 {
		t.Errorf("got %v, %v; want exit code 4", exit, err)
	}
	if err := rt.Remove(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}

// churn starts, ends and removes containers until it is killed.
func churn() error {
	rt, err := openChild(containerd.Options{Root: os.Args[1]})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	ctx := stdcontext.Background()
	return several(3, func(i int) error {
		for n := 0; ; n++ {
			id := fmt.Sprintf("c%d.%d", i, n%2)
			err := rt.Start(ctx, runtime.Spec{ID: id, Image: testImage, Args: []string{"ignore"}})
			if err == nil && n%3 > 0 {
				err = rt.Remove(ctx, id)
			}
			if err != nil {
				return err
			}
		}
	})
}

// several calls f for 0 to n-1 side by side and returns the first error: it
// does not wait for the others.
func several(n int, f func(i int) error) error {
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- f(i) }()
	}
	for range n {
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
}

// Killed at any moment of its starts and removes, a program leaves nothing
// that the next one cannot clear up.
func TestKilledAtAnyMoment(t *testing.T) {
	rounds := 5
	if os.Getenv("ORCHESTRATE_LONG") != "" {
		rounds = 50
	}
	root := t.TempDir()
	for round := range rounds {
		kill := runUntilReady(t, "churn", root)
		// A moment, not a synchronisation: each is as good as the other.
		time.Sleep(rand.N(400 * time.Millisecond))
		kill()
		rt, err := containerd.Open(containerd.Options{Root: root})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		list, err := rt.List(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			if c.State == runtime.Running {
				if err := syscall.Kill(c.PID, 0); err != nil {
					// It was being killed. Its exit is on its way then, and
					// the test hangs if it is not.
					if _, err := rt.Wait(t.Context(), c.ID); err != nil {
						t.Errorf("round %d: %s is listed as running, its process is not there: %v", round, c.ID, err)
					}
				}
			}
			if err := rt.Remove(t.Context(), c.ID); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		if err := errors.Join(rt.Close(), leftovers(root)); err != nil {
			t.Errorf("round %d, after %d containers were removed: %v", round, len(list), err)
		}
	}
	t.Logf("crashes: %d, at random moments", rounds)
}

// A container whose shim dies is killed, and its exit is seen.
func TestKilledShim(t *testing.T) {
	root := t.TempDir()
	rt := open(t, root)
	start(t, rt, runtime.Spec{ID: "a", Args: []string{"ignore"}})
	list, err := rt.List(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	containerd.Settle(rt) // what starts a shim has its arguments, and ends by itself
	for _, pid := range shims(t, root) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	exit, err := rt.Wait(t.Context(), "a")
	if err != nil || exit.Code != 137 {
		t.Errorf("got %v, %v; want exit code 137", exit, err)
	}
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", list[0].PID)); err == nil && !strings.Contains(string(text), ") Z ") {
		t.Errorf("the process of a container whose shim died is still there: %s", text)
	}
	if err := rt.Start(t.Context(), runtime.Spec{ID: "a", Image: testImage, Args: []string{"exit=2"}}); err != nil {
		t.Fatal(err)
	}
	if exit, err = rt.Wait(t.Context(), "a"); err != nil || exit.Code != 2 {
		t.Errorf("the next run: got %v, %v; want exit code 2", exit, err)
	}
}

// shims returns the processes of a root's shims.
func shims(t *testing.T, root string) (pids []int) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		text, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(text), containerd.StateDir(root)) {
			var pid int
			fmt.Sscanf(p, "/proc/%d/", &pid)
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		t.Fatal("no shim runs")
	}
	return pids
}
