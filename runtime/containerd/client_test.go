//go:build linux

package containerd_test

import (
	stdcontext "context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
	"github.com/orchestrate-go/orchestrate/runtime/image"
	"github.com/orchestrate-go/orchestrate/runtime/runtimetest"
)

// connection is a Client as a test uses it.
type connection struct {
	*containerd.Client
	opts containerd.ConnectOptions
}

func dial(d *daemon, opts containerd.ConnectOptions) (*connection, error) {
	opts.Address, opts.BinDir = d.socket, os.Getenv("ORCHESTRATE_BIN")
	c, err := containerd.Connect(opts)
	if err != nil {
		return nil, err
	}
	return &connection{c, opts}, nil
}

// loadInto gives a runtime the test image.
func loadInto(ctx stdcontext.Context, rt runtime.Importer) error {
	img, err := image.FromBinary(testImage, program, image.Options{})
	if err != nil {
		return err
	}
	r := img.Reader()
	defer r.Close()
	_, err = rt.Import(ctx, r)
	return err
}

// connect opens a Client that has the test image, until the end of the test,
// when nothing of its containers may be left.
func connect(t *testing.T, d *daemon, opts containerd.ConnectOptions) *connection {
	t.Helper()
	if opts.Root == "" {
		opts.Root = t.TempDir()
	}
	c, err := dial(d, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.end(d); err != nil {
			t.Error(err)
		}
	})
	if err := loadInto(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	return c
}

// end removes all containers, closes, and reports what is left.
func (c *connection) end(d *daemon) error {
	ctx := context()
	list, err := c.List(ctx, nil)
	for _, one := range list {
		err = errors.Join(err, c.Remove(ctx, one.ID))
	}
	if errors.Is(err, runtime.ErrClosed) {
		return nil // the test had it closed
	}
	return errors.Join(err, c.Close(), c.leftovers(d))
}

func (c *connection) leftovers(d *daemon) error {
	ns := c.opts.Namespace
	if ns == "" {
		ns = "orchestrate"
	}
	left, err := d.contents(ns)
	if err != nil || len(left) > 0 {
		return fmt.Errorf("left in containerd: %q, %w", left, err)
	}
	var errs []error
	state := containerd.StateDir(c.opts.Root)
	for _, pattern := range []string{
		state, "/sys/fs/cgroup/*/orchestrate/" + filepath.Base(state), "/sys/fs/cgroup/orchestrate/" + filepath.Base(state),
	} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			errs = append(errs, fmt.Errorf("left: %v", left))
		}
	}
	// The daemon is one, a shim would be another.
	return errors.Join(errs...)
}

func TestClientConformance(t *testing.T) {
	for name, change := range map[string]func(containerd.ConnectOptions) containerd.ConnectOptions{
		"by shim":          func(o containerd.ConnectOptions) containerd.ConnectOptions { return o },
		"by daemon, alone": containerd.ViaDaemon,
		"native snapshots": func(o containerd.ConnectOptions) containerd.ConnectOptions { o.Snapshotter = "native"; return o },
	} {
		t.Run(name, func(t *testing.T) {
			d := startDaemon(t)
			registry := startRegistry(t, nil)
			var cases atomic.Int32
			var opened *connection
			runtimetest.Test(t, runtimetest.Harness{
				Image: testImage, Missing: registry + "/none:1", System: true,
				Open: func(ctx stdcontext.Context) (runtime.Runtime, func() error, error) {
					root, err := os.MkdirTemp("", "conformance-")
					if err != nil {
						return nil, nil, err
					}
					opened, err = dial(d, change(containerd.ConnectOptions{Root: root, Namespace: fmt.Sprint("case", cases.Add(1))}))
					if err != nil {
						return nil, nil, err
					}
					return opened.Client, func() error { return errors.Join(opened.end(d), os.RemoveAll(root)) }, loadInto(ctx, opened)
				},
				Restart: func(ctx stdcontext.Context, rt runtime.Runtime) (runtime.Runtime, func() error, error) {
					root := opened.opts.Root
					if err := opened.Close(); err != nil {
						return nil, nil, err
					}
					var err error
					if opened, err = dial(d, opened.opts); err != nil {
						return nil, nil, err
					}
					return opened.Client, func() error { return errors.Join(opened.end(d), os.RemoveAll(root)) }, nil
				},
			})
		})
	}
}

func begin(t *testing.T, c *connection, id string, args ...string) {
	t.Helper()
	if err := c.Start(t.Context(), runtime.Spec{ID: id, Image: testImage, Args: args}); err != nil {
		t.Fatal(err)
	}
}

func (c *connection) pid(t *testing.T, id string) int {
	t.Helper()
	list, err := c.List(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range list {
		if one.ID == id {
			return one.PID
		}
	}
	t.Fatalf("%s is not listed", id)
	return 0
}

// A daemon that is killed takes no container with it, ends no Wait and loses
// no exit, whether the container ends before it is back or after.
func TestDaemonKilled(t *testing.T) {
	for name, change := range map[string]func(containerd.ConnectOptions) containerd.ConnectOptions{
		"by shim":          func(o containerd.ConnectOptions) containerd.ConnectOptions { return o },
		"by daemon, alone": containerd.ViaDaemon,
	} {
		t.Run(name, func(t *testing.T) {
			d := startDaemon(t)
			c := connect(t, d, change(containerd.ConnectOptions{}))
			begin(t, c, "during", "wait", "exit=3")
			begin(t, c, "after", "wait", "exit=4")
			begin(t, c, "gone", "ignore")
			type result struct {
				id   string
				exit runtime.Exit
				err  error
			}
			results := make(chan result, 2)
			for _, id := range []string{"during", "after"} {
				go func() {
					exit, err := c.Wait(t.Context(), id)
					results <- result{id, exit, err}
				}()
			}
			pid := c.pid(t, "during")
			d.kill()
			if err := c.Kill(t.Context(), "during", runtime.SIGTERM); err != nil {
				t.Errorf("Kill without a daemon: got %v, want nil", err)
			}
			if got, err := c.List(t.Context(), nil); err != nil || len(got) != 3 {
				t.Errorf("List without a daemon: got %v, %v; want three containers", got, err)
			}
			if err := waitForEnd(pid, 0); err != nil {
				t.Fatal(err)
			}
			d.start(t)
			if err := c.Kill(t.Context(), "after", runtime.SIGTERM); err != nil {
				t.Error(err)
			}
			for range 2 {
				r := <-results
				if want := map[string]int{"during": 3, "after": 4}[r.id]; r.err != nil || r.exit.Code != want || r.exit.OOMKilled {
					t.Errorf("Wait for %s: got %v, %v; want exit code %d", r.id, r.exit, r.err, want)
				}
			}
			code, err := c.Exec(t.Context(), "gone", runtime.Exec{Args: []string{"/program", "exit=6"}})
			if err != nil || code != 6 {
				t.Errorf("Exec after the restart: got %d, %v; want 6", code, err)
			}
			if err := c.Remove(t.Context(), "gone"); err != nil {
				t.Error(err)
			}
			begin(t, c, "gone", "exit=5")
			if exit, err := c.Wait(t.Context(), "gone"); err != nil || exit.Code != 5 {
				t.Errorf("a start after the restart: got %v, %v; want exit code 5", exit, err)
			}
		})
	}
}

// waitForEnd sends a process a signal, if not zero, and waits for its end,
// which its parent, a shim, may not have seen yet.
func waitForEnd(pid int, signal unix.Signal) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	if n == 0 {
		return fmt.Errorf("process %d does not end", pid)
	}
	return err
}

// Neither the program nor the daemon is there when containers end.
func TestBothGone(t *testing.T) {
	d := startDaemon(t)
	c := connect(t, d, containerd.ConnectOptions{})
	begin(t, c, "ends", "print=out", "wait", "exit=7")
	begin(t, c, "runs", "ignore")
	ends, runs := c.pid(t, "ends"), c.pid(t, "runs")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	d.kill()
	if err := waitForEnd(ends, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.start(t)
	again, err := dial(d, c.opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := again.end(d); err != nil {
			t.Error(err)
		}
	})
	if exit, err := again.Wait(t.Context(), "ends"); err != nil || exit.Code != 7 {
		t.Errorf("got %v, %v; want exit code 7", exit, err)
	}
	if got := again.pid(t, "runs"); got != runs {
		t.Errorf("a container that ran on has the process %d, want %d", got, runs)
	}
	if err := again.Kill(t.Context(), "runs", runtime.SIGKILL); err != nil {
		t.Error(err)
	}
	if exit, err := again.Wait(t.Context(), "runs"); err != nil || exit.Code != 137 {
		t.Errorf("got %v, %v; want exit code 137", exit, err)
	}
}

// A call that needs the daemon waits for it, until its context ends.
func TestCallWithoutDaemon(t *testing.T) {
	d := startDaemon(t)
	c := connect(t, d, containerd.ConnectOptions{})
	d.kill()
	ctx, cancel := stdcontext.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := c.Start(ctx, runtime.Spec{ID: "a", Image: testImage}); !errors.Is(err, stdcontext.DeadlineExceeded) {
		t.Errorf("Start: got %v, want context.DeadlineExceeded", err)
	}
	started := make(chan error, 1)
	go func() {
		started <- c.Start(t.Context(), runtime.Spec{ID: "a", Image: testImage, Args: []string{"exit=2"}})
	}()
	d.start(t)
	if err := <-started; err != nil {
		t.Errorf("a start that waited for the daemon: got %v, want nil", err)
	}
	if exit, err := c.Wait(t.Context(), "a"); err != nil || exit.Code != 2 {
		t.Errorf("got %v, %v; want exit code 2", exit, err)
	}
}

func TestConnectErrors(t *testing.T) {
	if _, err := containerd.Connect(containerd.ConnectOptions{}); err == nil {
		t.Error("without Root: got nil, want an error")
	}
	root := t.TempDir()
	opts := containerd.ConnectOptions{Root: root, Address: filepath.Join(root, "none.sock")}
	if _, err := containerd.Connect(opts); !errors.Is(err, containerd.ErrNoDaemon) {
		t.Errorf("without a daemon: got %v, want ErrNoDaemon", err)
	}
	d := startDaemon(t)
	c := connect(t, d, containerd.ConnectOptions{Root: root})
	if _, err := dial(d, c.opts); !errors.Is(err, containerd.ErrLocked) {
		t.Errorf("a second Client of a Root: got %v, want ErrLocked", err)
	}
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Errorf("Close twice: %v", err)
	}
	if err := c.Start(t.Context(), runtime.Spec{ID: "a", Image: testImage}); !errors.Is(err, runtime.ErrClosed) {
		t.Errorf("Start after Close: got %v, want ErrClosed", err)
	}
}
