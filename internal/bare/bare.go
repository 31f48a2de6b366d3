//go:build linux

// Package bare is containerd with its plain client: what benchmarks compare
// with.
package bare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	runcopts "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/cmd/containerd/server"
	"github.com/containerd/containerd/v2/cmd/containerd/server/config"
	_ "github.com/containerd/containerd/v2/core/runtime/v2"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	_ "github.com/containerd/containerd/v2/plugins/content/local/plugin"
	_ "github.com/containerd/containerd/v2/plugins/diff/walking/plugin"
	_ "github.com/containerd/containerd/v2/plugins/events"
	_ "github.com/containerd/containerd/v2/plugins/gc"
	_ "github.com/containerd/containerd/v2/plugins/leases"
	_ "github.com/containerd/containerd/v2/plugins/metadata"
	_ "github.com/containerd/containerd/v2/plugins/mount"
	_ "github.com/containerd/containerd/v2/plugins/sandbox"
	_ "github.com/containerd/containerd/v2/plugins/server/grpc"
	_ "github.com/containerd/containerd/v2/plugins/server/ttrpc"
	_ "github.com/containerd/containerd/v2/plugins/services/containers"
	_ "github.com/containerd/containerd/v2/plugins/services/content"
	_ "github.com/containerd/containerd/v2/plugins/services/diff"
	_ "github.com/containerd/containerd/v2/plugins/services/events"
	_ "github.com/containerd/containerd/v2/plugins/services/images"
	_ "github.com/containerd/containerd/v2/plugins/services/introspection"
	_ "github.com/containerd/containerd/v2/plugins/services/leases"
	_ "github.com/containerd/containerd/v2/plugins/services/mounts"
	_ "github.com/containerd/containerd/v2/plugins/services/namespaces"
	_ "github.com/containerd/containerd/v2/plugins/services/sandbox"
	_ "github.com/containerd/containerd/v2/plugins/services/snapshots"
	_ "github.com/containerd/containerd/v2/plugins/services/tasks"
	_ "github.com/containerd/containerd/v2/plugins/services/version"
	_ "github.com/containerd/containerd/v2/plugins/services/warning"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/native/plugin"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/overlay/plugin"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Server is containerd in this process and its client over a socket. There can
// be one in a process, as its plugins are global and it cannot be stopped: the
// reason why package containerd does without it.
type Server struct {
	client     *client.Client
	image      client.Image
	dir, root  string
	shim, runc string
}

// namespace is containerd's, of all containers here.
const namespace = "bare"

// Start serves one image, that of archive. The shim and runc are
// found in the folder that ORCHESTRATE_BIN names, or on PATH.
func Start(archive io.Reader) (_ *Server, err error) {
	log.SetLevel("fatal")
	s := new(Server)
	for name, path := range map[string]*string{"containerd-shim-runc-v2": &s.shim, "runc": &s.runc} {
		if *path, err = exec.LookPath(filepath.Join(os.Getenv("ORCHESTRATE_BIN"), name)); err != nil {
			if *path, err = exec.LookPath(name); err != nil {
				return nil, err
			}
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.dir, err = os.MkdirTemp("/run", "bare-"); err != nil { // short: sockets lie in it
		return nil, err
	}
	if s.root, err = os.MkdirTemp("", "bare-"); err != nil {
		return nil, err
	}
	socket, err := Serve(s.root, s.dir)
	if err != nil {
		return nil, err
	}
	ctx := s.Context(context.Background())
	if s.client, err = client.New(socket, client.WithDefaultNamespace(namespace)); err != nil {
		return nil, err
	}
	list, err := s.client.Import(ctx, archive)
	if err != nil {
		return nil, err
	}
	s.image = client.NewImage(s.client, list[0])
	return s, s.image.Unpack(ctx, "overlayfs")
}

// Serve starts the server alone, with its data in root and its sockets and what
// a reboot ends in state, a short path. It returns where it listens.
func Serve(root, state string) (socket string, err error) {
	socket = filepath.Join(state, "c.sock")
	cfg := &config.Config{
		Version: 3, Root: root, State: filepath.Join(state, "state"),
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":  map[string]any{"address": socket},
			"io.containerd.server.v1.ttrpc": map[string]any{"address": socket + ".ttrpc"},
			"io.containerd.shim.v1.manager": map[string]any{"socket_dir": filepath.Join(state, "s")},
		},
	}
	if err := server.CreateTopLevelDirectories(cfg); err != nil {
		return "", err
	}
	s, err := server.New(context.Background(), cfg)
	if err != nil {
		return "", err
	}
	return socket, s.Start(context.Background())
}

// Context is ctx for calls of the containers' own methods.
func (s *Server) Context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, namespace)
}

// Socket is where the server listens.
func (s *Server) Socket() string { return filepath.Join(s.dir, "c.sock") }

// Close closes the client and removes the folders. The server itself runs on.
func (s *Server) Close() error {
	var err error
	if s.client != nil {
		err = s.client.Close()
	}
	return errors.Join(err, os.RemoveAll(s.dir), os.RemoveAll(s.root))
}

// Container is a container of a Server, with its process.
type Container struct {
	client.Container
	Task client.Task
}

// Run is the shortest way from an image to a running process that the client
// has: create and start, in a network namespace of its own.
func (s *Server) Run(ctx context.Context, id string, args ...string) (*Container, error) {
	ctx = s.Context(ctx)
	c, err := s.client.NewContainer(ctx, id,
		client.WithImage(s.image), client.WithNewSnapshot(id, s.image),
		client.WithRuntime(s.shim, &runcopts.Options{BinaryName: s.runc, Root: filepath.Join(s.dir, "runc")}),
		client.WithNewSpec(oci.WithImageConfigArgs(s.image, args), oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace})))
	if err != nil {
		return nil, fmt.Errorf("NewContainer: %w", err)
	}
	task, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		return &Container{Container: c}, fmt.Errorf("NewTask: %w", err)
	}
	return &Container{c, task}, task.Start(ctx)
}

// Remove kills and deletes a container.
func (s *Server) Remove(ctx context.Context, c *Container) error {
	ctx = s.Context(ctx)
	if c.Task != nil {
		if _, err := c.Task.Delete(ctx, client.WithProcessKill); err != nil {
			return err
		}
	}
	return c.Delete(ctx, client.WithSnapshotCleanup)
}
