//go:build linux

package cluster

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"time"

	"github.com/orchestrate-go/orchestrate/identity"
)

// joined returns the member whose folder dir is, or makes it one with a token.
// While no control plane answers, it tries until ctx ends.
func joined(ctx context.Context, dir, token string, id identity.ID, control []netip.Addr, ports Ports, log *slog.Logger) (*identity.Member, error) {
	m, err := identity.Open(dir)
	if err == nil && m.ID() != id {
		return nil, &OptionError{"Name", "is " + id.Name + ", but the folder is that of " + m.ID().Name + "; give each its own"}
	}
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return m, err
	}
	if token == "" {
		return nil, &OptionError{"Token", "is empty; a machine that is new to the fleet needs one of Control.NewToken"}
	}
	t, err := identity.ParseToken(token)
	if err != nil {
		return nil, &OptionError{"Token", err.Error()}
	}
	addresses := atAll(control, ports.Join)
	for {
		m, err := identity.Join(ctx, identity.JoinOptions{Address: addresses[0], Further: addresses[1:], Token: t, ID: id, Dir: dir})
		var refusal *identity.RemoteError
		if err == nil || ctx.Err() != nil || errors.Is(err, identity.ErrAuthority) || errors.As(err, &refusal) && refusal.Unwrap() != nil {
			return m, err
		}
		log.Warn("cannot join yet; trying again", "error", err)
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(500 * time.Millisecond):
		}
	}
}
