//go:build linux

package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/orchestrate-go/orchestrate/runtime"
)

func parseConfig(raw []byte) (ocispec.Image, error) {
	var config ocispec.Image
	if err := json.Unmarshal(raw, &config); err != nil {
		return config, fmt.Errorf("image config: %w", err)
	}
	return config, nil
}

// Pull implements [runtime.Runtime].
func (r *Runtime) Pull(ctx context.Context, ref string, opts runtime.PullOptions) (runtime.Image, error) {
	b, err := r.store.lookup(ctx, ref)
	if err != nil {
		return runtime.Image{}, fmt.Errorf("pull image %q: %w", ref, err)
	}
	return b.image, nil
}

// Import implements [runtime.Importer].
func (r *Runtime) Import(ctx context.Context, archive io.Reader) ([]runtime.Image, error) {
	ctx = r.store.with(ctx)
	list, err := r.store.client.Import(ctx, archive, client.WithImportPlatform(platforms.Default()), client.WithSkipMissing())
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	var result []runtime.Image
	for _, img := range list {
		b, err := r.store.unpacked(ctx, img, platforms.Default())
		if err != nil {
			return nil, fmt.Errorf("import image %q: %w", img.Name, err)
		}
		result = append(result, b.image)
	}
	return result, nil
}

// RemoveImage implements [runtime.Importer].
func (r *Runtime) RemoveImage(ctx context.Context, ref string) error {
	err := r.store.client.ImageService().Delete(r.store.with(ctx), ref, images.SynchronousDelete())
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove image %q: %w", ref, err)
	}
	if err := r.store.forget(ctx, r.chainsInUse()); err != nil {
		return fmt.Errorf("remove image %q: %w", ref, err)
	}
	return nil
}

func (r *Runtime) chainsInUse() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	used := map[string]bool{}
	for _, c := range r.containers {
		used[c.record.Chain] = true
	}
	return used
}
