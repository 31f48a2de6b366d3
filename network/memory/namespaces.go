package memory

import (
	"context"
	"maps"
	"slices"

	"github.com/orchestrate-go/orchestrate/network"
)

// Create implements network.Namespaces.
func (n *Node) Create(ctx context.Context, id string, sysctls map[string]string) (string, error) {
	if err := n.begin(ctx, Call{Method: "Create", Namespace: id}); err != nil {
		return "", err
	}
	if err := network.ValidateNamespace(id, sysctls); err != nil {
		return "", err
	}
	n.state.mu.Lock()
	defer n.state.mu.Unlock()
	if _, ok := n.state.namespaces[id]; !ok {
		n.state.namespaces[id] = maps.Clone(sysctls)
	}
	return pathPrefix + id, nil
}

// Delete implements network.Namespaces.
func (n *Node) Delete(ctx context.Context, id string) error {
	if err := n.begin(ctx, Call{Method: "Delete", Namespace: id}); err != nil {
		return err
	}
	if err := network.ValidateNamespace(id, nil); err != nil {
		return err
	}
	n.state.mu.Lock()
	defer n.state.mu.Unlock()
	delete(n.state.namespaces, id)
	return nil
}

// List implements network.Namespaces.
func (n *Node) List(ctx context.Context) ([]string, error) {
	if err := n.begin(ctx, Call{Method: "List"}); err != nil {
		return nil, err
	}
	n.state.mu.Lock()
	defer n.state.mu.Unlock()
	return slices.Sorted(maps.Keys(n.state.namespaces)), nil
}

// Sysctls returns what a namespace was created with.
func (n *Node) Sysctls(id string) map[string]string {
	n.state.mu.Lock()
	defer n.state.mu.Unlock()
	return maps.Clone(n.state.namespaces[id])
}
