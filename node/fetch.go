package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/moment"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// fetch has the images ready that the task's successor needs, while the task
// serves. It goes on until it has them, the task is to stop, or something else
// is asked for.
func (t *task) fetch(ctx context.Context, next *record.Next) {
	t.mu.Lock()
	last := t.status.Next
	if t.fetching == next.Hash || last != nil && last.Hash == next.Hash && last.Done {
		t.mu.Unlock()
		return
	}
	t.fetching = next.Hash
	if t.endFetch != nil {
		t.endFetch()
	}
	ctx, cancel := context.WithCancel(moment.About(ctx, t.rec.ID))
	t.endFetch = cancel
	t.mu.Unlock()
	t.agent.wg.Go(func() {
		defer cancel()
		stop := make(chan struct{})
		defer close(stop)
		t.agent.wg.Go(func() {
			select {
			case <-t.halted:
				cancel()
			case <-stop:
			}
		})
		t.fetchAll(ctx, next)
	})
}

func (t *task) fetchAll(ctx context.Context, next *record.Next) {
	delay := firstFetchDelay
	for {
		err := t.fetchOnce(ctx, next)
		if ctx.Err() != nil {
			return
		}
		f := &record.Fetched{Hash: next.Hash, Done: err == nil}
		var failure *failureError
		if errors.As(err, &failure) {
			f.Failure = &failure.Failure
		}
		t.mu.Lock()
		if t.fetching == next.Hash {
			t.status.Next = f
			t.report()
		}
		t.mu.Unlock()
		if err == nil || f.Failure != nil && f.Failure.Permanent {
			return
		}
		t.log.Info("images of the task to come are not ready; trying again", "error", err, "in", delay)
		if !sleep(ctx, delay) {
			return
		}
		delay = min(2*delay, maxFetchDelay)
	}
}

// The pauses between attempts to have images ready.
const (
	firstFetchDelay = time.Second
	maxFetchDelay   = time.Minute
)

func (t *task) fetchOnce(ctx context.Context, next *record.Next) error {
	for _, image := range next.Images {
		_, err := t.agent.opts.Runtime.Pull(ctx, image.Ref, runtime.PullOptions{
			Policy: runtime.PullPolicy(image.Pull), Credentials: t.agent.opts.Credentials,
		})
		if err != nil {
			return failed(record.FailedImage, fmt.Errorf("image %q: %w", image.Ref, err), lasting(err))
		}
	}
	return nil
}

// lasting reports whether an error of a pull is not mended by trying again.
func lasting(err error) bool {
	return errors.Is(err, runtime.ErrImageNotFound) || errors.Is(err, runtime.ErrUnauthorized) || errors.Is(err, runtime.ErrPlatform)
}
