//go:build linux

package containerd

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// A shim is containerd's process that is the parent of containers' processes:
// it outlives this one, keeps their exit codes, and writes their output to
// the log files. Protocol: containerd's core/runtime/v2/README.md.
type shim struct {
	id     string
	conn   *ttrpc.Client
	tasks  taskapi.TTRPCTaskService
	closed chan struct{} // closed when the connection has ended
	users  int           // containers in it; guarded by shimPool.mu
}

// shimPool owns the shims: those in use and the idle ones that make a start
// fast.
type shimPool struct {
	r      *Runtime
	dir    string // one folder for each shim
	events *ttrpc.Server
	warm   int // idle shims to keep

	mu      sync.Mutex
	shims   map[string]*shim // by ID
	idle    []*shim
	groups  map[string]*shim // by group
	filling int              // shims being started for idle
	filled  chan struct{}    // closed when filling is back at 0
	closed  bool
	wg      sync.WaitGroup
}

func openShimPool(r *Runtime) (*shimPool, error) {
	p := &shimPool{
		r: r, dir: filepath.Join(r.state, "shims"), warm: r.opts.WarmShims,
		shims: map[string]*shim{}, groups: map[string]*shim{},
	}
	switch {
	case p.warm == 0:
		p.warm = 1
	case p.warm < 0:
		p.warm = 0
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

// serveEvents takes the events that shims publish. They are not used: exits
// come from Wait and out-of-memory from the cgroup, which both also work for
// what happened while this program was not there. But a shim that cannot
// deliver an event tries again and complains.
func (p *shimPool) serveEvents() error {
	os.Remove(p.eventsAddr())
	l, err := net.Listen("unix", p.eventsAddr())
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err != nil {
		l.Close()
		return err
	}
	eventsapi.RegisterTTRPCEventsService(server, sink{})
	p.events = server
	p.wg.Go(func() {
		if err := server.Serve(p.r.ctx, l); err != nil && !errors.Is(err, ttrpc.ErrServerClosed) && p.r.ctx.Err() == nil {
			p.r.log.Error("the socket for shims' events failed", "error", err)
		}
	})
	return nil
}

type sink struct{}

func (sink) Forward(context.Context, *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

// start runs a new shim and connects to it.
func (p *shimPool) start(ctx context.Context) (_ *shim, err error) {
	id := strings.ToLower(rand.Text())
	dir := filepath.Join(p.dir, id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.removeFiles(id)
		}
	}()
	// The shim reads config.json for the annotations that would join it to
	// another shim's group, and writes its log to "log", which containerd
	// makes a fifo. A file needs no reader.
	for name, text := range map[string]string{"config.json": "{}", "log": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	sockets := p.sockets()
	input, err := proto.Marshal(&bootapi.BootstrapParams{
		InstanceID: id, Namespace: namespace, LogLevel: bootapi.LogLevelFromString("warn"),
		ContainerdGrpcAddress: p.eventsAddr(), ContainerdTtrpcAddress: p.eventsAddr(),
		SocketDir: &sockets,
	})
	if err != nil {
		return nil, err
	}
	// If this were killed half-way a shim might run that nobody knows of.
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(call, p.r.bin.shim,
		"-namespace", namespace, "-id", id, "-address", p.eventsAddr(), "start")
	cmd.Dir = dir
	// Not the program's own environment: there may be secrets in it.
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")},
		"GOMAXPROCS=2", "MAX_SHIM_VERSION=3", "NAMESPACE="+namespace,
		"TTRPC_ADDRESS="+p.eventsAddr(), "GRPC_ADDRESS="+p.eventsAddr())
	cmd.Stdin = bytes.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("start shim: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	var result bootapi.BootstrapResult
	if err := proto.Unmarshal(stdout.Bytes(), &result); err != nil || result.Version < 3 || result.Protocol != "ttrpc" {
		return nil, fmt.Errorf("start shim: %s answered %q: want a shim of containerd 2.3 or newer", p.r.bin.shim, stdout.String())
	}
	if want := "unix://" + p.socket(id); result.Address != want {
		return nil, fmt.Errorf("start shim: it listens at %s, want %s", result.Address, want)
	}
	return p.connect(id)
}

// socket is where a shim listens: pkg/shim.CreateSocketAddress in containerd.
// As it follows from the shim's ID, a shim can be found again, or cleared up,
// from its folder's name alone, whenever its start was interrupted.
func (p *shimPool) socket(id string) string {
	sum := sha256.Sum256([]byte(filepath.Join(p.eventsAddr(), namespace, id)))
	return filepath.Join(p.sockets(), hex.EncodeToString(sum[:]))
}

func dialShim(id, socket string) (*shim, error) {
	// A connection to a unix socket succeeds or fails at once.
	conn, err := net.DialTimeout("unix", socket, 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("connect to shim %s: %w", id, err)
	}
	s := &shim{id: id, closed: make(chan struct{})}
	s.conn = ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(s.closed) }))
	s.tasks = taskapi.NewTTRPCTaskClient(s.conn)
	return s, nil
}

func (p *shimPool) connect(id string) (*shim, error) {
	s, err := dialShim(id, p.socket(id))
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shims[id] = s
	return s, nil
}

// reconnect finds a shim that an earlier process started.
func (p *shimPool) reconnect(id string) (*shim, error) {
	p.mu.Lock()
	s := p.shims[id]
	p.mu.Unlock()
	if s != nil {
		return s, nil
	}
	return p.connect(id)
}

// acquire returns a shim for a container of a group, an idle or a new one.
func (p *shimPool) acquire(ctx context.Context, group string) (*shim, error) {
	p.mu.Lock()
	if s := p.groups[group]; group != "" && s != nil && !s.dead() {
		s.users++
		p.mu.Unlock()
		return s, nil
	}
	for len(p.idle) > 0 {
		s := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if s.dead() {
			p.dropLocked(s)
			continue
		}
		p.useLocked(s, group)
		p.mu.Unlock()
		return s, nil
	}
	p.mu.Unlock()
	s, err := p.start(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.useLocked(s, group)
	return s, nil
}

func (p *shimPool) useLocked(s *shim, group string) {
	s.users++
	if group != "" && p.groups[group] == nil {
		p.groups[group] = s
	}
}

// use counts a container that was found in a shim.
func (p *shimPool) use(s *shim, group string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.useLocked(s, group)
}

// release gives back what acquire or use took. A shim that nobody uses
// becomes idle or ends.
func (p *shimPool) release(ctx context.Context, s *shim) {
	p.mu.Lock()
	s.users--
	if s.users > 0 {
		p.mu.Unlock()
		return
	}
	for g, other := range p.groups {
		if other == s {
			delete(p.groups, g)
		}
	}
	if !s.dead() && !p.closed && len(p.idle) < p.warm {
		p.idle = append(p.idle, s)
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	p.stop(ctx, s)
}

// stop ends a shim that has no containers.
func (p *shimPool) stop(ctx context.Context, s *shim) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	// The answer may get lost, as the shim ends. What tells is the
	// connection's end.
	_, _ = s.tasks.Shutdown(ctx, &taskapi.ShutdownRequest{ID: s.id, Now: true})
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
	defer p.mu.Unlock()
	p.dropLocked(s)
}

// dropLocked forgets a shim and deletes its folder.
func (p *shimPool) dropLocked(s *shim) {
	delete(p.shims, s.id)
	for g, other := range p.groups {
		if other == s {
			delete(p.groups, g)
		}
	}
	s.conn.Close()
	p.removeFiles(s.id)
}

// removeFiles deletes a shim's folder and socket, which one that was killed
// leaves behind.
func (p *shimPool) removeFiles(id string) {
	os.Remove(p.socket(id))
	os.RemoveAll(filepath.Join(p.dir, id))
}

func (s *shim) dead() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// fill starts idle shims in the background until there are enough.
func (p *shimPool) fill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed && len(p.idle)+p.filling < p.warm {
		if p.filling++; p.filling == 1 {
			p.filled = make(chan struct{})
		}
		p.wg.Go(func() {
			s, err := p.start(p.r.ctx)
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.filling--; p.filling == 0 {
				close(p.filled)
			}
			if err != nil {
				if p.r.ctx.Err() == nil {
					p.r.log.Warn("no shim could be started ahead", "error", err)
				}
				return
			}
			p.idle = append(p.idle, s)
		})
	}
}

// wait waits for the shims that are being started ahead.
func (p *shimPool) wait() {
	p.mu.Lock()
	filled := p.filled
	p.mu.Unlock()
	if filled != nil {
		<-filled
	}
}

// adoptIdle takes over the shims that an earlier process left without
// containers, as far as they are wanted.
func (p *shimPool) adoptIdle() error {
	dirs, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		p.mu.Lock()
		s := p.shims[d.Name()]
		p.mu.Unlock()
		if s != nil && s.users > 0 {
			continue
		}
		if s, err = p.reconnect(d.Name()); err != nil {
			if err := killLost(d.Name()); err != nil {
				return err
			}
			p.removeFiles(d.Name())
			continue
		}
		s.users++
		p.release(p.r.ctx, s)
	}
	return nil
}

// close ends the idle shims and lets go of the others.
func (p *shimPool) close(used map[string]bool) {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.wg.Go(func() { p.events.Close() })
	p.wg.Wait()
	p.mu.Lock()
	var stop []*shim
	for id, s := range p.shims {
		if used[id] {
			s.conn.Close()
			continue
		}
		stop = append(stop, s)
	}
	p.idle = nil
	p.mu.Unlock()
	for _, s := range stop {
		p.stop(context.Background(), s)
	}
}
