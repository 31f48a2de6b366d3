//go:build linux

package containerd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"

	"github.com/orchestrate-go/orchestrate/internal/registries"
	"github.com/orchestrate-go/orchestrate/runtime"
)

var (
	_ runtime.Resolver    = (*Runtime)(nil)
	_ runtime.Resolver    = (*Client)(nil)
	_ runtime.ImageLister = (*Runtime)(nil)
	_ runtime.ImageLister = (*Client)(nil)
)

// Resolve implements [runtime.Resolver].
func (r *Runtime) Resolve(ctx context.Context, ref string, opts runtime.PullOptions) (string, error) {
	done, err := r.enter()
	if err != nil {
		return "", fmt.Errorf("resolve image %q: %w", ref, err)
	}
	defer done()
	digest, err := r.resolve(ctx, ref, opts)
	if err != nil {
		return "", fmt.Errorf("resolve image %q: %w", ref, err)
	}
	return digest, nil
}

// Resolve implements [runtime.Resolver], as [Runtime.Resolve] does.
func (cl *Client) Resolve(ctx context.Context, ref string, opts runtime.PullOptions) (string, error) {
	return cl.r.Resolve(ctx, ref, opts)
}

func (r *Runtime) resolve(ctx context.Context, ref string, opts runtime.PullOptions) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if _, digest := runtime.CutDigest(ref); digest != "" {
		return digest, nil
	}
	if opts.Policy != runtime.PullAlways {
		img, err := r.store.get(r.store.with(ctx), ref)
		if err == nil {
			return img.Target.Digest.String(), nil
		}
		if opts.Policy == runtime.PullNever || !errors.Is(err, runtime.ErrImageNotFound) {
			return "", err
		}
	}
	return registries.Digest(r.store.with(ctx), ref, opts)
}

// pin has an image that is here by the digest of ref known by ref too, so that
// it stays when what it is known by now comes to mean another, and reports
// whether there is one.
func (s *store) pin(ctx context.Context, ref string) (bool, error) {
	_, digest := runtime.CutDigest(ref)
	if digest == "" {
		return false, nil
	}
	ctx = s.with(ctx)
	if _, err := s.get(ctx, ref); err == nil || !errors.Is(err, runtime.ErrImageNotFound) {
		return err == nil, err
	}
	found, err := s.client.ImageService().List(ctx, fmt.Sprintf("target.digest==%q", digest))
	if err != nil || len(found) == 0 {
		return false, err
	}
	labels := map[string]string{}
	if p := found[0].Labels[labelPlatform]; p != "" {
		labels[labelPlatform] = p
	}
	_, err = s.client.ImageService().Create(ctx, images.Image{Name: ref, Target: found[0].Target, Labels: labels})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return false, err
	}
	return true, nil
}

// Images implements [runtime.ImageLister].
func (r *Runtime) Images(ctx context.Context) ([]runtime.Image, error) {
	done, err := r.enter()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	defer done()
	ctx = r.store.with(ctx)
	list, err := r.store.client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var result []runtime.Image
	for _, img := range list {
		// Of a platform that is not all here there is less to say.
		size, err := img.Size(ctx, r.store.client.ContentStore(), r.store.platform(img))
		if err != nil {
			size = 0
		}
		result = append(result, runtime.Image{Ref: img.Name, Digest: img.Target.Digest.String(), Size: size})
	}
	slices.SortFunc(result, func(a, b runtime.Image) int { return strings.Compare(a.Ref, b.Ref) })
	return result, nil
}

// Images implements [runtime.ImageLister]. They are those of the namespace,
// whoever brought them there.
func (cl *Client) Images(ctx context.Context) ([]runtime.Image, error) { return cl.r.Images(ctx) }
