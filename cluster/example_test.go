//go:build linux

package cluster_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"

	"github.com/orchestrate-go/orchestrate/cluster"
)

// A fleet of one control plane and one node, each on a machine of its own. A
// program has one of the two calls, or both.
func Example() {
	ctx := context.Background()
	a, n1 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.11")

	// On the control plane's machine:
	control, err := cluster.OpenControl(ctx, "/var/lib/shop/control", cluster.ControlOptions{
		Name: "a", Members: map[string]netip.Addr{"a": a},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer control.Close()
	token, err := control.NewToken(ctx, "n1") // to be handed to the node, as a secret
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}

	// On the node's:
	agent, err := cluster.OpenAgent(ctx, "/var/lib/shop/agent", cluster.AgentOptions{
		Name: "n1", Address: n1, Control: []netip.Addr{a}, Token: token,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer agent.Close()
	<-agent.Done()
}
