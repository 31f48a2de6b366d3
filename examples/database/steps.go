package main

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/local"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// demonstration is what the steps have in common.
type demonstration struct {
	fleet   *local.Fleet
	say     func(format string, args ...any)
	ledgers []*ledger // by slot
}

func (d *demonstration) apply(ctx context.Context, s orchestrate.Service) error {
	if err := d.fleet.Apply(ctx, s); err != nil {
		return err
	}
	return d.settled(ctx)
}

// settled waits for the end of a rollout and tells where the slots are.
func (d *demonstration) settled(ctx context.Context) error {
	result, err := d.fleet.Wait(ctx, "db")
	if err != nil {
		return err
	}
	if err := result.Err(); err != nil {
		return err
	}
	tasks, err := d.fleet.Tasks(ctx, "db")
	if err != nil {
		return err
	}
	var places []string
	for _, t := range tasks {
		places = append(places, fmt.Sprintf("db-%d on %s", t.Slot, t.Node))
	}
	d.say("  %s after %.1f s: %s", result.Outcome, result.Ended.Sub(result.Started).Seconds(), strings.Join(places, ", "))
	return nil
}

// task is the one that a slot has now.
func (d *demonstration) task(ctx context.Context, slot int) (orchestrate.Task, error) {
	tasks, err := d.fleet.Tasks(ctx, "db")
	if err != nil {
		return orchestrate.Task{}, err
	}
	for _, t := range tasks {
		if t.Slot == slot && t.Stopping == "" {
			return t, nil
		}
	}
	return orchestrate.Task{}, fmt.Errorf("slot %d has no task", slot)
}

// until asks again and again until a slot is as it should be.
func (d *demonstration) until(ctx context.Context, slot int, what string, is func(orchestrate.Task) bool) (orchestrate.Task, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		if t, err := d.task(ctx, slot); err == nil && is(t) {
			return t, nil
		}
		select {
		case <-ctx.Done():
			return orchestrate.Task{}, fmt.Errorf("db-%d is not %s: %w", slot, what, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// check compares what the servers hold with what they have acknowledged.
func (d *demonstration) check(ctx context.Context) error {
	for _, l := range d.ledgers {
		n, err := l.verify(ctx)
		if err != nil {
			return err
		}
		d.say("  db-%d holds all %d entries that it has acknowledged", l.slot, n)
	}
	return nil
}

func (d *demonstration) stopWriting() {
	for _, l := range d.ledgers {
		l.stop()
	}
}

// start has two slots come up, one after the other, find each other by name,
// and be written to.
func (d *demonstration) start(ctx context.Context) error {
	d.say("applying service db: two slots, each with a volume of its own")
	if err := d.apply(ctx, db(2, "500", orchestrate.RetainVolumes)); err != nil {
		return err
	}
	t, err := d.task(ctx, 0)
	if err != nil {
		return err
	}
	var out strings.Builder
	code, err := d.fleet.Exec(ctx, t.ID, "", runtime.Exec{Args: []string{"/usr/bin/redis-cli", "-h", "db-1.db", "ping"}, Stdout: &out})
	if err != nil || code != 0 {
		return fmt.Errorf("db-0 does not reach db-1.db: exit code %d, %w", code, err)
	}
	d.say("  db-0 asks db-1.db: %s", strings.TrimSpace(out.String()))
	for slot := range 2 {
		l := &ledger{demo: d, slot: slot}
		l.start(ctx)
		d.ledgers = append(d.ledgers, l)
	}
	d.say("  a ledger in each is written to from now on")
	return nil
}

// kill ends a server as a crash does.
func (d *demonstration) kill(ctx context.Context) error {
	before, err := d.until(ctx, 0, "ready", func(t orchestrate.Task) bool { return t.State == orchestrate.Ready && t.Containers[0].PID > 0 })
	if err != nil {
		return err
	}
	d.say("killing the server of db-0 (process %d)", before.Containers[0].PID)
	if err := syscall.Kill(before.Containers[0].PID, syscall.SIGKILL); err != nil {
		return err
	}
	after, err := d.until(ctx, 0, "restarted", func(t orchestrate.Task) bool { return t.State == orchestrate.Ready && t.Restarts > before.Restarts })
	if err != nil {
		return err
	}
	d.say("  it is back in place on %s, with its address and its volume", after.Node)
	return d.check(ctx)
}

// move has a slot leave its node.
func (d *demonstration) move(ctx context.Context) error {
	before, err := d.task(ctx, 1)
	if err != nil {
		return err
	}
	d.say("draining %s, which has db-1", before.Node)
	if err := d.fleet.Drain(ctx, before.Node); err != nil {
		return err
	}
	after, err := d.until(ctx, 1, "moved", func(t orchestrate.Task) bool { return t.State == orchestrate.Ready && t.Node != before.Node })
	if err != nil {
		return err
	}
	d.say("  db-1 is on %s, and so is its volume", after.Node)
	if err := d.fleet.Uncordon(ctx, before.Node); err != nil {
		return err
	}
	return d.check(ctx)
}

// update changes the servers' configuration.
func (d *demonstration) update(ctx context.Context) error {
	d.say("updating: from 500 clients at most to 600; the highest slot first, one at a time")
	if err := d.apply(ctx, db(2, "600", orchestrate.RetainVolumes)); err != nil {
		return err
	}
	return d.check(ctx)
}

// scale takes a slot away, and brings it back.
func (d *demonstration) scale(ctx context.Context) error {
	d.ledgers[1].stop()
	d.say("scaling to one slot, and back to two")
	for _, n := range []int{1, 2} {
		if err := d.fleet.Scale(ctx, "db", n); err != nil {
			return err
		}
		if err := d.settled(ctx); err != nil {
			return err
		}
	}
	d.ledgers[1].start(ctx)
	return d.check(ctx)
}

// lose has the agent of a node die. Its containers run on, and nobody can say
// what they do: so the slot waits until the node has stopped them by itself.
func (d *demonstration) lose(ctx context.Context) error {
	before, err := d.task(ctx, 0)
	if err != nil {
		return err
	}
	d.say("losing %s, which has db-0: its agent is dead, and the server runs on", before.Node)
	lost := time.Now()
	if err := d.fleet.StopNode(before.Node); err != nil {
		return err
	}
	after, err := d.until(ctx, 0, "elsewhere", func(t orchestrate.Task) bool { return t.State == orchestrate.Ready && t.Node != before.Node })
	if err != nil {
		return err
	}
	d.say("  db-0 is on %s after %.1f s: when it was certain that it had stopped", after.Node, time.Since(lost).Seconds())
	if err := d.fleet.StartNode(before.Node); err != nil {
		return err
	}
	return d.check(ctx)
}

// shrink takes a slot away for good.
func (d *demonstration) shrink(ctx context.Context) error {
	d.ledgers[1].stop()
	d.say("scaling to one slot, with the policy to delete what is left")
	if err := d.apply(ctx, db(1, "600", orchestrate.DeleteVolumes)); err != nil {
		return err
	}
	volumes, err := d.fleet.Volumes(ctx)
	if err != nil {
		return err
	}
	if len(volumes) != 1 || volumes[0].Name != "db-0.data" {
		return fmt.Errorf("the volumes are %v, want that of db-0 alone", volumes)
	}
	d.say("  the volume of db-1 is gone, that of db-0 is there")
	d.ledgers = d.ledgers[:1]
	return d.check(ctx)
}
