//go:build linux

package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// Options configures a Runtime. Root is required.
type Options struct {
	// Root is the folder that belongs to this Runtime alone: images, layers,
	// the writable layers of containers, logs. It is made when missing.
	Root string
	// State holds what a reboot ends: sockets, bundles, mounts. It should be
	// on a tmpfs and its path must be at most 37 characters long, for a
	// socket's path has room for about a hundred. When empty it is a folder
	// of /run/orchestrate that is named by a hash of Root.
	State string
	// BinDir is where containerd-shim-runc-v2 and runc are looked for first;
	// then the folder named by the environment variable ORCHESTRATE_BIN, and
	// PATH.
	BinDir string
	// Logger receives what the Runtime cannot report to a caller. Nil
	// discards it.
	Logger *slog.Logger
	// GroupsPerShim is how many groups of containers, such as tasks, may share
	// a shim. Zero means 8; with 1 each has its own. A shim that dies takes
	// its containers with it, so more of them start faster and fail together.
	// The first four groups have a shim each in any case.
	GroupsPerShim int
	// WarmShims is for how many more groups than there are shims are kept
	// ready, so that a start need not wait for one. Zero means 1, a negative
	// number none. An idle shim costs 15 MB of memory, 11 of them shared with
	// the others.
	WarmShims int
}

// Runtime runs containers with containerd's image store and its runc shim.
// See the package comment for how.
type Runtime struct {
	root, state string
	opts        Options
	log         *slog.Logger
	bin         binaries
	cgroups     cgroupTree

	lock   *os.File
	engine engine
	store  *store
	shims  *shimPool
	logs   *logWatch
	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // waiters of containers

	mu         sync.Mutex
	closed     bool
	containers map[string]*container // by ID, those that exist
	starting   map[string]*turn      // who may change a container, by ID
	chains     map[string]int        // layers that starts under way use, by chain ID
	hold       hold
	logGuard   logGuard
	calls      sync.WaitGroup // calls under way, that Close waits for
}

// engine makes and deletes the containers of a Runtime: by shims of its own,
// which the Runtime itself does, or by a containerd that runs.
type engine interface {
	// start makes and runs a container. The caller has its turn. Nothing is
	// left of one that cannot be started.
	start(ctx context.Context, spec runtime.Spec) error
	// clear deletes all that start makes, as far as it is there. The
	// container is nil when nothing is known of it but its ID.
	clear(id string, c *container) error
	// detach lets go of the containers, which run on.
	detach() error
}

// turn is held by the one call that changes a container.
type turn struct {
	held chan struct{} // has one token when free
	refs int
}

var (
	_ runtime.Runtime  = (*Runtime)(nil)
	_ runtime.Importer = (*Runtime)(nil)
	_ runtime.Holder   = (*Runtime)(nil)
)

// Open opens the runtime whose data is under opts.Root and adopts the
// containers that run there. The errors wrap [ErrLocked] or are a
// *[MissingBinaryError].
func Open(opts Options) (*Runtime, error) {
	if opts.Root == "" {
		return nil, errors.New("open runtime: Options.Root is empty: want a folder")
	}
	root, err := filepath.Abs(opts.Root)
	if err != nil {
		return nil, fmt.Errorf("open runtime: %w", err)
	}
	if strings.ContainsAny(root, `,:\`) {
		// They part overlayfs's mount options.
		return nil, fmt.Errorf("open runtime: root %q: want a path without comma, colon and backslash", root)
	}
	r := newRuntime(root, opts)
	r.engine = r
	if err := r.open(); err != nil {
		return nil, fmt.Errorf("open runtime %s: %w", root, err)
	}
	return r, nil
}

func newRuntime(root string, opts Options) *Runtime {
	r := &Runtime{
		root: root, state: opts.State, opts: opts, log: opts.Logger,
		containers: map[string]*container{}, starting: map[string]*turn{}, chains: map[string]int{},
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	return r
}

func (r *Runtime) open() (err error) {
	if r.bin, err = findBinaries(r.opts.BinDir); err != nil {
		return err
	}
	name := shortHash(r.root)
	if r.state == "" {
		r.state = filepath.Join("/run/orchestrate", name)
	}
	if n := len(r.state); n > maxStateLen {
		return fmt.Errorf("the path of the state folder %s has %d characters: want at most %d, for sockets lie in it", r.state, n, maxStateLen)
	}
	if err := makeFolders(r.root, filepath.Join(r.root, "containers"), r.state, r.bundles()); err != nil {
		return err
	}
	if r.lock, err = lockRoot(filepath.Join(r.root, "lock")); err != nil {
		return err
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	undo := func() { r.cancel(); r.endLogGuard(true); r.lock.Close() }
	r.cgroups = newCgroupTree("/orchestrate/" + name)
	if r.store, err = openStore(r); err != nil {
		undo()
		return err
	}
	if r.shims, err = openShimPool(r); err != nil {
		r.store.close()
		undo()
		return err
	}
	if r.logs, err = openLogWatch(r.log); err != nil {
		r.shims.close()
		r.store.close()
		undo()
		return err
	}
	// An earlier process's: its work is ours now.
	err = r.endLogGuard(false)
	if err == nil {
		err = r.adopt()
	}
	if err != nil {
		r.cancel()
		r.wg.Wait()
		r.logs.close()
		r.shims.close()
		r.store.close()
		undo()
		return fmt.Errorf("adopt containers: %w", err)
	}
	r.shims.fill()
	return nil
}

func (r *Runtime) bundles() string         { return filepath.Join(r.state, "c") }
func (r *Runtime) bundle(id string) string { return filepath.Join(r.state, "c", id) }
func (r *Runtime) layer(id string) string  { return filepath.Join(r.root, "containers", id) }
func (r *Runtime) runcRoot() string        { return filepath.Join(r.state, "runc") }

// makeFolders makes folders and those that they are in. One that is empty may be
// removed by the runtime of another root as it closes, before there is ours in it.
func makeFolders(dirs ...string) error {
	for _, dir := range dirs {
		err := os.MkdirAll(dir, 0o711)
		for try := 0; errors.Is(err, os.ErrNotExist) && try < 100; try++ {
			err = os.MkdirAll(dir, 0o711)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Close lets go of the containers, which run on, and of the root: a later
// Open adopts them. It is idempotent.
func (r *Runtime) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	r.mu.Unlock()

	// First the calls, such as a start that is half done.
	r.calls.Wait()
	r.cancel()
	r.wg.Wait()
	err := errors.Join(r.engine.detach(), r.logs.close(), r.store.close(), r.endLogGuard(len(r.containers) > 0))
	if len(r.containers) == 0 {
		// Nothing runs: leave nothing in the tmpfs and no cgroup.
		r.cgroups.removeRoot()
		err = errors.Join(err, os.RemoveAll(r.state))
		os.Remove(filepath.Dir(r.state)) // when it was the last one
	}
	return errors.Join(err, r.lock.Close())
}

// detach implements engine.
func (r *Runtime) detach() error {
	r.shims.close()
	return nil
}

// enter counts a call that uses the store or changes a container. Close waits
// for those under way; none begins after it.
func (r *Runtime) enter() (done func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, runtime.ErrClosed
	}
	r.calls.Add(1)
	return r.calls.Done, nil
}

// take waits for the turn to change container id and returns the call that
// ends it.
func (r *Runtime) take(ctx context.Context, id string) (release func(), err error) {
	done, err := r.enter()
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	t := r.starting[id]
	if t == nil {
		t = &turn{held: make(chan struct{}, 1)}
		t.held <- struct{}{}
		r.starting[id] = t
	}
	t.refs++
	r.mu.Unlock()
	drop := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if t.refs--; t.refs == 0 {
			delete(r.starting, id)
		}
		done()
	}
	select {
	case <-t.held:
		if err := ctx.Err(); err != nil {
			t.held <- struct{}{}
			drop()
			return nil, err
		}
		return func() { t.held <- struct{}{}; drop() }, nil
	case <-ctx.Done():
		drop()
		return nil, ctx.Err()
	}
}

func (r *Runtime) container(id string) (*container, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, runtime.ErrClosed
	}
	c := r.containers[id]
	if c == nil {
		return nil, runtime.ErrNotFound
	}
	return c, nil
}

// List implements [runtime.Runtime].
func (r *Runtime) List(ctx context.Context, labels map[string]string) ([]runtime.Container, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil, fmt.Errorf("list containers: %w", runtime.ErrClosed)
	}
	all := slices.Collect(maps.Values(r.containers))
	r.mu.Unlock()
	var list []runtime.Container
	for _, c := range all {
		if includes(c.record.Labels, labels) {
			list = append(list, c.info())
		}
	}
	slices.SortFunc(list, func(a, b runtime.Container) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

func includes(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}
