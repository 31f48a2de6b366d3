//go:build linux

package local

import (
	"context"
	"errors"
	"slices"

	"github.com/distribution/reference"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// resolver tells what tags mean by the machine's images and its registries.
type resolver struct {
	containers
	credentials func(ctx context.Context, host string) (runtime.Credentials, error)
}

// Resolve implements [runtime.Resolver]. An image that is here is kept under
// the digest at once, so that it is still here when its first task starts,
// whatever is loaded under its tag meanwhile.
func (r resolver) Resolve(ctx context.Context, ref string, opts runtime.PullOptions) (string, error) {
	if opts.Credentials == nil {
		opts.Credentials = r.credentials
	}
	digest, err := r.containers.Resolve(ctx, ref, opts)
	if err != nil {
		return "", err
	}
	_, err = r.Pull(ctx, runtime.Pinned(ref, digest), runtime.PullOptions{Policy: runtime.PullNever})
	if err != nil && !errors.Is(err, runtime.ErrImageNotFound) {
		return "", err
	}
	return digest, nil
}

// RemoveImage deletes an image by its reference, and what was pinned by that.
// One that a service, a job that has not ended or a cron job names, in whatever
// spelling, is an [*orchestrate.InUseError].
func (f *Fleet) RemoveImage(ctx context.Context, ref string) error {
	users, err := f.imageUsers(ctx, ref)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return &orchestrate.InUseError{Kind: "image", Name: ref, Services: users}
	}
	if _, digest := runtime.CutDigest(ref); digest == "" {
		present, err := f.runtime.Images(ctx)
		if err != nil {
			return err
		}
		for _, img := range present {
			if _, digest := runtime.CutDigest(img.Ref); digest != "" && fullName(img.Ref) == fullName(ref) {
				if err := f.runtime.RemoveImage(ctx, img.Ref); err != nil {
					return err
				}
			}
		}
	}
	return f.runtime.RemoveImage(ctx, ref)
}

// imageUsers returns what names an image, as NAMESPACE/NAME.
func (f *Fleet) imageUsers(ctx context.Context, ref string) ([]string, error) {
	_, want := runtime.CutDigest(ref)
	var users []string
	look := func(name string, t *orchestrate.Template, digests map[string]string) {
		for _, c := range slices.Concat(t.Init, t.Sidecars, t.Containers) {
			_, digest := runtime.CutDigest(c.Image)
			if digest == "" {
				digest = digests[c.Image]
			}
			if fullName(c.Image) == fullName(ref) && (want == "" || want == digest) {
				users = append(users, name)
				return
			}
		}
	}
	services, err := f.List(ctx, "")
	if err != nil {
		return nil, err
	}
	for i := range services {
		s := &services[i]
		look(s.Namespace+"/"+s.Name, &s.Template, s.Digests)
	}
	jobs, err := f.Jobs(ctx, "")
	if err != nil {
		return nil, err
	}
	for i := range jobs {
		if j := &jobs[i]; j.Result.Outcome == "" {
			look(j.Namespace+"/"+j.Name, &j.Template, j.Digests)
		}
	}
	crons, err := f.CronJobs(ctx, "")
	if err != nil {
		return nil, err
	}
	for i := range crons {
		c := &crons[i]
		look(c.Namespace+"/"+c.Name, &c.Job.Template, c.Digests)
	}
	return users, nil
}

// fullName is the name of an image without its digest, in one spelling of those
// that mean the same.
func fullName(ref string) string {
	name, _ := runtime.CutDigest(ref)
	if named, err := reference.ParseDockerRef(name); err == nil {
		return named.String()
	}
	return name
}
