// Package registries speaks to image registries for those packages that may, with
// the client of containerd: all of them read references, choose between http
// and https, and give errors their meaning in the same way.
package registries

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// Parse reads a reference, which without a registry is one of Docker Hub. The
// error is a [*runtime.SpecError].
func Parse(ref string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, &runtime.SpecError{Field: "Image", Reason: fmt.Sprintf("%q is not a reference: %v: want a name such as docker.io/library/alpine:3", ref, err)}
	}
	return named, nil
}

// Digest asks the registry what ref means now, for no more than a manifest.
func Digest(ctx context.Context, ref string, opts runtime.PullOptions) (string, error) {
	named, err := Parse(ref)
	if err != nil {
		return "", err
	}
	_, desc, err := New(ctx, opts).Resolve(ctx, named.String())
	if err != nil {
		return "", Error(err, false)
	}
	return desc.Digest.String(), nil
}

// New returns the client of registries for one pull.
func New(ctx context.Context, opts runtime.PullOptions) remotes.Resolver {
	type answer struct {
		credentials runtime.Credentials
		err         error
	}
	var mu sync.Mutex
	asked := map[string]answer{}
	authorizer := docker.NewDockerAuthorizer(docker.WithAuthCreds(func(host string) (string, string, error) {
		if opts.Credentials == nil {
			return "", "", nil
		}
		mu.Lock()
		defer mu.Unlock()
		a, ok := asked[host]
		if !ok {
			a.credentials, a.err = opts.Credentials(ctx, host)
			asked[host] = a
		}
		return a.credentials.Username, a.credentials.Password, a.err
	}))
	plain := opts.PlainHTTP
	if plain == nil {
		plain = isLoopback
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(
		docker.WithAuthorizer(authorizer),
		docker.WithPlainHTTP(func(host string) (bool, error) { return plain(host), nil }),
	)})
}

// Error gives an error of the client its meaning. Once the name was resolved,
// what is not found is a platform of the image or a part of it.
func Error(err error, resolved bool) error {
	var status remoteerrors.ErrUnexpectedStatus
	refused := errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden)
	switch {
	case refused, errors.Is(err, docker.ErrInvalidAuthorization):
		return fmt.Errorf("%w: %w", runtime.ErrUnauthorized, err)
	case errdefs.IsNotFound(err) && !resolved:
		return fmt.Errorf("%w: %w", runtime.ErrImageNotFound, err)
	case errdefs.IsNotFound(err) && strings.Contains(err.Error(), "no match for platform"):
		return fmt.Errorf("%w: %w", runtime.ErrPlatform, err)
	}
	return err
}

// isLoopback reports whether host, with or without a port, is this machine.
func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
