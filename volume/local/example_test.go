//go:build linux

package local_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/orchestrate-go/orchestrate/volume"
	"github.com/orchestrate-go/orchestrate/volume/local"
)

// A volume outlives the task that writes it, and is not removed in use.
func Example() {
	dir, err := os.MkdirTemp("", "volumes")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	d, err := local.Open(local.Options{Dir: dir})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()

	ctx := context.Background()
	d.Create(ctx, volume.Volume{Name: "data"})
	first := volume.Mount{Volume: "data", Task: "web.1"}
	path, _ := d.Mount(ctx, first)
	os.WriteFile(filepath.Join(path, "greeting"), []byte("hello"), 0o600)
	fmt.Println(errors.Is(d.Remove(ctx, "data"), volume.ErrInUse))

	d.Unmount(ctx, first)
	path, _ = d.Mount(ctx, volume.Mount{Volume: "data", Task: "web.2", ReadOnly: true})
	greeting, _ := os.ReadFile(filepath.Join(path, "greeting"))
	fmt.Printf("%s\n", greeting)

	d.Unmount(ctx, volume.Mount{Volume: "data", Task: "web.2", ReadOnly: true})
	fmt.Println(d.Remove(ctx, "data"))
	// Output:
	// true
	// hello
	// <nil>
}
