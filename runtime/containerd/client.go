//go:build linux

package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"time"

	runcopts "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// ConnectOptions says which containerd to use. Root is required.
type ConnectOptions struct {
	// Address is the daemon's socket; /run/containerd/containerd.sock when
	// empty. The daemon must run on this machine, in the same mount and PID
	// namespaces.
	Address string
	// Namespace is the one in the daemon; "orchestrate" when empty. Several
	// Clients may use one: they share its images, each has its own containers.
	Namespace string
	// Root is the folder that belongs to this Client alone: logs and what it
	// remembers. It is made when missing. The daemon's containers are marked
	// with its path, so it stays where it is for as long as they run.
	Root string
	// State holds what a reboot ends: the records of containers. When empty
	// it is a folder of /run/orchestrate that is named by a hash of Root.
	State string
	// Snapshotter is the daemon's that keeps layers; "overlayfs" when empty.
	Snapshotter string
	// Runtime names the shim, in containerd's form or by its path;
	// "io.containerd.runc.v2" when empty.
	Runtime string
	// BinDir, when set, is where containerd-shim-runc-v2 and runc are, in
	// place of those that the daemon finds by itself.
	BinDir string
	// Logger receives what the Client cannot report to a caller. Nil
	// discards it.
	Logger *slog.Logger

	viaDaemon bool // tests: never speak to a shim
}

// Client runs containers by a containerd that runs already. It implements
// what [Runtime] does, with the same specs, defaults and logs.
//
// The daemon makes and deletes containers. Once they run they need it no
// more, nor does the Client: it speaks to their shims, so that exits, signals
// and exec go on while the daemon is stopped, killed or upgraded. Calls that
// need the daemon meanwhile wait for it, for as long as their context lets
// them.
type Client struct {
	r      *Runtime // what both ways have in common; it has no shims
	client *client.Client
	opts   ConnectOptions

	runtime       string
	runtimeConfig typeurl.Any // nil for another runtime than runc

	undone map[string]*container // failed starts that left something; guarded by r.mu
}

var (
	_ runtime.Runtime     = (*Client)(nil)
	_ runtime.Execer      = (*Client)(nil)
	_ runtime.LogReader   = (*Client)(nil)
	_ runtime.StatsReader = (*Client)(nil)
	_ runtime.Importer    = (*Client)(nil)
	_ engine              = (*Client)(nil)
)

// ErrNoDaemon is the error of Connect when no containerd answers.
var ErrNoDaemon = errors.New("no containerd answers: want one that runs, or Open, which needs none")

const (
	defaultAddress = "/run/containerd/containerd.sock"
	runcRuntime    = "io.containerd.runc.v2"

	connectTimeout = 10 * time.Second
	// redialDelay bounds how long a daemon that is back goes unnoticed.
	redialDelay = time.Second
)

// Connect uses the containerd at opts.Address and adopts the containers that
// a Client of the same Root started. The errors wrap [ErrNoDaemon],
// [ErrLocked], or are a *[MissingBinaryError].
func Connect(opts ConnectOptions) (*Client, error) {
	opts.Address = firstOf(opts.Address, defaultAddress)
	opts.Snapshotter = firstOf(opts.Snapshotter, snapshotter)
	if opts.Root == "" {
		return nil, errors.New("connect to containerd: ConnectOptions.Root is empty: want a folder")
	}
	root, err := filepath.Abs(opts.Root)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", err)
	}
	r := newRuntime(root, Options{State: opts.State, Logger: opts.Logger})
	cl := &Client{r: r, opts: opts, runtime: firstOf(opts.Runtime, runcRuntime), undone: map[string]*container{}}
	r.engine = cl
	if err := cl.connect(); err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", opts.Address, err)
	}
	return cl, nil
}

func (cl *Client) connect() (err error) {
	r := cl.r
	if conn, err := net.DialTimeout("unix", cl.opts.Address, connectTimeout); err != nil {
		return fmt.Errorf("%w: %w", ErrNoDaemon, err)
	} else {
		conn.Close()
	}
	if r.state == "" {
		r.state = filepath.Join("/run/orchestrate", shortHash(r.root))
	}
	if err := cl.chooseRuntime(); err != nil {
		return err
	}
	if err := makeFolders(r.root, r.state, r.bundles()); err != nil {
		return err
	}
	if r.lock, err = lockRoot(filepath.Join(r.root, "lock")); err != nil {
		return err
	}
	var undo []func()
	defer func() {
		for i := len(undo) - 1; err != nil && i >= 0; i-- {
			undo[i]()
		}
	}()
	undo = append(undo, func() { r.lock.Close() })
	undo = append(undo, func() { r.endLogGuard(true) })
	r.ctx, r.cancel = context.WithCancel(context.Background())
	undo = append(undo, r.cancel)
	r.cgroups = newCgroupTree("/orchestrate/" + shortHash(r.root))
	r.store = newStore(r, firstOf(cl.opts.Namespace, namespace))
	cl.client, err = client.New(cl.opts.Address, client.WithDefaultNamespace(r.store.ns),
		client.WithTimeout(redialDelay), client.WithCallOpts([]grpc.CallOption{grpc.WaitForReady(true)}))
	if err != nil {
		return err
	}
	r.store.client, r.store.snap = cl.client, cl.client.SnapshotService(cl.opts.Snapshotter)
	undo = append(undo, func() { r.store.close() })
	if r.logs, err = openLogWatch(r.log); err != nil {
		return err
	}
	undo = append(undo, func() { r.logs.close() })
	undo = append(undo, func() { r.cancel(); r.wg.Wait(); cl.detach() })
	ctx, cancel := context.WithTimeout(r.store.with(r.ctx), connectTimeout)
	defer cancel()
	if _, err := cl.client.Version(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrNoDaemon, err)
	}
	// An earlier process's: its work is ours now.
	if err := r.endLogGuard(false); err != nil {
		return err
	}
	if err := cl.adopt(ctx); err != nil {
		return fmt.Errorf("adopt containers: %w", err)
	}
	return nil
}

// chooseRuntime settles what the daemon starts for each container.
func (cl *Client) chooseRuntime() (err error) {
	// What runc keeps lies with our records: two daemons, or two Roots with
	// one, do not meet there.
	config := &runcopts.Options{Root: cl.r.runcRoot()}
	if cl.opts.BinDir != "" {
		bin, err := findBinaries(cl.opts.BinDir)
		if err != nil {
			return err
		}
		config.BinaryName = bin.runc
		if cl.opts.Runtime == "" {
			cl.runtime = bin.shim
		}
	}
	if cl.runtime != runcRuntime && !strings.HasSuffix(cl.runtime, "containerd-shim-runc-v2") {
		return nil
	}
	cl.runtimeConfig, err = typeurl.MarshalAny(config)
	return err
}

// Close lets go of the containers, which run on, and of the daemon: a later
// Connect adopts them. It is idempotent.
func (cl *Client) Close() error { return cl.r.Close() }

// detach implements engine.
func (cl *Client) detach() error {
	for _, c := range cl.r.containers {
		c.shim.hangUp()
	}
	return nil
}

// Pull implements [runtime.Runtime], as [Runtime.Pull] does.
func (cl *Client) Pull(ctx context.Context, ref string, opts runtime.PullOptions) (runtime.Image, error) {
	return cl.r.Pull(ctx, ref, opts)
}

// Start implements [runtime.Runtime].
func (cl *Client) Start(ctx context.Context, spec runtime.Spec) error { return cl.r.Start(ctx, spec) }

// Wait implements [runtime.Runtime].
func (cl *Client) Wait(ctx context.Context, id string) (runtime.Exit, error) {
	return cl.r.Wait(ctx, id)
}

// Kill implements [runtime.Runtime].
func (cl *Client) Kill(ctx context.Context, id string, signal runtime.Signal) error {
	return cl.r.Kill(ctx, id, signal)
}

// Remove implements [runtime.Runtime].
func (cl *Client) Remove(ctx context.Context, id string) error { return cl.r.Remove(ctx, id) }

// List implements [runtime.Runtime]. It is about the containers of this
// Client, not about all of the daemon's.
func (cl *Client) List(ctx context.Context, labels map[string]string) ([]runtime.Container, error) {
	return cl.r.List(ctx, labels)
}

// Exec implements [runtime.Execer], as [Runtime.Exec] does.
func (cl *Client) Exec(ctx context.Context, id string, exec runtime.Exec) (int, error) {
	return cl.r.Exec(ctx, id, exec)
}

// Logs implements [runtime.LogReader], as [Runtime.Logs] does.
func (cl *Client) Logs(ctx context.Context, id string, opts runtime.LogOptions, each func(runtime.LogLine) error) error {
	return cl.r.Logs(ctx, id, opts, each)
}

// RemoveLogs implements [runtime.LogReader].
func (cl *Client) RemoveLogs(ctx context.Context, id string) error { return cl.r.RemoveLogs(ctx, id) }

// Stats implements [runtime.StatsReader] from the container's cgroup.
func (cl *Client) Stats(ctx context.Context, id string) (runtime.Stats, error) {
	return cl.r.Stats(ctx, id)
}

// Import implements [runtime.Importer], as [Runtime.Import] does: the daemon
// sees nothing of an archive that is refused.
func (cl *Client) Import(ctx context.Context, archive io.Reader) ([]runtime.Image, error) {
	return cl.r.Import(ctx, archive)
}

// RemoveImage implements [runtime.Importer]. The reference is removed for all
// users of the namespace.
func (cl *Client) RemoveImage(ctx context.Context, ref string) error {
	return cl.r.RemoveImage(ctx, ref)
}
