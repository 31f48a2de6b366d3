package memory_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/network/memory"
)

// The suite of networktest runs there, against this package; here is what is
// this package's own.

var front = network.Network{Name: "front", Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}}

func TestHookSeesEveryCallAndCanFailIt(t *testing.T) {
	var seen []string
	fail := ""
	boom := errors.New("boom")
	n := memory.New(memory.Options{Hook: func(_ context.Context, c memory.Call) error {
		seen = append(seen, strings.TrimSpace(fmt.Sprintf("%s %s %s", c.Method, c.Network, c.Task)))
		if c.Method == fail {
			return boom
		}
		return nil
	}})
	ctx := t.Context()
	path, err := n.Create(ctx, "a", map[string]string{"net.core.somaxconn": "1"})
	if err != nil {
		t.Fatal(err)
	}
	a := network.Attachment{Network: "front", Task: "a", Namespace: path, Interface: "eth0"}
	calls := []struct {
		method string
		call   func() error
	}{
		{"Ensure", func() error { return n.Ensure(ctx, front) }},
		{"Attach", func() error { _, err := n.Attach(ctx, a); return err }},
		{"Attachments", func() error { _, err := n.Attachments(ctx); return err }},
		{"Detach", func() error { return n.Detach(ctx, a) }},
		{"Remove", func() error { return n.Remove(ctx, "front") }},
		{"List", func() error { _, err := n.List(ctx); return err }},
		{"Create", func() error { _, err := n.Create(ctx, "b", nil); return err }},
		{"Delete", func() error { return n.Delete(ctx, "a") }},
		{"Program", func() error { return n.Program(ctx, nil) }},
	}
	for _, c := range calls {
		seen = nil
		fail = c.method
		if err := c.call(); !errors.Is(err, boom) {
			t.Errorf("%s with a failing hook = %v, want the hook's error", c.method, err)
		}
		fail = ""
		if err := c.call(); err != nil {
			t.Errorf("%s = %v: did the failed call change something?", c.method, err)
		}
		if len(seen) != 2 || !strings.HasPrefix(seen[0], c.method) {
			t.Errorf("%s: the hook saw %q", c.method, seen)
		}
	}
}

func TestReopen(t *testing.T) {
	n := memory.New(memory.Options{})
	if err := n.Ensure(t.Context(), front); err != nil {
		t.Fatal(err)
	}
	again := n.Reopen()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Ensure(t.Context(), front); !errors.Is(err, network.ErrClosed) {
		t.Errorf("a call after Close = %v, want ErrClosed", err)
	}
	if _, err := again.Create(t.Context(), "a", map[string]string{"net.core.somaxconn": "1"}); err != nil {
		t.Errorf("a call on the new handle = %v", err)
	}
	if got := again.Sysctls("a")["net.core.somaxconn"]; got != "1" {
		t.Errorf("sysctl = %q, want 1", got)
	}
}

func TestListeningConflicts(t *testing.T) {
	n := memory.New(memory.Options{Listening: func(p network.Protocol, port uint16) string {
		if p == network.TCP && port == 22 {
			return "process 1 (sshd)"
		}
		return ""
	}})
	var conflict *network.ConflictError
	if err := n.Program(t.Context(), []network.Rule{{Service: "web", Port: 22}}); !errors.As(err, &conflict) || conflict.Services[1] != "process 1 (sshd)" {
		t.Errorf("publishing a port that is listened on = %v, want a *ConflictError naming who", err)
	}
	if err := n.Program(t.Context(), []network.Rule{{Service: "web", Port: 22, Protocol: network.UDP}}); err != nil {
		t.Errorf("publishing it for UDP = %v", err)
	}
	if n.Programs() != 1 {
		t.Errorf("Programs = %d, want 1", n.Programs())
	}
}

func Example() {
	node := memory.New(memory.Options{})
	ctx := context.Background()
	_ = node.Program(ctx, []network.Rule{{
		Service: "web", Address: netip.MustParseAddr("10.72.0.1"), Port: 80,
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.71.0.2:80")},
	}})
	client := netip.MustParseAddr("10.71.0.9")
	fmt.Println(node.Dial(network.TCP, client, netip.MustParseAddrPort("10.72.0.1:80")))
	fmt.Println(node.Dial(network.TCP, client, netip.MustParseAddrPort("10.72.0.1:81")))
	// Output:
	// 10.71.0.2:80 <nil>
	// invalid AddrPort dial tcp 10.72.0.1:81: connection refused
}
