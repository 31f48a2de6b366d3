package node_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/orchestrate-go/orchestrate"
	netmem "github.com/orchestrate-go/orchestrate/network/memory"
	"github.com/orchestrate-go/orchestrate/node"
)

// divided is a network of which this node has a part.
type divided struct{ *netmem.Node }

func (divided) Gateways(string) []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("10.96.7.1"), netip.MustParseAddr("fd00::7:1")}
}

// Where a node has a part of a network, names are served at the node's own
// addresses, and tasks are told to ask there.
func TestNamesOfADividedNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		z := &zonesOf{}
		m.resolve = z
		opts := m.options()
		opts.Network = divided{m.network}
		a, err := node.New(m.store, opts)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		m.apply(orchestrate.Service{Name: "web", Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: "web:1"}}}})
		m.wait("web", orchestrate.RolloutCompleted)
		synctest.Wait()
		want := divided{}.Gateways("")
		z.mu.Lock()
		defer z.mu.Unlock()
		if len(z.zones) != 1 || !slices.Equal(z.zones[0].Listen, want) {
			t.Errorf("zones %+v, want one that is served at %v", z.zones, want)
		}
		var resolv string
		err = filepath.WalkDir(m.dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Name() == "resolv.conf" {
				data, err := os.ReadFile(path)
				resolv += string(data)
				return err
			}
			return err
		})
		if err != nil || !strings.Contains(resolv, "nameserver 10.96.7.1\nnameserver fd00::7:1\n") {
			t.Errorf("resolv.conf %q, %v; want these name servers: %v", resolv, err, want)
		}
	})
}
