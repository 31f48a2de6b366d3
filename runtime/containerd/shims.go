//go:build linux

package containerd

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
)

const (
	// defaultShare is how many groups a shim has at most.
	defaultShare = 8
	// spread is how many shims there are before two groups have to share one.
	spread = 4
)

// shimPool owns the shims and decides which one a container gets.
//
// To start a shim costs about as much processor time as to start a container,
// so groups share them. But a shim that dies takes its containers with it. So
// no shim has more than share groups, each group goes to the one with the
// fewest, and the first groups have one each: in a node with many tasks a shim
// has at most a quarter of them. As those that start together go to different
// shims one after the other, so do a service's replicas.
type shimPool struct {
	r      *Runtime
	dir    string // one folder for each shim
	events *ttrpc.Server
	share  int
	ahead  int // for how many more groups than there are shims are kept ready

	mu     sync.Mutex
	shims  map[string]*shim // by ID, those that are starting included
	groups map[string]*shim // the newest of each group
	closed bool
	wg     sync.WaitGroup
}

func openShimPool(r *Runtime) (*shimPool, error) {
	p := &shimPool{
		r: r, dir: filepath.Join(r.state, "shims"), share: r.opts.GroupsPerShim, ahead: r.opts.WarmShims,
		shims: map[string]*shim{}, groups: map[string]*shim{},
	}
	if p.share <= 0 {
		p.share = defaultShare
	}
	switch {
	case p.ahead == 0:
		p.ahead = 1
	case p.ahead < 0:
		p.ahead = 0
	}
	for _, d := range []string{p.dir, p.sockets()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	return p, p.serveEvents()
}

func (p *shimPool) sockets() string    { return filepath.Join(p.r.state, "s") }
func (p *shimPool) eventsAddr() string { return filepath.Join(p.r.state, "events.sock") }

// wantedShims is how many shims so many groups have.
func wantedShims(groups, share int) int {
	return max(min(groups, spread), (groups+share-1)/share)
}

// takes reports whether the shim can have a further container.
func (s *shim) takes() bool { return !s.dead() && !s.unfit && !s.stopping }

// acquire returns a shim for a container of a group.
func (p *shimPool) acquire(ctx context.Context, group string) (*shim, error) {
	p.mu.Lock()
	s := p.groups[group]
	if s == nil || !s.takes() {
		if s = p.roomLocked(); s == nil {
			s = p.startLocked()
		}
	}
	p.useLocked(s, group)
	p.mu.Unlock()
	var err error
	select {
	case <-s.ready:
		err = s.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		p.release(ctx, s, group)
		return nil, err
	}
	return s, nil
}

// roomLocked returns the shim for a new group, or nil if it gets one of its
// own.
func (p *shimPool) roomLocked() *shim {
	var best *shim
	live := 0
	for _, s := range p.shims {
		if !s.takes() {
			continue
		}
		live++
		if best == nil || s.before(best) {
			best = s
		}
	}
	if best == nil || len(best.groups) >= p.share || len(best.groups) > 0 && live < wantedShims(len(p.groups)+1, p.share) {
		return nil
	}
	return best
}

// before reports whether s gets the next group rather than other.
func (s *shim) before(other *shim) bool {
	if a, b := len(s.groups), len(other.groups); a != b {
		return a < b
	}
	if a, b := s.isReady(), other.isReady(); a != b {
		return a
	}
	return s.id < other.id
}

func (s *shim) isReady() bool {
	select {
	case <-s.ready:
		return true
	default:
		return false
	}
}

// startLocked begins to start a shim.
func (p *shimPool) startLocked() *shim {
	s := newShim(strings.ToLower(rand.Text()))
	p.shims[s.id] = s
	p.wg.Go(func() {
		err := p.boot(p.r.ctx, s)
		// gofail: var shimBooted struct{}
		// die()
		p.connected(s, err)
		if err != nil {
			p.removeFiles(s.id)
			if p.r.ctx.Err() == nil {
				p.r.log.Warn("a shim could not be started", "error", err)
			}
		}
	})
	return s
}

// connected makes known that a shim can be used, or why it cannot.
func (p *shimPool) connected(s *shim, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.err = err; err != nil {
		close(s.closed)
		delete(p.shims, s.id)
	}
	close(s.ready)
}

// find returns a shim that an earlier process started.
func (p *shimPool) find(id string) (*shim, error) {
	p.mu.Lock()
	s := p.shims[id]
	if s != nil {
		p.mu.Unlock()
		<-s.ready
		return s, s.err
	}
	s = newShim(id)
	p.shims[id] = s
	p.mu.Unlock()
	p.connected(s, s.dial(p.socket(id)))
	return s, s.err
}

func (p *shimPool) useLocked(s *shim, group string) {
	s.users++
	s.groups[group]++
	p.groups[group] = s
}

// use counts a container that was found in a shim.
func (p *shimPool) use(s *shim, group string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.useLocked(s, group)
}

// doubt keeps further groups from a shim that does not answer.
func (p *shimPool) doubt(s *shim) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.unfit = true
}

// release gives back what acquire or use took, and ends the shims that are
// then too many.
func (p *shimPool) release(ctx context.Context, s *shim, group string) {
	p.mu.Lock()
	s.users--
	if s.groups[group]--; s.groups[group] == 0 {
		delete(s.groups, group)
		if p.groups[group] == s {
			delete(p.groups, group)
		}
	}
	p.mu.Unlock()
	p.trim(ctx)
}

// trim ends the shims without containers that nobody has a use for.
func (p *shimPool) trim(ctx context.Context) {
	p.mu.Lock()
	live := 0
	for _, s := range p.shims {
		if s.takes() {
			live++
		}
	}
	wanted := wantedShims(len(p.groups)+p.ahead, p.share)
	var stop []*shim
	for _, s := range p.shims {
		if s.users > 0 || s.stopping || !s.isReady() {
			continue
		}
		if s.takes() {
			if live <= wanted && !p.closed {
				continue
			}
			live--
		}
		s.stopping = true
		stop = append(stop, s)
	}
	p.mu.Unlock()
	for _, s := range stop {
		p.stop(ctx, s)
	}
}

// stop ends a shim that has no containers.
func (p *shimPool) stop(ctx context.Context, s *shim) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	// The answer may get lost, as the shim ends. What tells is the
	// connection's end.
	_, _ = s.tasks.Shutdown(ctx, &taskapi.ShutdownRequest{ID: s.id, Now: true})
	// gofail: var shimShutDown struct{}
	// die()
	patience := time.NewTimer(time.Second)
	defer patience.Stop()
	select {
	case <-s.closed:
	case <-patience.C:
		// It still has a container, one that was being made when the program
		// before this one died. Nobody will ask for it.
		if err := killLost(s.id); err != nil {
			p.r.log.Error("a shim does not end", "shim", s.id, "error", err)
		}
	}
	p.mu.Lock()
	delete(p.shims, s.id)
	p.mu.Unlock()
	s.conn.Close()
	p.removeFiles(s.id)
}

// fill starts shims in the background until there are enough for the groups to
// come.
func (p *shimPool) fill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	live := 0
	for _, s := range p.shims {
		if s.takes() {
			live++
		}
	}
	for ; live < wantedShims(len(p.groups)+p.ahead, p.share); live++ {
		p.startLocked()
	}
}

// wait waits for the shims that are being started.
func (p *shimPool) wait() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.shims {
		p.mu.Unlock()
		<-s.ready
		p.mu.Lock()
	}
}

// adoptIdle takes over the shims that an earlier process left without
// containers, as far as they are wanted, and clears up after those that died.
func (p *shimPool) adoptIdle() error {
	dirs, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if _, err := p.find(d.Name()); err != nil {
			if err := killLost(d.Name()); err != nil {
				return err
			}
			p.removeFiles(d.Name())
		}
	}
	p.trim(p.r.ctx)
	return nil
}

// close ends the shims without containers and lets go of the others.
func (p *shimPool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.wg.Go(func() { p.events.Close() })
	p.wg.Wait()
	p.trim(context.Background())
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.shims {
		s.conn.Close()
	}
}
