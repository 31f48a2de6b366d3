package memory

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// Image is what a registry has under a reference.
type Image struct {
	// Config is what Pull returns. Empty Ref, Digest and Platform are filled
	// in: the digest anew with each SetImage, as other content has another.
	Config runtime.Image
	// Program is what a container of the image runs.
	Program Program
	// PullTime is how long a pull takes. PullErr, when not nil, is how it
	// ends; a test sets [runtime.ErrImageNotFound] or ErrUnauthorized.
	PullTime time.Duration
	PullErr  error
	// Credentials, when not zero, are the only ones that may pull.
	Credentials runtime.Credentials
}

// SetImage says what a registry has under a reference from now on. Running
// containers are not changed; the reference must be pulled again to change
// what the next container runs, as with a moving tag. What it had before is
// still there by its digest.
func (r *Runtime) SetImage(ref string, image Image) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sets[ref]++; r.sets[ref] > 1 && image.Config.Digest == "" {
		image.Config.Digest = digest(fmt.Sprintf("%s #%d", ref, r.sets[ref]))
	}
	image.Config = config(ref, image.Config)
	r.images[ref] = image
	r.contents[image.Config.Digest] = image
	delete(r.present, ref)
}

// registry returns what a registry has for ref. r.mu is held.
func (r *Runtime) registryLocked(ref string) (Image, error) {
	name, want := runtime.CutDigest(ref)
	image, known := r.images[name]
	if !known && !r.opts.Strict && name != "" {
		image, known = Image{Program: r.opts.Program, Config: config(name, runtime.Image{})}, true
	}
	if want != "" && image.Config.Digest != want {
		image, known = r.contents[want]
	}
	if !known {
		return image, runtime.ErrImageNotFound
	}
	image.Config.Ref = ref
	return image, nil
}

// hereLocked returns what ref means on this machine. One by a digest that is
// known by another reference is known by this one from now on.
func (r *Runtime) hereLocked(ref string) (Image, bool) {
	if image, ok := r.present[ref]; ok {
		return image, true
	}
	if _, want := runtime.CutDigest(ref); want != "" {
		for _, image := range r.present {
			if image.Config.Digest == want {
				image.Config.Ref = ref
				r.present[ref] = image
				return image, true
			}
		}
	}
	return Image{}, false
}

// Pull implements [runtime.Runtime].
func (r *Runtime) Pull(ctx context.Context, ref string, opts runtime.PullOptions) (runtime.Image, error) {
	fail := func(err error) (runtime.Image, error) {
		return runtime.Image{}, fmt.Errorf("pull image %q: %w", ref, err)
	}
	if err := r.ask(Op{Method: "Pull", Ref: ref}); err != nil {
		return fail(err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	_, pinned := runtime.CutDigest(ref)
	r.mu.Lock()
	here, present := r.hereLocked(ref)
	image, err := r.registryLocked(ref)
	r.mu.Unlock()
	if present && (opts.Policy != runtime.PullAlways || pinned != "") {
		return here.Config, nil
	}
	if opts.Policy == runtime.PullNever {
		return fail(runtime.ErrImageNotFound)
	}
	if err != nil {
		return fail(err)
	}
	if opts.Progress != nil {
		opts.Progress(runtime.Progress{Ref: ref, Total: image.Config.Size})
	}
	if err := sleep(ctx, image.PullTime); err != nil {
		return fail(err)
	}
	if err := image.admits(ctx, ref, opts); err != nil {
		return fail(err)
	}
	if opts.Platform != "" && opts.Platform != image.Config.Platform {
		return fail(runtime.ErrPlatform)
	}
	if opts.Progress != nil {
		opts.Progress(runtime.Progress{Ref: ref, Done: image.Config.Size, Total: image.Config.Size})
	}
	r.mu.Lock()
	r.present[ref] = image
	r.mu.Unlock()
	if err := r.ask(Op{Method: "Pull", Ref: ref, Done: true}); err != nil {
		return fail(err)
	}
	return image.Config, nil
}

// admits is the registry's answer to one who asks for the image.
func (i *Image) admits(ctx context.Context, ref string, opts runtime.PullOptions) error {
	if want := i.Credentials; want != (runtime.Credentials{}) {
		var got runtime.Credentials
		if opts.Credentials != nil {
			host, _, _ := strings.Cut(ref, "/")
			var err error
			if got, err = opts.Credentials(ctx, host); err != nil {
				return err
			}
		}
		if got != want {
			return runtime.ErrUnauthorized
		}
	}
	return i.PullErr
}

// Resolve implements [runtime.Resolver].
func (r *Runtime) Resolve(ctx context.Context, ref string, opts runtime.PullOptions) (string, error) {
	fail := func(err error) (string, error) { return "", fmt.Errorf("resolve image %q: %w", ref, err) }
	if _, pinned := runtime.CutDigest(ref); pinned != "" {
		return pinned, nil
	}
	if err := r.ask(Op{Method: "Resolve", Ref: ref}); err != nil {
		return fail(err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	r.mu.Lock()
	here, present := r.hereLocked(ref)
	image, err := r.registryLocked(ref)
	r.mu.Unlock()
	switch {
	case present && opts.Policy != runtime.PullAlways:
		return here.Config.Digest, nil
	case opts.Policy == runtime.PullNever:
		return fail(runtime.ErrImageNotFound)
	case err != nil:
		return fail(err)
	}
	if err := image.admits(ctx, ref, opts); err != nil {
		return fail(err)
	}
	return image.Config.Digest, nil
}

// Images implements [runtime.ImageLister].
func (r *Runtime) Images(ctx context.Context) ([]runtime.Image, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var images []runtime.Image
	for _, ref := range slices.Sorted(maps.Keys(r.present)) {
		image := r.present[ref].Config
		image.Ref = ref
		images = append(images, image)
	}
	return images, nil
}

// RemoveImage deletes an image by reference.
func (r *Runtime) RemoveImage(_ context.Context, ref string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.present, ref)
	return nil
}

// config fills in what a test did not say of an image.
func config(ref string, c runtime.Image) runtime.Image {
	c.Ref = cmp.Or(c.Ref, ref)
	c.Digest = cmp.Or(c.Digest, digest(ref))
	c.Platform = cmp.Or(c.Platform, "linux/amd64")
	return c
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256:" + hex.EncodeToString(sum[:])
}
