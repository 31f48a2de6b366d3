package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/store"
)

// A slot that is run at most once may be given to another node when this one is
// silent. So this node must have stopped its task by then, without being told.
// What that rests on, with L the TTL of the node's lease as granted, G the
// FenceGrace, and M the runtime's HoldMargin:
//
//   - The node's clock counts from s, the moment before the last renewal that
//     succeeded was sent. The store received it later. A registration counts as
//     one once the node's Alive record is in the store under the lease.
//   - At s+L the agent begins to stop what is fenced. It needs not begin before:
//     as long as the store can believe the lease to be alive, nobody is given
//     anything. Renewals are tried three times in L and more often when one has
//     failed, so two may be lost.
//   - At s+L+G the runtime kills what is left, whether or not the agent lives:
//     see runtime.Holder. By s+L+G+M it is dead.
//   - The leader waits for record.Node.Fence from when it saw that the Alive
//     record was gone, which can be no earlier than s. That the record outlived
//     s by up to L is not taken off: a store that is opened again, or a lease
//     that was revoked, takes it away at once.
//   - Two clocks that both should count seconds may do so at different rates.
//     Each is taken to be off by at most ClockDrift, so what the node counts as
//     L+G+M takes at most (L+G+M)/(1-d) seconds, in which the leader's clock
//     counts at most (L+G+M)(1+d)/(1-d): that is the promise.
//
// With the defaults, 5 s + 10 s + 2 s, it is 18.8 s, within the 30 s after which
// a node counts as lost: then promises cost no time at all.
//
// Clocks that stop are another thing: a machine that is suspended and wakes up
// knows nothing of the time between, and runs for a moment what another runs
// too. Against that a volume's fence helps; see volume.Fencer.

// ClockDrift is how much faster or slower than a second per second a machine's
// clock may count, for [record.Node.Fence] to hold. Quartz is off by less than
// 0.02 %, and a clock that is being set slews by at most 0.05 % (adjtimex(2)).
const ClockDrift = 0.05

// DefaultFenceGrace is the default of [Options.FenceGrace].
const DefaultFenceGrace = 10 * time.Second

// promise is record.Node.Fence of a node whose lease lasts ttl.
func promise(ttl, grace time.Duration) time.Duration {
	total := float64(ttl + grace + runtime.HoldMargin)
	return time.Duration(math.Ceil(total * (1 + ClockDrift) / (1 - ClockDrift)))
}

// tenure is the time for which a node may run what is fenced.
type tenure struct {
	agent  *Agent
	log    *slog.Logger
	grace  time.Duration
	holder runtime.Holder // nil: nobody else would stop it

	mu           sync.Mutex // guards what follows
	registration string     // empty while there is none
	until        time.Time
	timer        *time.Timer
	changed      chan struct{} // closed and made anew with each registration
}

func newTenure(a *Agent) *tenure {
	t := &tenure{agent: a, log: a.log, grace: a.opts.FenceGrace, changed: make(chan struct{})}
	t.holder, _ = a.opts.Runtime.(runtime.Holder)
	t.timer = time.AfterFunc(time.Hour, t.expire)
	t.timer.Stop()
	return t
}

// holds reports whether what is fenced ends without an agent too.
func (t *tenure) holds() bool { return t.holder != nil && t.grace >= 0 }

// promise is what the node's record says, for a lease.
func (t *tenure) promise(ttl time.Duration) time.Duration {
	if !t.holds() {
		return 0
	}
	return promise(ttl, t.grace)
}

// renew makes the tenure last for ttl from sent, and reports whether it does.
func (t *tenure) renew(ctx context.Context, registration string, sent time.Time, ttl time.Duration) bool {
	if t.grace < 0 {
		t.enter(registration, sent.Add(math.MaxInt64/2))
		return true
	}
	if t.holder != nil {
		// First, so that what is started in this tenure is held. Where it fails
		// what was said before holds: that is sooner, and so is safe.
		if err := t.holder.Hold(ctx, time.Until(sent.Add(ttl+t.grace))); err != nil && ctx.Err() == nil {
			t.log.Error("cannot hold containers that must not outlive the node's lease", "error", err)
			return false
		}
	}
	t.enter(registration, sent.Add(ttl))
	return true
}

func (t *tenure) enter(registration string, until time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.until = until
	if t.grace >= 0 {
		t.timer.Reset(time.Until(until))
	}
	if t.registration != registration {
		t.registration = registration
		close(t.changed)
		t.changed = make(chan struct{})
	}
}

// lapse notes that the lease is gone: what is fenced may run on for the rest of
// the tenure, but nothing of it is started before the node is registered again.
func (t *tenure) lapse() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.registration = ""
}

// end stops the clock: the agent has ended, and leaves what runs to its next.
func (t *tenure) end() { t.timer.Stop() }

// expire stops what is fenced.
func (t *tenure) expire() {
	t.mu.Lock()
	if time.Now().Before(t.until) {
		t.mu.Unlock()
		return
	}
	t.registration = ""
	t.mu.Unlock()
	a := t.agent
	a.mu.Lock()
	var fenced []*task
	for _, task := range a.tasks {
		if task.rec.Fenced() {
			fenced = append(fenced, task)
		}
	}
	a.mu.Unlock()
	for _, task := range fenced {
		task.log.Warn("stopping a task that must not run twice: the node's lease could not be renewed")
		task.expel(t.grace)
	}
}

// current is the registration, and until when it is good; empty when it is not.
func (t *tenure) current() (registration string, changed <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.registration != "" && !time.Now().Before(t.until) {
		return "", t.changed
	}
	return t.registration, t.changed
}

// admit waits until a fenced task may start something: the node is registered,
// and since then the task's record has been read, and is there. What is told to
// stop may not, unless that is what it is for. The leader gives a slot away in
// two commits, and the second only while the node is silent: whoever is
// registered and reads no stop will not be succeeded behind its back.
func (t *tenure) admit(ctx context.Context, task *task) error {
	for {
		registration, changed := t.current()
		if registration == "" {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if task.admitted(registration) {
			return nil
		}
		if err := t.read(ctx, task, registration); err != nil {
			return err
		}
	}
}

// read looks whether a task is still this node's, and admits it if it is.
func (t *tenure) read(ctx context.Context, task *task, registration string) error {
	for failures := 1; ; failures++ {
		item, found, err := store.Get(ctx, t.agent.store, record.Key(record.Tasks, t.agent.id(), task.rec.ID))
		if err == nil {
			var rec record.Task
			if found {
				err = json.Unmarshal(item.Value, &rec)
			}
			if err == nil && found && rec.ID == task.rec.ID && rec.Epoch == task.rec.Epoch && (rec.Stop == nil || rec.Erase) {
				task.admit(registration)
				return nil
			}
			reason := record.ReasonFenced // it was given to another meanwhile
			if found && rec.Stop != nil {
				reason = rec.Stop.Reason
			}
			task.stop(reason)
			return errStopped
		}
		if errors.Is(err, store.ErrClosed) {
			return err
		}
		if !sleep(ctx, delayAfter(failures, 50*time.Millisecond, time.Second)) {
			return context.Cause(ctx)
		}
		if now, _ := t.current(); now != registration {
			return nil // admit asks again
		}
	}
}

// errFenced is a task that came after a newer one of its slot.
func errFenced(slot string, epoch, newest int64) error {
	return fmt.Errorf("slot %s was placed here before at epoch %d, and this task is of epoch %d: it is too late", slot, newest, epoch)
}
