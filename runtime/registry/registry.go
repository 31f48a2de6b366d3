// Package registry resolves image tags to digests by asking their registries,
// on any operating system and without a container runtime: for a control plane
// that runs beside no node.
//
//	fleet, err := orchestrate.New(s, orchestrate.WithResolver(&registry.Resolver{
//		Credentials: credentials,
//	}))
//
// It knows nothing of images that are on nodes alone. In a fleet of package
// local the runtime resolves, which does.
package registry

import (
	"context"
	"fmt"

	"github.com/orchestrate-go/orchestrate/internal/registries"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// Resolver asks registries. The zero value has no credentials.
type Resolver struct {
	// Credentials, when not nil, is asked for a registry host where the
	// caller's options have none; see [runtime.PullOptions].
	Credentials func(ctx context.Context, host string) (runtime.Credentials, error)
	// PlainHTTP is asked whether a registry host is spoken to without TLS,
	// likewise. When nil, only loopback addresses are.
	PlainHTTP func(host string) bool
}

var _ runtime.Resolver = (*Resolver)(nil)

// Resolve implements [runtime.Resolver]. Nothing is present here, so with
// [runtime.PullNever] there is no image.
func (r *Resolver) Resolve(ctx context.Context, ref string, opts runtime.PullOptions) (string, error) {
	if _, digest := runtime.CutDigest(ref); digest != "" {
		return digest, nil
	}
	if opts.Policy == runtime.PullNever {
		return "", fmt.Errorf("resolve image %q: %w", ref, runtime.ErrImageNotFound)
	}
	if opts.Credentials == nil {
		opts.Credentials = r.Credentials
	}
	if opts.PlainHTTP == nil {
		opts.PlainHTTP = r.PlainHTTP
	}
	digest, err := registries.Digest(ctx, ref, opts)
	if err != nil {
		return "", fmt.Errorf("resolve image %q: %w", ref, err)
	}
	return digest, nil
}
