//go:build linux

package local

import (
	"context"
	"errors"

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
