//go:build linux

package containerd_test

import (
	"archive/tar"
	"bytes"
	"context"
	stdcontext "context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
	"github.com/orchestrate-go/orchestrate/runtime/image"
	"github.com/orchestrate-go/orchestrate/runtime/runtimetest"
)

// connection is a Client as a test uses it.
type connection struct {
	*containerd.Client
	opts containerd.ConnectOptions
}

func dial(d *daemon, opts containerd.ConnectOptions) (*connection, error) {
	opts.Address, opts.BinDir = d.socket, os.Getenv("ORCHESTRATE_BIN")
	c, err := containerd.Connect(opts)
	if err != nil {
		return nil, err
	}
	return &connection{c, opts}, nil
}

// loadInto gives a runtime the test image.
func loadInto(ctx stdcontext.Context, rt runtime.Importer) error {
	img, err := image.FromBinary(testImage, program, image.Options{})
	if err != nil {
		return err
	}
	r := img.Reader()
	defer r.Close()
	_, err = rt.Import(ctx, r)
	return err
}

// connect opens a Client that has the test image, until the end of the test,
// when nothing of its containers may be left.
func connect(t *testing.T, d *daemon, opts containerd.ConnectOptions) *connection {
	t.Helper()
	if opts.Root == "" {
		opts.Root = t.TempDir()
	}
	c, err := dial(d, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.end(d); err != nil {
			t.Error(err)
		}
	})
	if err := loadInto(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	return c
}

// end removes all containers, closes, and reports what is left.
func (c *connection) end(d *daemon) error {
	ctx := context.Background()
	list, err := c.List(ctx, nil)
	for _, one := range list {
		err = errors.Join(err, c.Remove(ctx, one.ID))
	}
	if errors.Is(err, runtime.ErrClosed) {
		return nil // the test had it closed
	}
	return errors.Join(err, c.Close(), c.leftovers(d))
}

func (c *connection) leftovers(d *daemon) error {
	ns := c.opts.Namespace
	if ns == "" {
		ns = "orchestrate"
	}
	left, err := d.contents(ns)
	if err != nil || len(left) > 0 {
		return fmt.Errorf("left in containerd: %q, %w", left, err)
	}
	var errs []error
	state := containerd.StateDir(c.opts.Root)
	for _, pattern := range []string{
		state, "/sys/fs/cgroup/*/orchestrate/" + filepath.Base(state), "/sys/fs/cgroup/orchestrate/" + filepath.Base(state),
	} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			errs = append(errs, fmt.Errorf("left: %v", left))
		}
	}
	// The daemon is one, a shim would be another.
	return errors.Join(errs...)
}

func TestClientConformance(t *testing.T) {
	for name, change := range map[string]func(containerd.ConnectOptions) containerd.ConnectOptions{
		"by shim":          func(o containerd.ConnectOptions) containerd.ConnectOptions { return o },
		"by daemon, alone": containerd.ViaDaemon,
		"native snapshots": func(o containerd.ConnectOptions) containerd.ConnectOptions { o.Snapshotter = "native"; return o },
	} {
		t.Run(name, func(t *testing.T) {
			d := startDaemon(t)
			registry := startRegistry(t, nil)
			var cases atomic.Int32
			var opened *connection
			runtimetest.Test(t, runtimetest.Harness{
				Image: testImage, Missing: registry + "/none:1", System: true,
				Open: func(ctx stdcontext.Context) (runtime.Runtime, func() error, error) {
					root, err := os.MkdirTemp("", "conformance-")
					if err != nil {
						return nil, nil, err
					}
					opened, err = dial(d, change(containerd.ConnectOptions{Root: root, Namespace: fmt.Sprint("case", cases.Add(1))}))
					if err != nil {
						return nil, nil, err
					}
					return opened.Client, func() error { return errors.Join(opened.end(d), os.RemoveAll(root)) }, loadInto(ctx, opened)
				},
				Restart: func(ctx stdcontext.Context, rt runtime.Runtime) (runtime.Runtime, func() error, error) {
					root := opened.opts.Root
					if err := opened.Close(); err != nil {
						return nil, nil, err
					}
					var err error
					if opened, err = dial(d, opened.opts); err != nil {
						return nil, nil, err
					}
					return opened.Client, func() error { return errors.Join(opened.end(d), os.RemoveAll(root)) }, nil
				},
			})
		})
	}
}

func begin(t *testing.T, c *connection, id string, args ...string) {
	t.Helper()
	if err := c.Start(t.Context(), runtime.Spec{ID: id, Image: testImage, Args: args}); err != nil {
		t.Fatal(err)
	}
}

func (c *connection) pid(t *testing.T, id string) int {
	t.Helper()
	list, err := c.List(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range list {
		if one.ID == id {
			return one.PID
		}
	}
	t.Fatalf("%s is not listed", id)
	return 0
}

// ready waits for a container's first line, after which it has its signals
// handled.
func ready(t *testing.T, c *connection, id string) {
	t.Helper()
	first := errors.New("first line")
	err := c.Logs(t.Context(), id, runtime.LogOptions{Follow: true}, func(runtime.LogLine) error { return first })
	if !errors.Is(err, first) {
		t.Fatalf("%s has no line: %v", id, err)
	}
}

func TestConnectErrors(t *testing.T) {
	if _, err := containerd.Connect(containerd.ConnectOptions{}); err == nil {
		t.Error("without Root: got nil, want an error")
	}
	root := t.TempDir()
	opts := containerd.ConnectOptions{Root: root, Address: filepath.Join(root, "none.sock")}
	if _, err := containerd.Connect(opts); !errors.Is(err, containerd.ErrNoDaemon) {
		t.Errorf("without a daemon: got %v, want ErrNoDaemon", err)
	}
	d := startDaemon(t)
	c := connect(t, d, containerd.ConnectOptions{Root: root})
	if _, err := dial(d, c.opts); !errors.Is(err, containerd.ErrLocked) {
		t.Errorf("a second Client of a Root: got %v, want ErrLocked", err)
	}
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Errorf("Close twice: %v", err)
	}
	if err := c.Start(t.Context(), runtime.Spec{ID: "a", Image: testImage}); !errors.Is(err, runtime.ErrClosed) {
		t.Errorf("Start after Close: got %v, want ErrClosed", err)
	}
}

// Clients of other Roots have containers of their own in the same namespace.
func TestClientsOfOneNamespace(t *testing.T) {
	d := startDaemon(t)
	a, b := connect(t, d, containerd.ConnectOptions{}), connect(t, d, containerd.ConnectOptions{})
	begin(t, a, "a", "ignore")
	begin(t, b, "b", "ignore")
	if list, err := b.List(t.Context(), nil); err != nil || len(list) != 1 || list[0].ID != "b" {
		t.Errorf("List of one: got %v, %v; want its own container alone", list, err)
	}
	begin(t, b, "a", "exit=3")
	if exit, err := b.Wait(t.Context(), "a"); err != nil || exit.Code != 3 {
		t.Errorf("an ID that the other has as well: got %v, %v; want exit code 3", exit, err)
	}
	if err := errors.Join(b.Remove(t.Context(), "a"), b.Remove(t.Context(), "b")); err != nil {
		t.Error(err)
	}
	if list, err := a.List(t.Context(), nil); err != nil || len(list) != 1 || list[0].State != runtime.Running {
		t.Errorf("the other's container: got %v, %v; want it running still", list, err)
	}
	if err := a.Remove(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}

// What the daemon knows of a container is of use to those who look at it.
func TestClientContainer(t *testing.T) {
	d := startDaemon(t)
	c := connect(t, d, containerd.ConnectOptions{})
	long := strings.Repeat("x", 5000) // more than containerd takes in a label
	spec := runtime.Spec{
		// Two separators in succession are no name in containerd.
		ID: "a--b", Image: testImage, Args: []string{"print=ready", "ignore"},
		Labels: map[string]string{runtime.LabelTask: "web.1", "note": long},
	}
	if err := c.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	list, err := d.client.Containers(namespaces.WithNamespace(t.Context(), "orchestrate"), `labels."orchestrate.task"==web.1`)
	if err != nil || len(list) != 1 {
		t.Fatalf("containerd finds %v, %v by the task's label: want one container", list, err)
	}
	if code, err := c.Exec(t.Context(), "a--b", runtime.Exec{Args: []string{"/program", "exit=3"}, User: "nobody"}); err != nil || code != 3 {
		t.Errorf("Exec: got %d, %v; want 3", code, err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	// As when somebody cleans up /run: the daemon knows enough.
	if err := os.RemoveAll(filepath.Join(containerd.StateDir(c.opts.Root), "c")); err != nil {
		t.Fatal(err)
	}
	if c, err = dial(d, c.opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.end(d); err != nil {
			t.Error(err)
		}
	})
	got, err := c.List(t.Context(), nil)
	if err != nil || len(got) != 1 || got[0].ID != "a--b" || got[0].State != runtime.Running || got[0].Labels["note"] != long {
		t.Fatalf("adopted without its record: got %v, %v; want a--b, running, with its labels", got, err)
	}
	if code, err := c.Exec(t.Context(), "a--b", runtime.Exec{Args: []string{"/program", "exit=4"}}); err != nil || code != 4 {
		t.Errorf("Exec: got %d, %v; want 4", code, err)
	}
	ready(t, c, "a--b")
}

// The daemon's content store sees nothing of an archive that is refused.
func TestClientHostileImport(t *testing.T) {
	d := startDaemon(t)
	c, err := dial(d, containerd.ConnectOptions{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var text bytes.Buffer
	w := tar.NewWriter(&text)
	body := []byte("hidden")
	for _, name := range []string{"blobs/sha256/" + fmt.Sprintf("%x", sha256.Sum256(body)), "../out"} {
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(body))}), second(w.Write(body))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var archive *runtime.ArchiveError
	if _, err := c.Import(t.Context(), &text); !errors.As(err, &archive) || archive.Entry != "../out" {
		t.Errorf("got %v, want a *ArchiveError about ../out", err)
	}
	ctx := namespaces.WithNamespace(t.Context(), "orchestrate")
	err = d.client.ContentStore().Walk(ctx, func(i content.Info) error {
		t.Errorf("containerd has %s of a refused archive", i.Digest)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func second(_ int, err error) error { return err }

func TestClientPull(t *testing.T) {
	d := startDaemon(t)
	c := connect(t, d, containerd.ConnectOptions{})
	right := runtime.Credentials{Username: "user", Password: "secret"}
	ref := startRegistry(t, &right) + "/private:1"
	push(t, ref)
	if _, err := c.Pull(t.Context(), ref, runtime.PullOptions{}); !errors.Is(err, runtime.ErrUnauthorized) {
		t.Errorf("without credentials: got %v, want ErrUnauthorized", err)
	}
	var last runtime.Progress
	img, err := c.Pull(t.Context(), ref, runtime.PullOptions{
		Credentials: func(stdcontext.Context, string) (runtime.Credentials, error) { return right, nil },
		Progress:    func(p runtime.Progress) { last = p },
	})
	if err != nil || img.Ref != ref || last.Done == 0 || last.Done != last.Total {
		t.Errorf("got %+v, %v, progress %+v; want the image and all of it counted", img, err, last)
	}
	if err := c.RemoveImage(t.Context(), ref); err != nil {
		t.Error(err)
	}
}
