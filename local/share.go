//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/orchestrate-go/orchestrate/internal/machine"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/network/bridge"
	"github.com/orchestrate-go/orchestrate/node"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/volume"
	"github.com/orchestrate-go/orchestrate/volume/local"
)

// share is one node's part of the drivers that the nodes of this machine have
// in common. An agent takes what its drivers list for its own, and releases
// what no task of its owns: so each node is shown what belongs to it.
type share struct {
	node     string
	nodes    []string // of the machine, the first one first
	store    store.Store
	crossing *crossing
	held     held
}

// labelNode says which node a container belongs to.
const labelNode = "orchestrate.node"

// mine reports whether what names a node belongs to this one. What names none,
// or one that the machine has not any more, is the first node's to clear up.
func (s *share) mine(node string) bool {
	return node == s.node || s.node == s.nodes[0] && !slices.Contains(s.nodes, node)
}

// owners returns the node of each task that the store knows. What a driver
// lists must have been listed before: nothing is made for a task that is not in
// the store yet.
func (s *share) owners(ctx context.Context) (map[string]string, error) {
	owners := map[string]string{}
	for _, prefix := range []string{record.Tasks, record.Statuses} {
		snapshot, err := s.store.List(ctx, prefix)
		if err != nil {
			return nil, err
		}
		for _, item := range snapshot.Items {
			if node, task, ok := strings.Cut(strings.TrimPrefix(item.Key, prefix), "/"); ok {
				owners[task] = node
			}
		}
	}
	return owners, nil
}

// only keeps the elements whose tasks are this node's.
func only[T any](ctx context.Context, s *share, list []T, task func(T) string) ([]T, error) {
	if len(list) == 0 {
		return list, nil
	}
	owners, err := s.owners(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list, func(e T) bool { return !s.mine(owners[task(e)]) }), nil
}

func (s *share) join()  { s.crossing.join(s.node) }
func (s *share) leave() { s.crossing.leave(s.node) }

// sharedRuntime is a node's part of the machine's containers.
type sharedRuntime struct {
	containers
	share *share
}

// Start implements [runtime.Runtime].
func (r sharedRuntime) Start(ctx context.Context, spec runtime.Spec) error {
	labels := maps.Clone(spec.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[labelNode] = r.share.node
	epoch, is := labels[runtime.LabelHeld]
	if is {
		// Held by this process, and not by what the runtime has for the case
		// that the process dies.
		delete(labels, runtime.LabelHeld)
		labels[labelHeld] = epoch
		if r.share.held.over() {
			return fmt.Errorf("start container %s: %w", spec.ID, runtime.ErrNotHeld)
		}
	}
	spec.Labels = labels
	err := r.containers.Start(ctx, spec)
	if is && err == nil && r.share.held.over() {
		// While it started, those that ran were killed.
		err = errors.Join(fmt.Errorf("start container %s: %w", spec.ID, runtime.ErrNotHeld), r.Kill(ctx, spec.ID, runtime.SIGKILL))
	}
	return err
}

// List implements [runtime.Runtime].
func (r sharedRuntime) List(ctx context.Context, labels map[string]string) ([]runtime.Container, error) {
	list, err := r.containers.List(ctx, labels)
	return slices.DeleteFunc(list, func(c runtime.Container) bool { return !r.share.mine(c.Labels[labelNode]) }), err
}

// sharedNetwork is a node's part of the machine's attachments.
type sharedNetwork struct {
	*bridge.Driver
	share *share
}

// Attach implements [network.Driver].
func (n sharedNetwork) Attach(ctx context.Context, a network.Attachment) (network.Interface, error) {
	i, err := n.Driver.Attach(ctx, a)
	if err == nil {
		n.share.crossing.own(n.share.node, i.Addresses)
	}
	return i, err
}

// Attachments implements [network.Driver].
func (n sharedNetwork) Attachments(ctx context.Context) ([]network.Attachment, error) {
	list, err := n.Driver.Attachments(ctx)
	if err != nil {
		return nil, err
	}
	return only(ctx, n.share, list, func(a network.Attachment) string { return a.Task })
}

// List implements [network.Namespaces].
func (n sharedNetwork) List(ctx context.Context) ([]string, error) {
	list, err := n.Driver.List(ctx)
	if err != nil {
		return nil, err
	}
	return only(ctx, n.share, list, func(id string) string { return id })
}

// Program implements [network.Balancer].
func (n sharedNetwork) Program(ctx context.Context, rules []network.Rule) error {
	return n.share.crossing.program(ctx, n.share.node, rules)
}

// Connections implements [network.Counter]: of what the nodes share, one tells.
func (n sharedNetwork) Connections(ctx context.Context) (map[string]uint64, error) {
	if !n.share.crossing.first(n.share.node) {
		return nil, nil
	}
	return n.Driver.Connections(ctx)
}

// sharedNames is a node's part of the machine's names.
type sharedNames struct {
	machine.Names
	share *share
}

// Set implements [node.Resolver].
func (n sharedNames) Set(zones []node.Zone) error {
	return n.share.crossing.answer(n.share.node, zones)
}

// sharedVolumes is a node's part of what is mounted and bound.
type sharedVolumes struct {
	*local.Driver
	share *share
}

// List implements [volume.Driver].
func (v sharedVolumes) List(ctx context.Context) ([]volume.Status, error) {
	list, err := v.Driver.List(ctx)
	if err != nil {
		return nil, err
	}
	owners, err := v.share.owners(ctx)
	if err != nil {
		return nil, err
	}
	for i := range list {
		list[i].Tasks = slices.DeleteFunc(list[i].Tasks, func(id string) bool { return !v.share.mine(owners[id]) })
	}
	return list, nil
}

// Binds implements [volume.Binder].
func (v sharedVolumes) Binds(ctx context.Context) ([]volume.Bind, error) {
	list, err := v.Driver.Binds(ctx)
	if err != nil {
		return nil, err
	}
	return only(ctx, v.share, list, func(b volume.Bind) string { return b.Task })
}
