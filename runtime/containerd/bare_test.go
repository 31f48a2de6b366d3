//go:build linux

package containerd_test

import (
	stdcontext "context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

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

	"github.com/orchestrate-go/orchestrate/runtime/image"
)

// bare is a containerd server with its plain client over its socket: what the
// benchmarks compare with. It can be had once in a process, as its plugins are
// global and it cannot be closed, which is why the package does not use it.
type bare struct {
	client     *client.Client
	image      client.Image
	shim, runc string
}

// startBare starts the server, once for all benchmarks. Its folders are
// removed by the process's end in TestMain.
var startBare = sync.OnceValues(func() (*bare, error) {
	log.SetLevel("fatal")
	dir, err := os.MkdirTemp("/run", "bare-")
	if err != nil {
		return nil, err
	}
	bareDir = dir
	socket, err := serveContainerd(filepath.Join(os.TempDir(), filepath.Base(dir)), dir)
	if err != nil {
		return nil, err
	}
	ctx := stdcontext.Background()
	c, err := client.New(socket, client.WithDefaultNamespace("bare"))
	if err != nil {
		return nil, err
	}
	b := &bare{client: c}
	for name, path := range map[string]*string{"containerd-shim-runc-v2": &b.shim, "runc": &b.runc} {
		if *path, err = exec.LookPath(filepath.Join(os.Getenv("ORCHESTRATE_BIN"), name)); err != nil {
			if *path, err = exec.LookPath(name); err != nil {
				return nil, err
			}
		}
	}
	img, err := image.FromBinary(testImage, program, image.Options{})
	if err != nil {
		return nil, err
	}
	r := img.Reader()
	defer r.Close()
	list, err := c.Import(namespaces.WithNamespace(ctx, "bare"), r)
	if err != nil {
		return nil, err
	}
	b.image = client.NewImage(c, list[0])
	return b, b.image.Unpack(namespaces.WithNamespace(ctx, "bare"), "overlayfs")
})

// serveContainerd starts the server in this process.
func serveContainerd(root, dir string) (socket string, err error) {
	socket = filepath.Join(dir, "c.sock")
	cfg := &config.Config{
		Version: 3, Root: root, State: filepath.Join(dir, "state"),
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":  map[string]any{"address": socket},
			"io.containerd.server.v1.ttrpc": map[string]any{"address": socket + ".ttrpc"},
			"io.containerd.shim.v1.manager": map[string]any{"socket_dir": filepath.Join(dir, "s")},
		},
	}
	if err := server.CreateTopLevelDirectories(cfg); err != nil {
		return "", err
	}
	ctx := stdcontext.Background()
	s, err := server.New(ctx, cfg)
	if err != nil {
		return "", err
	}
	return socket, s.Start(ctx)
}

// bareDir is where the server has its state; TestMain removes it.
var bareDir string

// start is the shortest way from an image to a running process that the
// client has.
func (b *bare) start(ctx stdcontext.Context, id string, args ...string) (client.Container, client.Task, error) {
	c, err := b.client.NewContainer(ctx, id,
		client.WithImage(b.image), client.WithNewSnapshot(id, b.image),
		client.WithRuntime(b.shim, &runcopts.Options{BinaryName: b.runc, Root: filepath.Join(bareDir, "runc")}),
		client.WithNewSpec(oci.WithImageConfigArgs(b.image, args), oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace})))
	if err != nil {
		return nil, nil, fmt.Errorf("NewContainer: %w", err)
	}
	task, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		return c, nil, fmt.Errorf("NewTask: %w", err)
	}
	return c, task, task.Start(ctx)
}

func (b *bare) remove(ctx stdcontext.Context, c client.Container, task client.Task) error {
	if task != nil {
		if _, err := task.Delete(ctx, client.WithProcessKill); err != nil {
			return err
		}
	}
	return c.Delete(ctx, client.WithSnapshotCleanup)
}

func bareContext(b testing.TB) (*bare, stdcontext.Context) {
	b.Helper()
	srv, err := startBare()
	if err != nil {
		b.Fatal(err)
	}
	return srv, namespaces.WithNamespace(stdcontext.Background(), "bare")
}
