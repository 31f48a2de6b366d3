//go:build linux

package containerd_test

import (
	"context"
	stdcontext "context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
)

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
			begin(t, c, "during", "print=ready", "wait", "exit=3")
			begin(t, c, "after", "print=ready", "wait", "exit=4")
			begin(t, c, "gone", "ignore")
			ready(t, c, "during")
			ready(t, c, "after")
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
	begin(t, c, "ends", "print=ready", "wait", "lines=5000", "exit=7")
	begin(t, c, "runs", "ignore")
	ready(t, c, "ends")
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
	lines := 0
	err = again.Logs(t.Context(), "ends", runtime.LogOptions{Follow: true}, func(runtime.LogLine) error { lines++; return nil })
	if err != nil || lines != 5002 {
		t.Errorf("got %d lines, %v; want 5002, also those that nobody was there for", lines, err)
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

// A container whose shim dies is killed, and its exit is seen.
func TestClientShimKilled(t *testing.T) {
	for name, change := range map[string]func(containerd.ConnectOptions) containerd.ConnectOptions{
		"by shim":          func(o containerd.ConnectOptions) containerd.ConnectOptions { return o },
		"by daemon, alone": containerd.ViaDaemon,
	} {
		t.Run(name, func(t *testing.T) {
			d := startDaemon(t)
			c := connect(t, d, change(containerd.ConnectOptions{}))
			begin(t, c, "a", "ignore")
			pid := c.pid(t, "a")
			for _, shim := range processesOf(d.dir, "containerd-shim") {
				if err := waitForEnd(shim, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			if exit, err := c.Wait(t.Context(), "a"); err != nil || exit.Code != 137 {
				t.Errorf("got %v, %v; want exit code 137", exit, err)
			}
			if err := waitForEnd(pid, 0); err != nil {
				t.Errorf("the process of a container whose shim died: %v", err)
			}
			begin(t, c, "a", "exit=2")
			if exit, err := c.Wait(t.Context(), "a"); err != nil || exit.Code != 2 {
				t.Errorf("the next run: got %v, %v; want exit code 2", exit, err)
			}
		})
	}
}

// clientChurn starts, ends and removes containers until it is killed.
func clientChurn() error {
	root := os.Args[1]
	socket, err := os.Readlink(filepath.Join(root, "socket"))
	if err != nil {
		return err
	}
	c, err := dial(&daemon{socket: socket}, containerd.ConnectOptions{Root: root})
	if err != nil {
		return err
	}
	if err := loadInto(context.Background(), c); err != nil {
		return err
	}
	fmt.Println("ready")
	return several(3, func(i int) error {
		return c.churn(context.Background(), fmt.Sprint("c", i))
	})
}

func (c *connection) churn(ctx stdcontext.Context, name string) error {
	for n := 0; ; n++ {
		id := fmt.Sprintf("%s.%d", name, n%2)
		err := c.Start(ctx, runtime.Spec{ID: id, Image: testImage, Args: []string{"ignore"}})
		if err == nil && n%3 > 0 {
			err = c.Remove(ctx, id)
		}
		if err != nil {
			return err
		}
	}
}

// Killed at any moment of its starts and removes, a program leaves nothing
// that the next Connect cannot clear up, with a daemon that is killed as well
// every other time.
func TestClientKilledAtAnyMoment(t *testing.T) {
	rounds := 6
	if os.Getenv("ORCHESTRATE_LONG") != "" {
		rounds = 50
	}
	d := startDaemon(t)
	root := t.TempDir()
	if err := os.Symlink(d.socket, filepath.Join(root, "socket")); err != nil {
		t.Fatal(err)
	}
	// Where nothing can be started there is nothing to kill the program at.
	c, err := dial(d, containerd.ConnectOptions{Root: root})
	if err == nil {
		err = loadInto(t.Context(), c)
	}
	if err == nil {
		err = c.Start(t.Context(), runtime.Spec{ID: "before", Image: testImage, Args: []string{"ignore"}})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := c.end(d); err != nil {
		t.Fatal(err)
	}
	for round := range rounds {
		kill := runUntilReady(t, "client-churn", root)
		// A moment, not a synchronisation: each is as good as the other.
		time.Sleep(rand.N(400 * time.Millisecond))
		if round%2 > 0 {
			d.kill()
		}
		kill()
		if round%2 > 0 {
			d.start(t)
		}
		c, err := dial(d, containerd.ConnectOptions{Root: root})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		list, err := c.List(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range list {
			if one.State != runtime.Running || unix.Kill(one.PID, 0) == nil {
				continue
			}
			// It was being removed: then its exit is seen.
			if exit, err := c.Wait(t.Context(), one.ID); err != nil || exit.Code != 137 {
				t.Errorf("round %d: %s is listed as running, its process is not there, and Wait gives %v, %v", round, one.ID, exit, err)
			}
		}
		if err := c.end(d); err != nil {
			t.Errorf("round %d, after %d containers were removed: %v", round, len(list), err)
		}
	}
	t.Logf("crashes: %d of the program, %d of the daemon with it, at random moments", rounds, rounds/2)
}

// A daemon that is killed at any moment under a program that goes on fails
// calls at most: it leaves nothing.
func TestDaemonKilledAtAnyMoment(t *testing.T) {
	rounds := 4
	if os.Getenv("ORCHESTRATE_LONG") != "" {
		rounds = 50
	}
	d := startDaemon(t)
	c := connect(t, d, containerd.ConnectOptions{})
	for range rounds {
		ctx, cancel := stdcontext.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				for ctx.Err() == nil {
					c.churn(ctx, fmt.Sprint("c", i))
				}
			})
		}
		time.Sleep(rand.N(400 * time.Millisecond))
		d.kill()
		d.start(t)
		cancel()
		wg.Wait()
	}
	// One that can be started at all is still.
	if err := c.Start(t.Context(), runtime.Spec{ID: "after", Image: testImage, Args: []string{"ignore"}}); err != nil {
		t.Error(err)
	}
	list, err := c.List(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range list {
		if err := c.Remove(t.Context(), one.ID); err != nil {
			t.Error(err)
		}
	}
	if left, err := d.contents("orchestrate"); err != nil || len(left) > 0 {
		t.Errorf("left in containerd: %q, %v; want nothing", left, err)
	}
	t.Logf("crashes: %d of the daemon, at random moments", rounds)
}
