//go:build linux

package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/image"
)

func parseConfig(raw []byte) (ocispec.Image, error) {
	var config ocispec.Image
	if err := json.Unmarshal(raw, &config); err != nil {
		return config, fmt.Errorf("image config: %w", err)
	}
	return config, nil
}

// archiveLimits are the defaults of package image, and zstd.
func archiveLimits() image.Limits {
	return image.Limits{Zstd: func(r io.Reader) (io.ReadCloser, error) {
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}}
}

// Import implements [runtime.Importer]. The archive is checked as a whole by
// [image.Check] before the store sees any of it.
func (r *Runtime) Import(ctx context.Context, archive io.Reader) ([]runtime.Image, error) {
	done, err := r.enter()
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	defer done()
	checked, err := image.Check(ctx, archive, r.root, archiveLimits())
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	defer checked.Close()
	if len(checked.References) == 0 {
		return nil, fmt.Errorf("import images: %w", &runtime.ArchiveError{
			Reason: "its images have no reference: want the annotation org.opencontainers.image.ref.name in index.json, or a tag in manifest.json",
		})
	}
	plain, err := checked.Reader()
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	ctx = r.store.with(ctx)
	list, err := r.store.client.Import(ctx, plain, client.WithSkipMissing())
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	var result []runtime.Image
	for _, img := range list {
		b, err := r.store.unpacked(ctx, img, r.store.platform(img))
		if err != nil {
			return nil, fmt.Errorf("import image %q: %w", img.Name, err)
		}
		result = append(result, b.image)
	}
	if len(result) == 0 {
		return nil, fmt.Errorf("import images: %w", &runtime.ArchiveError{Reason: "none of its images could be named"})
	}
	return result, nil
}

// RemoveImage implements [runtime.Importer]. Containers of the image run on;
// its layers go with the last of them.
func (r *Runtime) RemoveImage(ctx context.Context, ref string) error {
	done, err := r.enter()
	if err != nil {
		return fmt.Errorf("remove image %q: %w", ref, err)
	}
	defer done()
	img, err := r.store.get(r.store.with(ctx), ref)
	if err == nil {
		err = r.store.client.ImageService().Delete(r.store.with(ctx), img.Name, images.SynchronousDelete())
	}
	if err != nil && !errdefs.IsNotFound(err) && !errors.Is(err, runtime.ErrImageNotFound) {
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
	for chain := range r.chains {
		used[chain] = true
	}
	return used
}
