//go:build linux

package containerd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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
	ready  chan struct{} // closed by who starts or connects it; the fields above are set by then
	err    error         // why it cannot be used, once ready is closed

	// Guarded by shimPool.mu.
	users    int            // containers in it
	groups   map[string]int // of these, by group
	unfit    bool           // does not answer: gets no more groups
	stopping bool
}

func newShim(id string) *shim {
	return &shim{id: id, closed: make(chan struct{}), ready: make(chan struct{}), groups: map[string]int{}}
}

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

// boot runs a new shim and connects to it.
func (p *shimPool) boot(ctx context.Context, s *shim) error {
	id := s.id
	dir := filepath.Join(p.dir, id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// The shim reads config.json for the annotations that would join it to
	// another shim's group, and writes its log to "log", which containerd
	// makes a fifo. A file needs no reader.
	for name, text := range map[string]string{"config.json": "{}", "log": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	sockets := p.sockets()
	input, err := proto.Marshal(&bootapi.BootstrapParams{
		InstanceID: id, Namespace: namespace, LogLevel: bootapi.LogLevelFromString("warn"),
		ContainerdGrpcAddress: p.eventsAddr(), ContainerdTtrpcAddress: p.eventsAddr(),
		SocketDir: &sockets,
	})
	if err != nil {
		return err
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
		return fmt.Errorf("start shim: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	var result bootapi.BootstrapResult
	if err := proto.Unmarshal(stdout.Bytes(), &result); err != nil || result.Version < 3 || result.Protocol != "ttrpc" {
		return fmt.Errorf("start shim: %s answered %q: want a shim of containerd 2.3 or newer", p.r.bin.shim, stdout.String())
	}
	if want := "unix://" + p.socket(id); result.Address != want {
		return fmt.Errorf("start shim: it listens at %s, want %s", result.Address, want)
	}
	return s.dial(p.socket(id))
}

// socket is where a shim listens: pkg/shim.CreateSocketAddress in containerd.
// As it follows from the shim's ID, a shim can be found again, or cleared up,
// from its folder's name alone, whenever its start was interrupted.
func (p *shimPool) socket(id string) string {
	sum := sha256.Sum256([]byte(filepath.Join(p.eventsAddr(), namespace, id)))
	return filepath.Join(p.sockets(), hex.EncodeToString(sum[:]))
}

// removeFiles deletes a shim's folder and socket, which one that was killed
// leaves behind.
func (p *shimPool) removeFiles(id string) {
	os.Remove(p.socket(id))
	os.RemoveAll(filepath.Join(p.dir, id))
}

func (s *shim) dial(socket string) error {
	// A connection to a unix socket succeeds or fails at once.
	conn, err := net.DialTimeout("unix", socket, 5*time.Second)
	if err != nil {
		return fmt.Errorf("connect to shim %s: %w", s.id, err)
	}
	s.conn = ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(s.closed) }))
	s.tasks = taskapi.NewTTRPCTaskClient(s.conn)
	return nil
}

// dead reports that the connection to the shim has ended, and with it the
// shim: it never hangs up.
func (s *shim) dead() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}
