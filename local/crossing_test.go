//go:build linux

package local

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/orchestrate-go/orchestrate/network"
	netmem "github.com/orchestrate-go/orchestrate/network/memory"
)

// Nodes that share a balancer hear of changes one after another. What they make
// of it together has every endpoint that there is, and none that its own node has
// taken away.
func TestCrossing(t *testing.T) {
	node := netmem.New(netmem.Options{})
	c := newCrossing(node, nil)
	endpoint := func(name string) netip.AddrPort { // a1 is of node a
		return netip.MustParseAddrPort(fmt.Sprintf("10.0.%d.%c:80", name[0]-'a', name[1]))
	}
	for _, name := range []string{"a", "b"} {
		c.join(name)
		for _, n := range []string{"1", "2"} {
			c.own(name, []netip.Prefix{netip.PrefixFrom(endpoint(name+n).Addr(), 24)})
		}
	}
	program := func(name string, endpoints ...string) {
		t.Helper()
		r := network.Rule{Service: "default/web", Address: netip.MustParseAddr("10.9.0.1"), Port: 80}
		for _, e := range endpoints {
			r.Endpoints = append(r.Endpoints, endpoint(e))
		}
		if err := c.program(t.Context(), name, []network.Rule{r}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when string, endpoints ...string) {
		t.Helper()
		var got []string
		for _, r := range node.Rules() {
			for _, e := range r.Endpoints {
				for _, name := range []string{"a1", "a2", "b1", "b2"} {
					if endpoint(name) == e {
						got = append(got, name)
					}
				}
			}
		}
		if slices.Sort(got); !slices.Equal(got, endpoints) {
			t.Errorf("%s: the balancer has %v, want %v", when, got, endpoints)
		}
	}
	first := make(chan error, 1)
	go func() { first <- c.program(t.Context(), "a", nil) }()
	program("b", "b1") // neither is programmed before both are known
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	program("a", "a1", "b1")
	want("both know of all", "a1", "b1")
	program("b")
	want("b takes its own away, which a does not know yet", "a1")
	program("a", "a1", "b1")
	want("a says it once more", "a1")
	program("a", "a1")
	program("a", "a1", "b1")
	want("a has heard of it, and later of another use", "a1", "b1")

	// A switch from one set to another: b has the new one, and hears of it last.
	program("a", "a1")
	program("b", "a1")
	program("a", "b1", "b2")
	want("a has switched, b has not", "b1", "b2")
	program("b", "b1", "b2")
	want("both have", "b1", "b2")
	program("a", "a1")
	want("a has switched back, b has not", "a1", "b1", "b2")
	program("b", "a1")
	want("both have switched back", "a1")

	// A node that is away, and returns without one of its own.
	program("a", "a1", "b1")
	program("b", "a1", "b1")
	c.leave("b")
	program("a", "a1", "b1")
	want("b is away", "a1", "b1")
	c.join("b")
	program("b", "a1")
	want("b is back without its own", "a1")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.join("late")
	if err := c.program(ctx, "a", nil); err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("program while another has not said anything, and the caller gives up: got %v", err)
	}
}
