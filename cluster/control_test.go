//go:build linux

package cluster_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cluster"
	"github.com/orchestrate-go/orchestrate/identity"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// freePorts are ports that nobody listened on a moment ago.
func freePorts(t *testing.T) cluster.Ports {
	t.Helper()
	var ports [4]uint16
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = uint16(l.Addr().(*net.TCPAddr).Port)
	}
	return cluster.Ports{Store: ports[0], Peer: ports[1], Join: ports[2], Node: ports[3]}
}

// A control plane that is alone makes its own authority, lets a client in by a
// token that is good once, and goes on as who it was when it is opened again.
func TestControlAlone(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := filepath.Join(t.TempDir(), "control")
	opts := cluster.ControlOptions{Name: "a", Members: map[string]netip.Addr{"a": loopback}, Ports: freePorts(t)}
	open := func() *cluster.Control {
		t.Helper()
		c, err := cluster.OpenControl(ctx, dir, opts)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := open()
	token, err := c.NewClientToken(ctx, "tool")
	if err != nil {
		t.Fatal(err)
	}
	dial := func(name, token, dir string) (*cluster.Client, error) {
		return cluster.Dial(ctx, dir, cluster.ClientOptions{Name: name, Control: []netip.Addr{loopback}, Token: token, Ports: opts.Ports})
	}
	tool := filepath.Join(t.TempDir(), "tool")
	client, err := dial("tool", token, tool)
	if err != nil {
		t.Fatal(err)
	}
	service := orchestrate.Service{Name: "web", Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: "web:1@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}}}
	if err := client.Apply(ctx, service); err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	for what, try := range map[string]struct {
		name, token string
		want        error
	}{
		"a token that was used":    {"tool", token, identity.ErrTokenUsed},
		"a token for another name": {"other", token, identity.ErrToken},
		"a token of another fleet": {"tool", "orchestrate1.aaaaaaaaaaaaaaaa.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", identity.ErrAuthority},
	} {
		if c, err := dial(try.name, try.token, t.TempDir()); !errors.Is(err, try.want) {
			t.Errorf("%s: got %v, want %v", what, err, try.want)
			if err == nil {
				c.Close()
			}
		}
	}
	var wrong *cluster.OptionError
	if _, err := dial("tool", "", t.TempDir()); !errors.As(err, &wrong) || wrong.Option != "Token" {
		t.Errorf("without a token: got %v, want an OptionError of Token", err)
	}
	if _, err := dial("other", "", tool); !errors.As(err, &wrong) || wrong.Option != "Name" {
		t.Errorf("in the folder of another: got %v, want an OptionError of Name", err)
	}
	if err := c.Expel(ctx, "never-was"); err != nil {
		t.Errorf("Expel of a node that there never was: %v", err)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}

	c = open()
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	client, err = dial("tool", "", tool) // it has joined
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Get(ctx, "web"); err != nil {
		t.Errorf("the service after the control plane was opened again: %v", err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
}

// What cannot be a control plane is refused, and makes nothing.
func TestControlRefuses(t *testing.T) {
	authority, err := identity.NewAuthority("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	other := netip.MustParseAddr("192.0.2.1")
	for option, opts := range map[string]cluster.ControlOptions{
		"Name":         {Name: "a/b", Members: map[string]netip.Addr{"a/b": loopback}},
		"Members":      {Name: "a", Members: map[string]netip.Addr{"b": loopback}},
		`Members["b"]`: {Name: "a", Members: map[string]netip.Addr{"a": loopback, "b": {}}, Authority: authority},
		"Authority":    {Name: "a", Members: map[string]netip.Addr{"a": loopback, "b": other, "c": other}},
	} {
		dir := t.TempDir()
		_, err := cluster.OpenControl(t.Context(), dir, opts)
		var wrong *cluster.OptionError
		if !errors.As(err, &wrong) || wrong.Option != option {
			t.Errorf("got %v, want an OptionError of %s", err, option)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Errorf("%s: the folder has %v, %v; want nothing", option, entries, err)
		}
	}
}

// An agent that cannot be is refused before it joins.
func TestAgentRefuses(t *testing.T) {
	for option, opts := range map[string]cluster.AgentOptions{
		"Name":       {Name: "n 1", Address: loopback, Control: []netip.Addr{loopback}},
		"Address":    {Name: "n1", Address: netip.IPv4Unspecified(), Control: []netip.Addr{loopback}},
		"Control":    {Name: "n1", Address: loopback},
		"Control[0]": {Name: "n1", Address: loopback, Control: []netip.Addr{{}}},
		"Token":      {Name: "n1", Address: loopback, Control: []netip.Addr{loopback}},
	} {
		_, err := cluster.OpenAgent(t.Context(), filepath.Join(t.TempDir(), "agent"), opts)
		var wrong *cluster.OptionError
		if !errors.As(err, &wrong) || wrong.Option != option {
			t.Errorf("got %v, want an OptionError of %s", err, option)
		}
	}
}
