//go:build linux

package containerd_test

import (
	"bufio"
	stdcontext "context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/internal/bare"
)

// daemon is a containerd in a process of its own, that can be killed and
// started again.
type daemon struct {
	dir    string // state, on a tmpfs, with a short path
	root   string
	socket string
	cmd    *exec.Cmd
	stdin  io.Closer
	client *client.Client // another user of it, for looking
}

// daemonChild is the daemon's process. It ends with its parent.
func daemonChild() error {
	dir := os.Args[1]
	if _, err := bare.Serve(filepath.Join(dir, "root"), dir); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// startDaemon runs a daemon until the end of the test, which checks that
// nothing of it is left.
func startDaemon(t *testing.T) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "daemon-")
	if err != nil {
		t.Fatal(err)
	}
	// Layers on the disk: overlayfs is tried on what it is used on.
	d := &daemon{dir: dir, root: t.TempDir(), socket: filepath.Join(dir, "c.sock")}
	if err := os.Symlink(d.root, filepath.Join(dir, "root")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.kill()
		if d.client != nil {
			d.client.Close()
		}
		if err := errors.Join(d.leftovers(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	d.start(t)
	if d.client, err = client.New(d.socket); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *daemon) start(t *testing.T) {
	t.Helper()
	d.cmd = child(t, "daemon", d.dir)
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if d.stdin, err = d.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if os.Getenv("ORCHESTRATE_TEST_VERBOSE") == "" {
		d.cmd.Stderr = nil
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("containerd said %q, %v: want ready", line, err)
	}
}

func (d *daemon) kill() {
	if d.cmd == nil {
		return
	}
	d.cmd.Process.Signal(syscall.SIGKILL)
	d.cmd.Wait()
	d.stdin.Close()
	d.cmd = nil
}

// contents reports what a namespace has that belongs to containers.
func (d *daemon) contents(ns string) (left []string, err error) {
	ctx := namespaces.WithNamespace(stdcontext.Background(), ns)
	list, err := d.client.Containers(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		left = append(left, "container "+c.ID())
	}
	boxes, err := d.client.SandboxStore().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range boxes {
		left = append(left, "sandbox "+b.ID)
	}
	for _, name := range []string{"overlayfs", "native"} {
		err = d.client.SnapshotService(name).Walk(ctx, func(_ stdcontext.Context, s snapshots.Info) error {
			if s.Kind == snapshots.KindActive {
				left = append(left, "snapshot "+s.Name)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	// It clears up after a call that its caller did not live to see the end
	// of by and by.
	dirs, err := filepath.Glob(filepath.Join(d.dir, "state", "*", ns))
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		bundles, err := emptied(dir)
		if err != nil {
			return nil, err
		}
		left = append(left, bundles...)
	}
	return left, nil
}

// emptied waits until a folder is empty, or until nothing has left it for ten
// seconds, and returns what is in it then. A name with a dot is one that a daemon
// which was killed was just deleting; no daemon comes back to it.
func emptied(dir string) ([]string, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_DELETE|unix.IN_MOVED_FROM); err != nil {
		return nil, err
	}
	for buf := make([]byte, 64<<10); ; {
		left, err := filepath.Glob(filepath.Join(dir, "[^.]*"))
		if err != nil || len(left) == 0 {
			return nil, err
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return left, err
		}
		if _, err := unix.Read(fd, buf); err != nil {
			return nil, err
		}
	}
}

// leftovers reports what a daemon without containers has left outside of its
// folders.
func (d *daemon) leftovers() error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range []string{d.dir, d.root} {
		if strings.Contains(string(mounts), dir) {
			errs = append(errs, fmt.Errorf("a mount in %s is left", dir))
		}
	}
	if left := processesOf(d.dir, ""); len(left) > 0 {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", left[0]))
		errs = append(errs, fmt.Errorf("processes are left: %v, the first is %q", left, text))
	}
	return errors.Join(errs...)
}

// processesOf returns the processes that have both in their arguments.
func processesOf(dir, name string) (pids []int) {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		text, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(text), dir) && strings.Contains(string(text), name) {
			var pid int
			fmt.Sscanf(p, "/proc/%d/", &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}
