//go:build linux

package local

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/node"
	"github.com/orchestrate-go/orchestrate/volume"
)

// Volume is a named volume of the fleet with what its driver knows of it.
type Volume struct {
	Namespace string
	Name      string // within the namespace, as services call it
	volume.Status
}

// Volumes returns all volumes by namespace and name, also those that no
// service names any more: a volume stays until [Fleet.RemoveVolume].
// Status.Tasks are the IDs of the tasks that have it mounted. Status.Name is
// the driver's name for it, NAMESPACE.NAME.
func (f *Fleet) Volumes(ctx context.Context) ([]Volume, error) {
	if err := f.closed(); err != nil {
		return nil, err
	}
	list, err := f.volumes.List(ctx)
	if err != nil {
		return nil, err
	}
	volumes := make([]Volume, len(list))
	for i, s := range list {
		// A namespace has no dot, a volume's own name may.
		namespace, name, _ := strings.Cut(s.Name, ".")
		volumes[i] = Volume{Namespace: namespace, Name: name, Status: s}
	}
	slices.SortFunc(volumes, func(a, b Volume) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return volumes, nil
}

// RemoveVolume deletes a volume and its data, by "NAME" or "NAMESPACE/NAME".
// One that tasks have mounted is a [*volume.InUseError] that names them; one
// that does not exist is [orchestrate.ErrNotFound]. A service that still names
// the volume gets a new, empty one with its next task.
func (f *Fleet) RemoveVolume(ctx context.Context, name string) error {
	namespace, base, ok := strings.Cut(name, "/")
	if !ok {
		namespace, base = orchestrate.DefaultNamespace, name
	}
	volumes, err := f.Volumes(ctx)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if v.Namespace != namespace || v.Name != base {
			continue
		}
		err := f.volumes.Remove(ctx, v.Status.Name)
		if err == nil {
			return f.syncVolumes(ctx)
		}
		var use *volume.InUseError
		if errors.As(err, &use) {
			return &volume.InUseError{Volume: namespace + "/" + base, Tasks: use.Tasks}
		}
		return err
	}
	return &orchestrate.NameError{Kind: "volume", Name: name}
}

// syncVolumes has every node say which volumes there are.
func (f *Fleet) syncVolumes(ctx context.Context) error {
	f.mu.Lock()
	var agents []*node.Agent
	for _, a := range f.nodes {
		if a.running != nil {
			agents = append(agents, a.running)
		}
	}
	f.mu.Unlock()
	for _, a := range agents {
		if err := a.SyncVolumes(ctx); err != nil {
			return err
		}
	}
	return nil
}

// closed returns an error once the fleet does not run any more: the folder may
// be another program's then.
func (f *Fleet) closed() error {
	select {
	case <-f.done:
		return orchestrate.ErrClosed
	default:
		return nil
	}
}
