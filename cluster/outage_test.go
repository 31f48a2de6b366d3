//go:build linux

package cluster_test

import (
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
)

// TestOutage has the only control plane, and etcd with it, killed for longer than
// leases, LostAfter and promises last. A container that crashes meanwhile is
// restarted and answers; a slot that must not run twice has stopped by itself; and
// afterwards the same tasks are there.
func TestOutage(t *testing.T) {
	opts := brisk
	opts.controls, opts.nodes = 1, 1
	w := newWorld(t, opts)
	w.up(w.web(1, 18080))
	w.up(w.ledger(1, 18081))
	web, ledger := w.tasks("web")[0], w.tasks("ledger")[0]
	answers := func(port uint16) func() bool {
		return func() bool {
			_, err := w.get("n1", port, "/")
			return err == nil
		}
	}
	if err := w.process("a").Kill(); err != nil {
		t.Fatal(err)
	}
	w.until(opts.nodeTTL+opts.fenceGrace+10*time.Second, "the slot has stopped by itself", func() bool { return !answers(18081)() })
	if err := syscall.Kill(web.Containers[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.until(10*time.Second, "the container that was killed is gone", func() bool {
		return syscall.Kill(web.Containers[0].PID, 0) == syscall.ESRCH
	})
	w.until(10*time.Second, "it answers again without a control plane", answers(18080))

	w.start("a")
	w.ready("a")
	var now, slot orchestrate.Task
	w.until(30*time.Second, "the fleet knows of the restart", func() bool {
		tasks := w.tasks("web")
		if len(tasks) == 1 {
			now = tasks[0]
		}
		return len(tasks) == 1 && now.State == orchestrate.Ready && now.Restarts > 0
	})
	if now.ID != web.ID || now.Restarts != 1 {
		t.Errorf("the task is %s with %d restarts, want %s with one", now.ID, now.Restarts, web.ID)
	}
	w.until(30*time.Second, "the slot runs again", answers(18081))
	w.until(30*time.Second, "the slot has one task", func() bool {
		tasks := w.tasks("ledger")
		if len(tasks) == 1 {
			slot = tasks[0]
		}
		return len(tasks) == 1 && slot.State == orchestrate.Ready
	})
	if slot.ID == ledger.ID {
		t.Errorf("the slot's task is still %s, which had stopped", slot.ID)
	}
	if _, err := os.Stat(w.shared("witness/twice")); !os.IsNotExist(err) {
		t.Errorf("the slot has run twice (%v)", err)
	}
}
