//go:build linux

package local

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cron"
	"github.com/orchestrate-go/orchestrate/internal/machine"
	"github.com/orchestrate-go/orchestrate/network/bridge"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
	"github.com/orchestrate-go/orchestrate/runtime/image"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/bolt"
	"github.com/orchestrate-go/orchestrate/volume/local"
)

// Fleet is an [orchestrate.Fleet] that runs on this machine. Make it with
// [Open].
type Fleet struct {
	*orchestrate.Fleet
	dir    string
	nodeID string

	store   *bolt.Store
	runtime containers
	network *bridge.Driver
	volumes *local.Driver
	names   machine.Names
	nodes   []*agent // that the machine stands for; the first is nodeID
	opts    options

	ctx    context.Context // of the loops; ends with cancel
	cancel context.CancelFunc
	loops  sync.WaitGroup
	done   chan struct{} // closed when the loops have ended

	closing  sync.Once
	closeErr error

	mu        sync.Mutex // guards what follows
	err       error      // why a loop ended by itself
	destroyed bool
}

// Open opens the fleet whose state is in dir, which is made if it is missing,
// and runs it until [Fleet.Close]. What ran under dir before is adopted. One
// program at a time has a folder open: the error is then a [*bolt.FileError]
// that names the file. A missing program is a
// [*containerd.MissingBinaryError].
func Open(dir string, opts ...Option) (*Fleet, error) {
	f, err := open(dir, opts)
	if err != nil {
		return nil, fmt.Errorf("open fleet in %q: %w", dir, err)
	}
	return f, nil
}

func open(dir string, opts []Option) (_ *Fleet, err error) {
	if dir == "" {
		return nil, errors.New("the folder is not named; give one of the fleet's own, such as /var/lib/myapp")
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if unix.Geteuid() != 0 {
		return nil, errors.New("this needs root, for namespaces, mounts and nftables; run it as root")
	}
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	if o.logger == nil {
		o.logger = slog.New(slog.DiscardHandler)
	}
	if o.host, err = os.Hostname(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f := &Fleet{dir: dir, nodeID: cmp.Or(o.nodeID, o.host), done: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.release())
		}
	}()
	if f.store, err = bolt.Open(filepath.Join(dir, "state.db"), bolt.Options{}); err != nil {
		return nil, err
	}
	if f.runtime, err = openRuntime(filepath.Join(dir, "containers"), &o); err != nil {
		return nil, err
	}
	id := fleetID(dir)
	if f.network, err = bridge.Open(bridge.Options{
		ID: id, Dir: filepath.Join(dir, "network"), Logger: o.logger,
	}); err != nil {
		return nil, err
	}
	volumes := local.Options{Dir: filepath.Join(dir, "volumes"), BindRoots: o.bindRoots}
	if len(o.further) > 0 {
		// The nodes of this machine reach its folder, and no others.
		volumes.Reach = map[string]string{"orchestrate.machine": f.nodeID}
	}
	if f.volumes, err = local.Open(volumes); err != nil {
		return nil, err
	}
	f.names = machine.NewNames(o.logger)
	pools, err := addressPools(f.store, dir)
	if err != nil {
		return nil, err
	}
	if o.capacity.IsZero() {
		if o.capacity, err = machine.Capacity(dir); err != nil {
			return nil, err
		}
	}
	f.opts = o
	if err := f.makeNodes(); err != nil {
		return nil, err
	}
	f.Fleet, err = orchestrate.New(f.store, append([]orchestrate.Option{
		orchestrate.WithID(f.nodeID), orchestrate.WithLogger(o.logger),
		orchestrate.WithAddressPools(pools.V4, pools.V6),
		orchestrate.WithAccess(f.access), orchestrate.WithResolver(resolver{f.runtime, o.credentials}),
		orchestrate.WithSchedules(cron.Parse),
	}, o.fleet...)...)
	if err != nil {
		return nil, err
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	for _, run := range []func(context.Context) error{f.Fleet.Run, f.names.Run} {
		f.loops.Go(func() {
			if err := run(f.ctx); err != nil && f.ctx.Err() == nil {
				f.fail(err)
			}
		})
	}
	for _, a := range f.nodes {
		if err := f.runNode(a); err != nil {
			f.cancel()
			f.loops.Wait()
			return nil, err
		}
	}
	go func() {
		f.loops.Wait()
		close(f.done)
	}()
	return f, nil
}

// containers is what a fleet needs of its runtime.
type containers interface {
	runtime.Runtime
	runtime.Importer
	runtime.Execer
	runtime.LogReader
	runtime.StatsReader
	runtime.ImageLister
	runtime.Resolver
	runtime.Updater
	Close() error
}

func openRuntime(root string, o *options) (containers, error) {
	if o.containerd == "" {
		r, err := containerd.Open(containerd.Options{Root: root, BinDir: o.binDir, Logger: o.logger})
		if err != nil {
			return nil, err // and no nil *Runtime in an interface
		}
		return r, nil
	}
	r, err := containerd.Connect(containerd.ConnectOptions{Address: o.containerd, Root: root, BinDir: o.binDir, Logger: o.logger})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// fail notes why a loop ended and ends the others.
func (f *Fleet) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
	f.cancel()
}

// Done is closed when the fleet does not run any more: after Close, or because
// of an error that [Fleet.Err] returns.
func (f *Fleet) Done() <-chan struct{} { return f.done }

// Err returns why the fleet stopped by itself; nil while it runs and after
// Close.
func (f *Fleet) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Close ends the control plane, the agent and all calls under way, and lets go
// of the folder. Containers run on, and published ports serve; names are not
// resolved until the next Open. It returns why the fleet had stopped by itself,
// if it had. Closing twice is no error.
func (f *Fleet) Close() error {
	f.closing.Do(func() {
		f.stop()
		f.closeErr = errors.Join(f.Err(), f.release())
	})
	return f.closeErr
}

// stop ends the loops and all calls.
func (f *Fleet) stop() {
	f.mu.Lock() // no node starts after this
	f.cancel()
	f.mu.Unlock()
	f.Fleet.Close() // returns no error
	<-f.done
	for _, a := range f.nodes {
		if a.share != nil {
			a.share.held.close()
		}
	}
}

// release closes what open opened.
func (f *Fleet) release() error {
	var errs []error
	if f.names.Server != nil {
		errs = append(errs, f.names.Close())
	}
	if f.volumes != nil {
		errs = append(errs, f.volumes.Close())
	}
	if f.network != nil {
		errs = append(errs, f.network.Close())
	}
	if f.runtime != nil {
		errs = append(errs, f.runtime.Close())
	}
	if f.store != nil {
		errs = append(errs, f.store.Close())
	}
	return errors.Join(errs...)
}

// Import makes images of a local OCI or "docker save" archive present, so that
// services can name them; see [runtime.Importer].
func (f *Fleet) Import(ctx context.Context, archive io.Reader) ([]runtime.Image, error) {
	return f.runtime.Import(ctx, archive)
}

// Load makes an image that package image built present.
func (f *Fleet) Load(ctx context.Context, img *image.Image) (runtime.Image, error) {
	r := img.Reader()
	defer r.Close()
	images, err := f.runtime.Import(ctx, r)
	if err != nil {
		return runtime.Image{}, err
	}
	return images[0], nil
}

// Node is the ID of this machine in the fleet.
func (f *Fleet) Node() string { return f.nodeID }

// ID is the word in the names of what the fleet makes in the kernel, such as
// its nftables table.
func (f *Fleet) ID() string { return fleetID(f.dir) }

// fleetID names what the fleet makes in the kernel. It is derived from the
// folder, so that the next Open finds it again.
func fleetID(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return hex.EncodeToString(sum[:4])
}

// readJSON and writeJSON keep a value of this package in the store.
func readJSON(ctx context.Context, s store.Store, key string, v any) (bool, error) {
	item, found, err := store.Get(ctx, s, key)
	if err != nil || !found {
		return false, err
	}
	return true, json.Unmarshal(item.Value, v)
}

func writeJSON(ctx context.Context, s store.Store, key string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put(key, data)}})
	return err
}

// openTimeout bounds the store's calls at opening.
const openTimeout = 10 * time.Second
