//go:build linux

package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/orchestrate-go/orchestrate/internal/registries"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// labelPlatform remembers which platform of an image was asked for.
const labelPlatform = "orchestrate.platform"

// Pull implements [runtime.Runtime]. A reference without a registry is one of
// Docker Hub, as with docker pull; the image is known by the reference as it
// was given.
func (r *Runtime) Pull(ctx context.Context, ref string, opts runtime.PullOptions) (runtime.Image, error) {
	done, err := r.enter()
	if err != nil {
		return runtime.Image{}, fmt.Errorf("pull image %q: %w", ref, err)
	}
	defer done()
	b, err := r.pull(ctx, ref, opts)
	if err != nil {
		return runtime.Image{}, fmt.Errorf("pull image %q: %w", ref, err)
	}
	return b.image, nil
}

func (r *Runtime) pull(ctx context.Context, ref string, opts runtime.PullOptions) (*bundle, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	platform := platforms.Default()
	if opts.Platform != "" {
		p, err := platforms.Parse(opts.Platform)
		if err != nil {
			return nil, &runtime.SpecError{Field: "PullOptions.Platform", Reason: err.Error()}
		}
		platform = platforms.Only(p)
	}
	pinned, err := r.store.pin(ctx, ref)
	if err != nil {
		return nil, err
	}
	if opts.Policy != runtime.PullAlways || pinned {
		b, err := r.store.lookup(ctx, ref)
		// Another platform's image does not count as present.
		if err == nil && (opts.Platform == "" || platformMatches(platform, b.image.Platform)) {
			return b, nil
		}
		if opts.Policy == runtime.PullNever {
			if err == nil {
				err = runtime.ErrPlatform
			}
			return nil, err
		}
		if err != nil && !errors.Is(err, runtime.ErrImageNotFound) && !errors.Is(err, runtime.ErrPlatform) {
			return nil, err
		}
	}
	named, err := registries.Parse(ref)
	if err != nil {
		return nil, err
	}
	ctx = r.store.with(ctx)
	before, beforeErr := r.store.client.ImageService().Get(ctx, ref)
	res := &resolver{as: ref, name: named.String(), inner: registries.New(ctx, opts), progress: opts.Progress}
	img, err := r.store.client.Pull(ctx, ref,
		client.WithResolver(res), client.WithPlatformMatcher(platform),
		client.WithPullLabel(labelPlatform, opts.Platform), client.WithMaxConcurrentDownloads(4))
	if err != nil {
		return nil, registries.Error(err, res.resolved)
	}
	b, err := r.store.unpacked(ctx, img.Metadata(), platform)
	if err != nil {
		// A reference means what can run, or what it meant before.
		undo := context.WithoutCancel(ctx)
		if beforeErr == nil {
			_, undoErr := r.store.client.ImageService().Update(undo, before)
			return nil, errors.Join(err, undoErr)
		}
		return nil, errors.Join(err, r.store.client.ImageService().Delete(undo, ref))
	}
	return b, nil
}

func platformMatches(m platforms.MatchComparer, platform string) bool {
	p, err := platforms.Parse(platform)
	return err == nil && m.Match(p)
}

// resolver asks the registry for an image's full name, but has it known by
// the name that the caller uses, and counts what is fetched.
type resolver struct {
	as, name string
	inner    remotes.Resolver
	progress func(runtime.Progress)
	resolved bool

	mu    sync.Mutex
	state runtime.Progress
}

func (r *resolver) Resolve(ctx context.Context, _ string) (string, ocispec.Descriptor, error) {
	_, desc, err := r.inner.Resolve(ctx, r.name)
	r.resolved = err == nil
	return r.as, desc, err
}

func (r *resolver) Pusher(ctx context.Context, _ string) (remotes.Pusher, error) {
	return r.inner.Pusher(ctx, r.name)
}

func (r *resolver) Fetcher(ctx context.Context, _ string) (remotes.Fetcher, error) {
	inner, err := r.inner.Fetcher(ctx, r.name)
	if err != nil || r.progress == nil {
		return inner, err
	}
	return remotes.FetcherFunc(func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		body, err := inner.Fetch(ctx, desc)
		if err != nil {
			return nil, err
		}
		r.report(0, desc.Size)
		return &fetched{ReadCloser: body, resolver: r}, nil
	}), nil
}

func (r *resolver) report(done, total int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.Ref = r.as
	r.state.Done += done
	r.state.Total += total
	r.progress(r.state)
}

// fetched is the body of one blob.
type fetched struct {
	io.ReadCloser
	resolver *resolver
}

func (f *fetched) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if n > 0 {
		f.resolver.report(int64(n), 0)
	}
	return n, err
}

// Seek lets an interrupted pull go on from where it was.
func (f *fetched) Seek(offset int64, whence int) (int64, error) {
	s, ok := f.ReadCloser.(io.Seeker)
	if !ok {
		return 0, errors.New("the registry's answer cannot be read from the middle")
	}
	return s.Seek(offset, whence)
}

// lookup returns the unpacked image known by ref, or ErrImageNotFound.
func (s *store) lookup(ctx context.Context, ref string) (*bundle, error) {
	ctx = s.with(ctx)
	img, err := s.get(ctx, ref)
	if err != nil {
		return nil, err
	}
	return s.unpacked(ctx, img, s.platform(img))
}

// get returns the image known by ref, or else by another way to write that name:
// archives of docker save are imported under full names, and other images under
// what they were built as or asked for.
func (s *store) get(ctx context.Context, ref string) (images.Image, error) {
	for _, name := range waysToWrite(ref) {
		img, err := s.client.ImageService().Get(ctx, name)
		if !errdefs.IsNotFound(err) {
			return img, err
		}
	}
	return images.Image{}, runtime.ErrImageNotFound
}

// waysToWrite returns ref and the other names that mean the same: with and without
// Docker Hub's own, and the tag that is meant where there is none.
func waysToWrite(ref string) []string {
	all := []string{ref}
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return all
	}
	also := []string{named.String(), reference.FamiliarString(named)}
	if tagged, ok := named.(reference.Tagged); ok && tagged.Tag() == "latest" {
		also = append(also, named.Name(), reference.FamiliarName(named))
	}
	for _, name := range also {
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// platform is the one that the image was pulled for.
func (s *store) platform(img images.Image) platforms.MatchComparer {
	if name := img.Labels[labelPlatform]; name != "" {
		if p, err := platforms.Parse(name); err == nil {
			return platforms.Only(p)
		}
	}
	return platforms.Default()
}
