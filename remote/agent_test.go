package remote

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/identity"
	"github.com/orchestrate-go/orchestrate/node"
	"github.com/orchestrate-go/orchestrate/runtime"
	runmem "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// A fleet reads the logs of a real agent's tasks, and runs a process there, by the
// address that the agent has put down.
func TestFleetReachesAnAgent(t *testing.T) {
	s := newSite(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	rt := runmem.New(runmem.Options{})
	rt.SetImage("web:1", runmem.Image{Program: runmem.Program{Run: func(ctx context.Context, p *runmem.Process) int {
		for i := range 100 {
			fmt.Fprintf(p.Stdout, "line %d\n", i)
		}
		<-ctx.Done()
		return 0
	}}})
	agent, err := node.New(s.store, node.Options{
		Node:    scheduler.Node{ID: "n1", Capacity: scheduler.Resources{CPU: 1000, Memory: 1 << 30}},
		Address: l.Addr().String(), Runtime: rt, Dir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	reach := Access(s.store, s.control)
	fleet, err := orchestrate.New(s.store, orchestrate.WithAccess(reach))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 3)
	member := s.member(identity.ID{Role: identity.Node, Name: "n1"})
	go func() { ended <- agent.Run(ctx) }()
	go func() { ended <- fleet.Run(ctx) }()
	go func() { ended <- Serve(ctx, l, member, agent) }()
	defer func() {
		cancel()
		for range 3 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		fleet.Close()
		rt.Close()
		a, _ := reach("n1")
		for _, c := range a.(*client).nodes {
			c.CloseIdleConnections()
		}
	}()
	within, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	err = fleet.Apply(within, orchestrate.Service{
		Name:     "web",
		Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: "web:1"}}, HostNetwork: true},
		Update:   orchestrate.UpdatePolicy{Monitor: -1},
	})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := fleet.Wait(within, "web"); err != nil || r.Outcome != orchestrate.RolloutCompleted {
		t.Fatalf("%v, %v; want it completed", r, err)
	}
	nodes, err := fleet.Nodes(within)
	if err != nil || len(nodes) != 1 || nodes[0].Address != l.Addr().String() {
		t.Fatalf("nodes %+v, %v; want n1 at %v", nodes, err, l.Addr())
	}
	n := 0
	enough := fmt.Errorf("enough")
	err = fleet.Logs(within, "web", "", runtime.LogOptions{Follow: true}, func(line orchestrate.LogLine) error {
		if want := fmt.Sprintf("line %d", n); string(line.Text) != want {
			t.Errorf("got %q, want %q", line.Text, want)
		}
		if n++; n == 100 {
			return enough
		}
		return nil
	})
	if n != 100 || err == nil {
		t.Errorf("%d lines, %v; want 100 and the reader's own error", n, err)
	}
	if _, err := fleet.Stats(within, "web", ""); err != nil {
		t.Errorf("stats: %v", err)
	}
}
