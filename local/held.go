//go:build linux

package local

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// labelHeld is [runtime.LabelHeld] for containers that held is about.
const labelHeld = "orchestrate.local.held"

// held ends the containers of a node that must not outlive its agent's lease. It
// is for the nodes of this machine to be no more than a timer of this process:
// the store ends with the process too, so nothing can be decided without it, and
// whoever leads next begins to wait anew.
type held struct {
	log *slog.Logger

	mu     sync.Mutex // guards what follows, and one killing at a time
	until  time.Time
	timer  *time.Timer
	closed bool
}

// set lets the containers run for d from now, and then kills them.
func (h *held) set(d time.Duration, kill func(context.Context) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	if h.timer != nil {
		h.timer.Stop()
	}
	h.until = time.Now().Add(d)
	h.timer = time.AfterFunc(d, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.closed || time.Now().Before(h.until) {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), runtime.HoldMargin)
		defer cancel()
		if err := kill(ctx); err != nil {
			h.log.Error("cannot kill containers that nobody holds", "error", err)
		}
	})
}

// over reports whether the time is over.
func (h *held) over() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !time.Now().Before(h.until)
}

// close leaves the containers running: the process ends.
func (h *held) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	if h.timer != nil {
		h.timer.Stop()
	}
}

// Hold implements [runtime.Holder].
func (r sharedRuntime) Hold(_ context.Context, d time.Duration) error {
	r.share.held.set(d, func(ctx context.Context) error {
		list, err := r.List(ctx, nil)
		if err != nil {
			return err
		}
		for _, c := range list {
			if _, is := c.Labels[labelHeld]; !is || c.State != runtime.Running {
				continue
			}
			if err := r.Kill(ctx, c.ID, runtime.SIGKILL); err != nil {
				return fmt.Errorf("kill container %s: %w", c.ID, err)
			}
		}
		return nil
	})
	return nil
}
