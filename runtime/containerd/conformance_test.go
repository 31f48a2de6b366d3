//go:build linux

package containerd_test

import (
	stdcontext "context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
	"github.com/orchestrate-go/orchestrate/runtime/image"
	"github.com/orchestrate-go/orchestrate/runtime/runtimetest"
)

func TestConformance(t *testing.T) {
	registry := startRegistry(t, nil)
	openRoot := func(ctx stdcontext.Context, root string) (runtime.Runtime, func() error, error) {
		rt, err := containerd.Open(containerd.Options{Root: root})
		if err != nil {
			return nil, nil, err
		}
		roots.Store(rt, root)
		return rt, func() error { return errors.Join(rt.Close(), leftovers(root)) }, nil
	}
	runtimetest.Test(t, runtimetest.Harness{
		Image:   testImage,
		Missing: registry + "/none:1",
		System:  true,
		Open: func(ctx stdcontext.Context) (runtime.Runtime, func() error, error) {
			root, err := os.MkdirTemp("", "conformance-")
			if err != nil {
				return nil, nil, err
			}
			rt, closeRT, err := openRoot(ctx, root)
			if err != nil {
				return nil, nil, err
			}
			img, err := image.FromBinary(testImage, program, image.Options{})
			if err != nil {
				return nil, nil, err
			}
			r := img.Reader()
			defer r.Close()
			_, err = rt.(runtime.Importer).Import(ctx, r)
			return rt, func() error { return errors.Join(closeRT(), os.RemoveAll(root)) }, err
		},
		Restart: func(ctx stdcontext.Context, rt runtime.Runtime) (runtime.Runtime, func() error, error) {
			root, _ := roots.Load(rt)
			if err := rt.(*containerd.Runtime).Close(); err != nil {
				return nil, nil, err
			}
			again, closeAgain, err := openRoot(ctx, root.(string))
			return again, func() error { return errors.Join(closeAgain(), os.RemoveAll(root.(string))) }, err
		},
	})
}

// leftovers reports what a runtime without containers has left on the
// machine.
func leftovers(root string) error {
	var errs []error
	state := containerd.StateDir(root)
	if _, err := os.Stat(state); err == nil {
		errs = append(errs, fmt.Errorf("the state folder %s is left", state))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, dir := range []string{root, state} {
		if strings.Contains(string(mounts), dir) {
			errs = append(errs, fmt.Errorf("a mount in %s is left", dir))
		}
	}
	layers, err := os.ReadDir(filepath.Join(root, "containers"))
	if err != nil || len(layers) > 0 {
		errs = append(errs, fmt.Errorf("writable layers are left: %v, %w", layers, err))
	}
	name := filepath.Base(state)
	for _, pattern := range []string{"/sys/fs/cgroup/*/orchestrate/" + name, "/sys/fs/cgroup/orchestrate/" + name} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			errs = append(errs, fmt.Errorf("cgroups are left: %v", left))
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if text, err := os.ReadFile(p); err == nil && strings.Contains(string(text), state) {
			errs = append(errs, fmt.Errorf("process %s is left: %q", p, text))
		}
	}
	return errors.Join(errs...)
}
