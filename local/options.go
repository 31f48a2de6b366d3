//go:build linux

package local

import (
	"context"
	"log/slog"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// Option changes how a fleet is opened.
type Option func(*options)

type options struct {
	logger      *slog.Logger
	host        string // name of the machine
	nodeID      string
	further     []string // nodes
	labels      map[string]string
	binDir      string
	containerd  string
	bindRoots   []string
	capacity    scheduler.Resources
	checkers    map[string]health.Checker
	credentials func(ctx context.Context, host string) (runtime.Credentials, error)
	fleet       []orchestrate.Option
}

// WithLogger sets where the fleet logs to; by default nowhere. The packages of
// containerd that run inside the program take no logger: a few warnings of
// theirs go to the process-wide one of github.com/containerd/log, on standard
// error, which the program may set.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.logger = l } }

// WithNode names this node and labels it for placement constraints. The name
// is the host's by default.
func WithNode(id string, labels map[string]string) Option {
	return func(o *options) { o.nodeID, o.labels = id, labels }
}

// WithCapacity sets what the node has for tasks; by default all of the
// machine's cores, memory and disk.
func WithCapacity(r scheduler.Resources) Option { return func(o *options) { o.capacity = r } }

// WithBinDir names a folder in which containerd-shim-runc-v2 and runc are
// looked for before PATH.
func WithBinDir(dir string) Option { return func(o *options) { o.binDir = dir } }

// WithContainerd runs containers by the containerd that listens on a socket,
// such as /run/containerd/containerd.sock, in its namespace "orchestrate", and
// not by parts of containerd inside the program. Images are the daemon's, and
// stay there after [Fleet.Destroy]. A folder stays with the way it was begun
// with.
func WithContainerd(socket string) Option { return func(o *options) { o.containerd = socket } }

// WithBindRoots allows bind mounts of what is below these absolute paths.
// Without it, none are.
func WithBindRoots(paths ...string) Option {
	return func(o *options) { o.bindRoots = append(o.bindRoots, paths...) }
}

// WithChecker registers a health checker for [health.Custom] checks of that
// name.
func WithChecker(name string, c health.Checker) Option {
	return func(o *options) {
		if o.checkers == nil {
			o.checkers = map[string]health.Checker{}
		}
		o.checkers[name] = c
	}
}

// WithCredentials is asked for each registry host that images are pulled
// from.
func WithCredentials(f func(ctx context.Context, host string) (runtime.Credentials, error)) Option {
	return func(o *options) { o.credentials = f }
}

// WithFleetOptions passes options to [orchestrate.New], such as a scheduler
// with strategies of the application's own.
func WithFleetOptions(opts ...orchestrate.Option) Option {
	return func(o *options) { o.fleet = append(o.fleet, opts...) }
}
