//go:build linux

package cluster

import (
	"context"
	"sync"
)

// loops run side by side until one of them fails or they are stopped.
type loops struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	done   chan struct{} // closed when all have ended

	mu  sync.Mutex // guards err
	err error      // why the first one ended by itself
}

func newLoops() *loops {
	l := &loops{done: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// run starts a loop, which returns when its context ends.
func (l *loops) run(loop func(context.Context) error) {
	l.wg.Go(func() {
		if err := loop(l.ctx); err != nil && l.ctx.Err() == nil {
			l.fail(err)
		}
	})
}

// fail notes why a loop ended and ends the others.
func (l *loops) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
	l.cancel()
}

// begun is called when all loops were started.
func (l *loops) begun() {
	go func() {
		l.wg.Wait()
		close(l.done)
	}()
}

// stop ends the loops and waits for them.
func (l *loops) stop() {
	l.cancel()
	l.wg.Wait()
}

// Done is closed when it does not run any more: after Close, or because of an
// error that Err returns.
func (l *loops) Done() <-chan struct{} { return l.done }

// Err returns why it stopped by itself; nil while it runs and after Close.
func (l *loops) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
