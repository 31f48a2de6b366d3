//go:build linux

package cluster

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	goruntime "runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/identity"
	"github.com/orchestrate-go/orchestrate/internal/machine"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/network/bridge"
	"github.com/orchestrate-go/orchestrate/network/overlay"
	"github.com/orchestrate-go/orchestrate/node"
	"github.com/orchestrate-go/orchestrate/remote"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
	"github.com/orchestrate-go/orchestrate/runtime/image"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/etcd"
	"github.com/orchestrate-go/orchestrate/volume/local"
)

// AgentOptions say what node a machine is. Address and Control are required, and
// Token the first time.
type AgentOptions struct {
	// Name is the node's in the fleet; the host's name by default.
	Name string
	// Address is that of an interface of this machine by which the other
	// machines reach it.
	Address netip.Addr
	// Control are the addresses of the control planes.
	Control []netip.Addr
	// Token is what the machine joins with, of [Control.NewToken], the first
	// time, and again when it was expelled or its certificate has expired; else
	// it is not looked at.
	Token string

	// Ports are the fleet's.
	Ports Ports
	// Labels and Topology are for placement; see [scheduler.Node].
	Labels, Topology map[string]string
	// Capacity is what the node has for tasks; by default all of the machine's
	// cores, memory and disk.
	Capacity scheduler.Resources
	// LeaseTTL and FenceGrace are as in [node.Options].
	LeaseTTL, FenceGrace time.Duration
	// BinDir is a folder in which containerd-shim-runc-v2 and runc are looked for
	// before PATH.
	BinDir string
	// BindRoots allow bind mounts of what is below these absolute paths.
	BindRoots []string
	// Checkers are health checkers for [health.Custom] checks, by name.
	Checkers map[string]health.Checker
	// Credentials is asked for each registry host that images are pulled from.
	Credentials func(ctx context.Context, host string) (runtime.Credentials, error)
	// Encryption encrypts what goes between tasks on different nodes, such as
	// wireguard.New of network/overlay/wireguard; nil does not. It is the same on
	// all nodes: one with it and one without do not reach each other's tasks.
	Encryption overlay.Encryption
	// Network and Node, when not nil, change the options that the network's
	// driver and the node's agent are made with, for what has no field here.
	Network func(*overlay.Options)
	Node    func(*node.Options)
	// Logger; nil discards. See [local.WithLogger] for what goes elsewhere.
	//
	// [local.WithLogger]: https://pkg.go.dev/github.com/orchestrate-go/orchestrate/local#WithLogger
	Logger *slog.Logger
}

// Agent is a machine of the fleet that runs tasks. Make it with [OpenAgent].
type Agent struct {
	*loops
	dir  string
	opts AgentOptions

	store   *etcd.Store
	runtime *containerd.Runtime
	network *overlay.Driver
	volumes *local.Driver
	names   machine.Names

	refused chan struct{} // has one when the store has refused something

	closing  sync.Once
	closeErr error
	failed   error // what release returned

	destroying sync.Mutex // guards destroyed
	destroyed  bool
}

// OpenAgent joins the fleet, unless this machine has before, and runs the agent
// whose state is in dir, which is made if it is missing, until [Agent.Close].
// What ran under dir before is adopted. The first time it waits for a control
// plane until ctx ends; later it does not, and what runs runs on without one.
// The errors are an [*OptionError], the refusals of [identity.Join],
// [identity.ErrExpired] for a machine that was away for longer than its
// certificate is good, and those of the drivers, such as a
// [*containerd.MissingBinaryError].
//
// A machine that was expelled, or whose certificate has expired, joins anew with a
// token that is fresh. Without a token, one that was expelled opens as who it was,
// so that it can be cleared with [Agent.Destroy], and ends soon.
func OpenAgent(ctx context.Context, dir string, opts AgentOptions) (*Agent, error) {
	a := &Agent{loops: newLoops(), opts: opts, refused: make(chan struct{}, 1)}
	if err := a.open(ctx, dir); err != nil {
		return nil, fmt.Errorf("open agent %q in %q: %w", a.opts.Name, dir, errors.Join(err, a.release()))
	}
	return a, nil
}

func (a *Agent) open(ctx context.Context, dir string) (err error) {
	o := &a.opts
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Ports = o.Ports.withDefaults()
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	o.Name = cmp.Or(o.Name, host)
	err = errors.Join(checkName(identity.Node, o.Name), checkAddr("Address", o.Address), checkAddrs("Control", o.Control))
	if err != nil {
		return err
	}
	if unix.Geteuid() != 0 {
		return errors.New("this needs root, for namespaces, mounts and nftables; run it as root")
	}
	if a.dir, err = checkDir(dir); err != nil {
		return err
	}
	id := identity.ID{Role: identity.Node, Name: o.Name}
	self, err := joined(ctx, a.path("identity"), o.Token, id, o.Control, o.Ports, o.Logger)
	if err != nil {
		return err
	}
	a.store, err = etcd.Open(etcd.Options{
		Endpoints: urls(o.Control, o.Ports.Store), TLS: self.Client(identity.Is(identity.Control)), Logger: o.Logger,
		Refused: func() {
			select {
			case a.refused <- struct{}{}:
			default:
			}
		},
	})
	if err != nil {
		return err
	}
	agent, err := a.makeAgent(host)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", at(o.Address, o.Ports.Node))
	if err != nil {
		return err
	}
	a.run(func(ctx context.Context) error { return a.ending(self, self.Run(ctx)) })
	a.run(func(ctx context.Context) error { return a.ending(self, a.ask(ctx, self)) })
	a.run(a.names.Run)
	a.run(a.network.Run)
	a.run(func(ctx context.Context) error {
		return remote.Serve(ctx, listener, self, agent, remote.WithLogger(o.Logger))
	})
	a.run(agent.Run)
	a.begun()
	return nil
}

// makeAgent opens the drivers and makes the agent over them.
func (a *Agent) makeAgent(host string) (_ *node.Agent, err error) {
	o := &a.opts
	a.runtime, err = containerd.Open(containerd.Options{Root: a.path("containers"), BinDir: o.BinDir, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	network := overlay.Options{
		Bridge: bridge.Options{ID: a.ID(), Dir: a.path("network"), Logger: o.Logger},
		Store:  a.store, Node: o.Name, Underlay: o.Address, Encryption: o.Encryption,
	}
	if o.Network != nil {
		o.Network(&network)
	}
	if a.network, err = overlay.Open(network); err != nil {
		return nil, err
	}
	if a.volumes, err = local.Open(local.Options{Dir: a.path("volumes"), BindRoots: o.BindRoots}); err != nil {
		return nil, err
	}
	a.names = machine.NewNames(o.Logger)
	if o.Capacity.IsZero() {
		if o.Capacity, err = machine.Capacity(a.dir); err != nil {
			return nil, err
		}
	}
	opts := node.Options{
		Node: scheduler.Node{
			ID: o.Name, Hostname: host, Labels: o.Labels, Topology: o.Topology, Capacity: o.Capacity,
			Platform: scheduler.Platform{OS: goruntime.GOOS, Arch: goruntime.GOARCH},
		},
		Address: at(o.Address, o.Ports.Node),
		Runtime: a.runtime, Network: a.network, Namespaces: a.network, Balancer: a.network,
		Resolver: a.names, Volumes: a.volumes, Checkers: machine.Checkers(o.Checkers), Credentials: o.Credentials,
		Dir: a.path("node"), LeaseTTL: o.LeaseTTL, FenceGrace: o.FenceGrace, Logger: o.Logger,
	}
	if o.Node != nil {
		o.Node(&opts)
	}
	return node.New(a.store, opts)
}

func (a *Agent) path(name string) string { return filepath.Join(a.dir, name) }

// Name is the node's in the fleet.
func (a *Agent) Name() string { return a.opts.Name }

// ID is the word in the names of what the agent makes in the kernel, such as its
// nftables table.
func (a *Agent) ID() string {
	sum := sha256.Sum256([]byte(a.dir))
	return hex.EncodeToString(sum[:4])
}

// Import makes images of a local OCI or "docker save" archive present on this
// node; see [runtime.Importer].
func (a *Agent) Import(ctx context.Context, archive io.Reader) ([]runtime.Image, error) {
	return a.runtime.Import(ctx, archive)
}

// Load makes an image that package image built present on this node. The tasks
// of services that name it by its digest, as [runtime.Pinned] writes it, run it
// without a registry.
func (a *Agent) Load(ctx context.Context, img *image.Image) (runtime.Image, error) {
	r := img.Reader()
	defer r.Close()
	images, err := a.runtime.Import(ctx, r)
	if err != nil {
		return runtime.Image{}, err
	}
	return images[0], nil
}

// askAgain is how long it takes at least from one renewal after a refusal to the
// next: the store may refuse something for another reason, all the time.
const askAgain = 30 * time.Second

// ask renews the certificate when the store has refused something: the registrar
// says whether the node was expelled, which the store does not, and a renewal
// brings the rights that a newer version of the fleet gives.
func (a *Agent) ask(ctx context.Context, self *identity.Member) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.refused:
		}
		if err := self.Renew(ctx); outcast(err) {
			return err
		} else if err != nil {
			a.opts.Logger.Warn("the store refuses this node, and no registrar says why", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(askAgain):
		}
	}
}

// ending notes, for the next OpenAgent, that the node is not of the fleet any more
// if that is why a loop ends.
func (a *Agent) ending(self *identity.Member, err error) error {
	if outcast(err) {
		err = errors.Join(err, markOutcast(a.path("identity"), self))
	}
	return err
}

// Close ends the agent. Its containers run on; those that must not run twice
// end by themselves when the node's lease has ended. It returns why the agent
// had stopped by itself, such as [identity.ErrRevoked] or [identity.ErrUnknown] of
// a node that was expelled. Closing twice is no error.
func (a *Agent) Close() error {
	a.close()
	return a.closeErr
}

// close returns what could not be released.
func (a *Agent) close() error {
	a.closing.Do(func() {
		why := a.Err()
		a.failed = a.release()
		a.closeErr = errors.Join(why, a.failed)
	})
	return a.failed
}

// Destroy ends the agent and deletes all that it made on this machine: its
// containers, networks and volumes with their data, and its folder, whether or not
// a control plane can be reached. The fleet takes it for a node that is lost:
// drain it before, and let [Control.Expel] follow, which also forgets what the
// store has of it. That the agent had stopped by itself is no error, nor is
// destroying it twice. After an error, open the agent again to go on.
func (a *Agent) Destroy(ctx context.Context) error {
	a.destroying.Lock()
	defer a.destroying.Unlock()
	if a.destroyed {
		return nil
	}
	a.stop()
	err := errors.Join(a.clear(ctx), a.close())
	if err == nil {
		err = machine.RemoveFolder(a.dir)
	}
	if err != nil {
		return fmt.Errorf("destroy agent %q in %q: %w", a.opts.Name, a.dir, err)
	}
	a.destroyed = true
	return nil
}

// reachTimeout is how long Destroy tries to reach a control plane.
const reachTimeout = 3 * time.Second

// clear removes what is in the kernel and all volumes.
func (a *Agent) clear(ctx context.Context) error {
	containers := machine.RemoveContainers(ctx, a.runtime)
	asking, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	if _, _, err := a.store.Get(asking, record.SizeKey); err != nil && asking.Err() != nil {
		_ = a.store.Close() // nothing else waits for it
	}
	network := a.network.Purge(ctx)
	if stored := (*etcd.Error)(nil); errors.As(network, &stored) || errors.Is(network, store.ErrClosed) {
		// On this machine all is gone. What the store has of it, Expel forgets: the
		// node may be expelled already, or out of reach.
		a.opts.Logger.Warn("the node's part of the networks is not given back; Control.Expel does it", "error", network)
		network = nil
	}
	return errors.Join(containers, network, machine.RemoveVolumes(ctx, a.volumes))
}

// release ends the loops and closes what open opened.
func (a *Agent) release() error {
	a.stop()
	var errs []error
	if a.names.Server != nil {
		errs = append(errs, a.names.Close())
	}
	if a.volumes != nil {
		errs = append(errs, a.volumes.Close())
	}
	if a.network != nil {
		errs = append(errs, a.network.Close())
	}
	if a.runtime != nil {
		errs = append(errs, a.runtime.Close())
	}
	if a.store != nil {
		errs = append(errs, a.store.Close())
	}
	return errors.Join(errs...)
}
