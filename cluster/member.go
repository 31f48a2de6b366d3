//go:build linux

package cluster

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/orchestrate-go/orchestrate/identity"
)

// fileOutcast in the folder of a member says with which certificate the fleet does
// not know it any more.
const fileOutcast = "outcast"

// outcast reports whether an error of a renewal says that the member is not of the
// fleet any more.
func outcast(err error) bool {
	return errors.Is(err, identity.ErrRevoked) || errors.Is(err, identity.ErrUnknown)
}

// markOutcast notes it of the certificate that a member has: one that joins anew has
// another, so the mark is void from the same moment on.
func markOutcast(dir string, m *identity.Member) error {
	return os.WriteFile(filepath.Join(dir, fileOutcast), []byte(m.Expires().UTC().String()), 0o600)
}

func markedOutcast(dir string, m *identity.Member) bool {
	data, err := os.ReadFile(filepath.Join(dir, fileOutcast))
	return err == nil && string(data) == m.Expires().UTC().String()
}

// joined returns the member whose folder dir is, or makes it one with a token.
// While no control plane answers, it tries until ctx ends.
func joined(ctx context.Context, dir, token string, id identity.ID, control []netip.Addr, ports Ports, log *slog.Logger) (*identity.Member, error) {
	m, err := identity.Open(dir)
	if err == nil && m.ID() != id {
		return nil, &OptionError{"Name", "is " + id.Name + ", but the folder is that of " + m.ID().Name + "; give each its own"}
	}
	var expired error
	switch {
	case err == nil && (token == "" || !markedOutcast(dir, m)):
		return m, nil
	case errors.Is(err, identity.ErrExpired) && token != "":
		expired = err
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
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
		switch {
		case err == nil:
			return m, nil
		case ctx.Err() != nil, errors.Is(err, identity.ErrAuthority), errors.As(err, &refusal) && refusal.Unwrap() != nil:
			return nil, errors.Join(expired, err)
		}
		log.Warn("cannot join yet; trying again", "error", err)
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(500 * time.Millisecond):
		}
	}
}
