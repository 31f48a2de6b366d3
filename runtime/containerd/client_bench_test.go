//go:build linux

package containerd_test

import (
	stdcontext "context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
)

// BenchmarkClientStart is one start at a time by a Client and by containerd's
// plain client, of the same daemon. It reports ms for both and ours ÷ bare;
// lower is better.
func BenchmarkClientStart(b *testing.B) {
	bareServer, bareCtx := bareContext(b)
	c, err := dial(&daemon{socket: filepath.Join(bareDir, "c.sock")}, containerd.ConnectOptions{Root: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := c.Close(); err != nil {
			b.Error(err)
		}
	})
	if err := loadInto(b.Context(), c); err != nil {
		b.Fatal(err)
	}
	ctx := stdcontext.Background()
	var ours, bare time.Duration
	for i := range b.N {
		id := fmt.Sprint("s", i)
		ours += timed(b, func() error {
			return c.Start(ctx, runtime.Spec{ID: id, Image: testImage, Args: []string{"ignore"}})
		})
		var other client.Container
		var task client.Task
		bare += timed(b, func() (err error) {
			other, task, err = bareServer.start(bareCtx, id, "ignore")
			return err
		})
		if err := c.Remove(ctx, id); err != nil {
			b.Fatal(err)
		}
		if err := bareServer.remove(bareCtx, other, task); err != nil {
			b.Fatal(err)
		}
	}
	report(b, ours, bare)
}
