//go:build linux

package bridge

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
)

// crowded has fewer addresses than the child has tasks, so that they are
// handed round all the time.
var crowded = network.Network{Name: "crowded", Subnets: []netip.Prefix{netip.MustParsePrefix("10.76.0.0/28"), netip.MustParsePrefix("fd00:76::/64")}}

const (
	optionsEnv = "BRIDGE_TEST_OPTIONS"
	tasks      = 20
)

// attachChild attaches and detaches from many goroutines until it is killed.
func attachChild() error {
	var options Options
	if err := json.Unmarshal([]byte(os.Getenv(optionsEnv)), &options); err != nil {
		return err
	}
	ctx := context.Background()
	d, err := Open(options)
	if err != nil {
		return err
	}
	if err := d.Ensure(ctx, crowded); err != nil {
		return err
	}
	errs := make(chan error)
	for g := range 4 {
		go func() {
			for {
				id := fmt.Sprintf("t%d", g+4*rand.IntN(tasks/4))
				if err := d.churn(ctx, id); err != nil {
					errs <- err
				}
			}
		}()
	}
	fmt.Println("running")
	return <-errs
}

// churn attaches a task, or takes it away.
func (d *Driver) churn(ctx context.Context, id string) error {
	if rand.IntN(2) == 0 {
		if err := d.Detach(ctx, network.Attachment{Network: crowded.Name, Task: id, Interface: "eth0"}); err != nil {
			return err
		}
		return d.Delete(ctx, id)
	}
	path, err := d.Create(ctx, id, nil)
	if err != nil {
		return err
	}
	_, err = d.Attach(ctx, network.Attachment{Network: crowded.Name, Task: id, Namespace: path, Interface: "eth0", Default: true})
	if err != nil && len(d.tasksOn(crowded.Name)) > 5 {
		return nil // full
	}
	return err
}

// A program is killed at random moments while it attaches and detaches. After
// each death no address has two owners, what is written down and what is on
// interfaces agree, and everything can be used and taken away.
func TestKill(t *testing.T) {
	w := newWorld(t)
	options, err := json.Marshal(w.opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(optionsEnv, string(options))
	if err := w.d.Close(); err != nil {
		t.Fatal(err)
	}
	const rounds = 25
	for round := range rounds {
		child := w.startChild(nil, "attach")
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond) // the moment of death
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait() // killed
		w.open()
		w.checkOwners(round)
		if err := w.d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	w.open()
	w.ensure(crowded)
	// What is left can be attached again, with what it had, and detached.
	all, err := w.d.Attachments(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if _, err := w.d.Create(t.Context(), a.Task, nil); err != nil {
			t.Fatal(err)
		}
		asked := a
		asked.Addresses = nil
		got, err := w.d.Attach(t.Context(), asked)
		if err != nil || len(a.Addresses) == 2 && got.Addresses[0].Addr() != a.Addresses[0] {
			t.Errorf("attach %s again: %v, %v, want %v", a.Task, got.Addresses, err, a.Addresses)
		}
	}
	w.checkOwners(-1)
	for _, a := range all {
		if err := w.d.Detach(t.Context(), a); err != nil {
			t.Error(err)
		}
	}
	if err := w.d.Remove(t.Context(), crowded.Name); err != nil {
		t.Error(err)
	}
	t.Logf("crashes: %d, at random moments", rounds)
}

// checkOwners looks into the namespaces.
func (w *world) checkOwners(round int) {
	w.Helper()
	all, err := w.d.Attachments(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	written := map[netip.Addr]string{}
	for _, a := range all {
		for _, addr := range a.Addresses {
			if other, taken := written[addr]; taken {
				w.Errorf("round %d: %s is written down for %s and %s", round, addr, other, a.Task)
			}
			written[addr] = a.Task
		}
	}
	ids, err := w.d.List(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	for _, id := range ids {
		ns, err := os.Open(w.opts.Dir + "/netns/" + id)
		if err != nil {
			w.Fatal(err)
		}
		c, err := dial(ns)
		if err != nil {
			w.Fatal(err)
		}
		addresses, err := c.AddrList(nil, unix.AF_UNSPEC)
		if err != nil {
			w.Fatal(err)
		}
		for _, a := range addresses {
			p, _ := prefixOf(a.IPNet)
			if p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() {
				continue
			}
			if written[p.Addr()] != id {
				w.Errorf("round %d: %s is on an interface of %s and written down for %q", round, p.Addr(), id, written[p.Addr()])
			}
		}
		c.Close()
		_ = ns.Close() // read-only
	}
}

// The same without deaths, against the driver itself: the file system and the
// pool agree whatever the order.
func TestChurn(t *testing.T) {
	w := newWorld(t)
	w.ensure(crowded)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for range 15 {
				if err := w.d.churn(t.Context(), fmt.Sprintf("t%d", g+4*rand.IntN(tasks/4))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	w.checkOwners(0)
	before, err := w.d.Attachments(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.reopen()
	after, err := w.d.Attachments(t.Context())
	if err != nil || fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("Attachments after a restart = %v, %v, want %v", after, err, before)
	}
	inUse := w.d.nets[crowded.Name].pools[0].InUse()
	if inUse != len(after) {
		t.Errorf("%d addresses are in use, want %d", inUse, len(after))
	}
}
