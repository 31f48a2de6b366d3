//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/identity"
	"github.com/orchestrate-go/orchestrate/network/overlay"
	"github.com/orchestrate-go/orchestrate/store/etcd/embed"
)

// NewToken makes the text of a token that one machine can join with as a node of
// that name, or as any that is free when it is empty, within an hour. It is a
// secret. [Control.Registrar] makes others.
func (c *Control) NewToken(ctx context.Context, node string) (string, error) {
	return c.newToken(ctx, identity.TokenOptions{Role: identity.Node, Name: node})
}

// NewClientToken makes the text of a token for [Dial]. Who joins with it may do
// whatever a control plane may.
func (c *Control) NewClientToken(ctx context.Context, name string) (string, error) {
	return c.newToken(ctx, identity.TokenOptions{Role: identity.Control, Name: name})
}

func (c *Control) newToken(ctx context.Context, opts identity.TokenOptions) (string, error) {
	t, err := c.registrar.NewToken(ctx, opts)
	if err != nil {
		return "", err
	}
	return t.Text(), nil
}

// Expel removes a node that will not come back, or must not: it is cut off from
// the store at once, its certificate is not renewed, its part of the networks is
// given back, and its tasks are replaced once it is silent; see
// [orchestrate.Fleet.RemoveNode], which this calls again until the node's lease
// has ended. Its name is free then. An agent that runs there learns of it, and
// ends with [identity.ErrRevoked] or [identity.ErrUnknown]. Its containers may run
// on until somebody stops them, but no traffic of the fleet gets there: clear the
// machine with [Agent.Destroy], before or after; or have it join anew, with a fresh
// token, and what it ran is ended. Calling Expel again after an error goes on with
// it.
func (c *Control) Expel(ctx context.Context, node string) error {
	id := identity.ID{Role: identity.Node, Name: node}
	err := c.registrar.Revoke(ctx, id)
	if errors.Is(err, identity.ErrUnknown) {
		err = nil
	}
	for err == nil {
		err = c.RemoveNode(ctx, node)
		var alive *orchestrate.AliveError
		if !errors.As(err, &alive) {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("expel node %s: %w", node, context.Cause(ctx))
		case <-time.After(200 * time.Millisecond): // its lease ends without it
			err = nil
		}
	}
	var unknown *orchestrate.NameError
	if errors.As(err, &unknown) {
		err = nil
	}
	if err == nil {
		err = overlay.Forget(ctx, c.store, node)
	}
	if err == nil {
		err = c.registrar.Forget(ctx, id)
	}
	if err != nil {
		return fmt.Errorf("expel node %s: %w", node, err)
	}
	return nil
}

// Invite takes a further control plane in, which OpenControl then makes with the
// invitation, this fleet's Authority, and Members that have it too. It has no
// vote before it has caught up. A name or an address that another one has is
// [embed.ErrInUse].
func (c *Control) Invite(ctx context.Context, name string, address netip.Addr) (*embed.Invitation, error) {
	return c.Replace(ctx, "", name, address)
}

// Replace removes a control plane that lost its folder or its machine and
// invites another in its place, which may have its name; see [Control.Invite].
func (c *Control) Replace(ctx context.Context, old, name string, address netip.Addr) (*embed.Invitation, error) {
	invitation, err := c.replace(ctx, old, name, address)
	if err != nil {
		return nil, fmt.Errorf("invite control plane %q: %w", name, err)
	}
	return invitation, nil
}

func (c *Control) replace(ctx context.Context, old, name string, address netip.Addr) (*embed.Invitation, error) {
	if err := errors.Join(checkName(identity.Control, name), checkAddr("address", address)); err != nil {
		return nil, err
	}
	if err := c.access.Grant(ctx, identity.ID{Role: identity.Control, Name: name}); err != nil {
		return nil, err
	}
	url := "https://" + at(address, c.opts.Ports.Peer)
	if old == "" {
		return c.etcd.Invite(ctx, name, url)
	}
	invitation, err := c.etcd.Replace(ctx, old, name, url)
	if err == nil && old != name {
		err = c.access.Revoke(ctx, identity.ID{Role: identity.Control, Name: old})
	}
	return invitation, err
}
