//go:build linux

package containerd_test

import (
	stdcontext "context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
)

// unified runs containers where it sees cgroups of version 2 alone, with the
// controllers that the kernel does not keep for version 1: often none, but
// runc, the shim and this package all go the way of version 2.
func unified() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount cgroup2: %w", err)
	}
	ctx, root := stdcontext.Background(), os.Args[1]
	rt, err := openChild(containerd.Options{Root: root})
	if err != nil {
		return err
	}
	for _, spec := range []runtime.Spec{
		{ID: "runs", Args: []string{"ignore"}},
		{ID: "ends", Args: []string{"exit=5"}},
		{ID: "devices", Args: []string{"write=/dev/null", "exit=0"}},
	} {
		spec.Image = testImage
		if err := rt.Start(ctx, spec); err != nil {
			return err
		}
	}
	for id, want := range map[string]int{"ends": 5, "devices": 0} {
		if exit, err := rt.Wait(ctx, id); err != nil || exit.Code != want || exit.OOMKilled {
			return fmt.Errorf("%s: got %v, %w; want exit code %d", id, exit, err, want)
		}
	}
	list, err := rt.List(ctx, nil)
	if err != nil || len(list) != 3 {
		return fmt.Errorf("got %v, %w; want three containers", list, err)
	}
	pid := list[2].PID
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || !strings.Contains(string(text), "0::/orchestrate/") {
		return fmt.Errorf("the container is in the cgroups %q, %w; want one of version 2 that is its own", text, err)
	}
	if code, err := rt.Exec(ctx, "runs", runtime.Exec{Args: []string{"/program", "exit=6"}}); err != nil || code != 6 {
		return fmt.Errorf("exec: got %d, %w; want 6", code, err)
	}
	if stats, err := rt.Stats(ctx, "runs"); err != nil || stats.CPU == 0 {
		return fmt.Errorf("stats: got %+v, %w; want processor time", stats, err)
	}
	if err := rt.Close(); err != nil {
		return err
	}
	if rt, err = openChild(containerd.Options{Root: root}); err != nil {
		return err
	}
	if list, err = rt.List(ctx, nil); err != nil || len(list) != 3 || list[2].PID != pid {
		return fmt.Errorf("adopted: got %v, %w; want the process %d", list, err, pid)
	}
	for _, c := range list {
		if err := rt.Remove(ctx, c.ID); err != nil {
			return err
		}
	}
	if err := errors.Join(rt.Close(), leftovers(root)); err != nil {
		return err
	}
	fmt.Println("ready")
	return nil
}

func TestUnifiedCgroups(t *testing.T) {
	cmd := child(t, "unified", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if out, err := cmd.Output(); err != nil || string(out) != "ready\n" {
		t.Errorf("the child said %q, %v", out, err)
	}
}
