package memory

import (
	"context"
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// hold is for how long held containers may run. It is the machine's, as the
// Runtime is: agents come and go.
type hold struct {
	until time.Time
	timer *time.Timer
}

// Hold implements [runtime.Holder].
func (r *Runtime) Hold(ctx context.Context, d time.Duration) error {
	if err := r.ask(Op{Method: "Hold"}); err != nil {
		return fmt.Errorf("hold containers: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hold.until = time.Now().Add(d)
	if r.hold.timer == nil {
		r.hold.timer = time.AfterFunc(d, r.letGo)
	} else {
		r.hold.timer.Reset(d)
	}
	return nil
}

// letGo kills what is held, when its time is over.
func (r *Runtime) letGo() {
	r.mu.Lock()
	var held []*container
	if r.isOver() {
		for _, c := range r.containers {
			if _, ok := c.spec.Labels[runtime.LabelHeld]; ok {
				held = append(held, c)
			}
		}
	}
	r.mu.Unlock()
	for _, c := range held {
		c.end(128+int(runtime.SIGKILL), false)
	}
}

// isOver reports whether held containers may not run. r.mu is held.
func (r *Runtime) isOver() bool { return !time.Now().Before(r.hold.until) }
