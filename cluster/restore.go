//go:build linux

package cluster

import (
	"context"
	"fmt"

	"github.com/orchestrate-go/orchestrate/store/etcd/embed"
)

// Restore makes, in dir, a control plane out of a snapshot that
// [embed.Member.Snapshot] of [Control.Etcd] wrote to the file at path, for a fleet
// that has lost more than half of its control planes. Stop all that are left, call
// it for each of opts.Members with the same snapshot and the fleet's Authority, and
// then OpenControl with the same options. Members have names of control planes of
// the fleet, though not all of them need be there; their addresses may be others,
// but agents look for control planes where they were told.
//
// Dir must have no state of etcd. The errors are an [*OptionError], an
// [*embed.OptionError] and [embed.ErrSnapshot].
func Restore(ctx context.Context, dir, path string, opts ControlOptions) error {
	c := &Control{opts: opts}
	member, err := c.identify(ctx, dir)
	if err == nil {
		err = embed.Restore(path, member)
	}
	if err != nil {
		return fmt.Errorf("restore control plane %q in %q: %w", opts.Name, dir, err)
	}
	return nil
}
