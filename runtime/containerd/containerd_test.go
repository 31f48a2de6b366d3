//go:build linux

package containerd_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
)

func TestExitCode(t *testing.T) {
	rt := open(t, t.TempDir())
	start(t, rt, runtime.Spec{ID: "a", Args: []string{"exit=3"}})
	exit, err := rt.Wait(t.Context(), "a")
	if err != nil || exit.Code != 3 || exit.OOMKilled {
		t.Errorf("Wait: got %v, %v; want exit code 3", exit, err)
	}
}

// Two fleets in one process have a runtime each, and the same IDs in both.
func TestTwoInOneProcess(t *testing.T) {
	a, b := open(t, t.TempDir()), open(t, t.TempDir())
	start(t, a, runtime.Spec{ID: "x", Args: []string{"wait", "exit=1"}})
	start(t, b, runtime.Spec{ID: "x", Args: []string{"wait", "exit=2"}})
	for want, rt := range map[int]*containerd.Runtime{1: a, 2: b} {
		if err := rt.Kill(t.Context(), "x", runtime.SIGKILL); err != nil {
			t.Fatal(err)
		}
		exit, err := rt.Wait(t.Context(), "x")
		if err != nil || exit.Code != 137 {
			t.Errorf("runtime %d: got %v, %v; want exit code 137", want, exit, err)
		}
	}
}

func TestLock(t *testing.T) {
	root := t.TempDir()
	open(t, root)
	if rt, err := containerd.Open(containerd.Options{Root: root}); !errors.Is(err, containerd.ErrLocked) {
		rt.Close()
		t.Errorf("second Open of a root: got %v, want ErrLocked", err)
	}
}

func TestCloseAndAdopt(t *testing.T) {
	root := t.TempDir()
	rt, err := containerd.Open(containerd.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	load(t, rt)
	for _, spec := range []runtime.Spec{
		{ID: "runs", Args: []string{"ignore"}, Labels: map[string]string{"k": "v"}},
		{ID: "ends", Args: []string{"sleep=300ms", "exit=7"}},
	} {
		spec.Image = testImage
		if err := rt.Start(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
	}
	before, err := rt.List(t.Context(), map[string]string{"k": "v"})
	if err != nil || len(before) != 1 {
		t.Fatalf("List by label: got %v, %v; want one container", before, err)
	}
	if err := rt.Close(); err != nil {
		t.Fatal(err)
	}
	rt = open(t, root)
	exit, err := rt.Wait(t.Context(), "ends")
	if err != nil || exit.Code != 7 {
		t.Errorf("a container that ended while nobody was there: got %v, %v; want exit code 7", exit, err)
	}
	after, err := rt.List(t.Context(), map[string]string{"k": "v"})
	if err != nil || len(after) != 1 || after[0].PID != before[0].PID || after[0].State != runtime.Running {
		t.Errorf("adopted: got %+v, %v; want the same process as %+v", after, err, before)
	}
	for _, id := range []string{"runs", "ends"} {
		if err := rt.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

// Runtimes of other roots remove the folder that all have theirs in whenever they
// find it empty.
func TestSharedFolderComesAndGoes(t *testing.T) {
	shared := filepath.Join(t.TempDir(), "run")
	ctx, cancel := context.WithCancel(t.Context())
	var others sync.WaitGroup
	defer others.Wait()
	defer cancel()
	for range 2 {
		others.Go(func() {
			for ctx.Err() == nil {
				os.Remove(shared)
			}
		})
	}
	for i := range 300 {
		dir := filepath.Join(shared, "ours")
		if err := containerd.MakeFolders(dir); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// What is wrong with a device is said with its name.
func TestDeviceErrors(t *testing.T) {
	rt := open(t, t.TempDir())
	for _, source := range []string{"/dev/none-of-that-name", "/etc/passwd"} {
		err := rt.Start(t.Context(), runtime.Spec{ID: "a", Image: testImage, Args: []string{"exit=0"}, Devices: []runtime.Device{{Source: source}}})
		if err == nil || !strings.Contains(err.Error(), source) {
			t.Errorf("Start with the device %s: got %v, want an error that names it", source, err)
		}
	}
}
