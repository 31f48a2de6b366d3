//go:build linux

package bridge

import (
	"testing"

	"github.com/orchestrate-go/orchestrate/network"
)

// Connections are counted, from wherever they come, with or without an endpoint,
// over changes of the endpoints; packets are not, nor what nobody asked for.
func TestConnections(t *testing.T) {
	w := newWorld(t)
	w.ensure(front)
	a, client := w.task("a"), w.task("client")
	w.serve(a.ns, "a", 80)
	eps := endpoints(80, a)
	program := func(with bool) {
		to := eps
		if !with {
			to = nil
		}
		w.program(
			network.Rule{Service: "other", Protocol: network.TCP, Address: vip4, Port: 82, Endpoints: eps},
			network.Rule{Service: "web", Protocol: network.TCP, Address: vip4, Port: 81, Endpoints: to, Count: true},
			network.Rule{Service: "web", Protocol: network.TCP, Address: vip6, Port: 81, Endpoints: to, Count: true},
			network.Rule{Service: "web", Protocol: network.TCP, Port: 8080, Endpoints: to, Count: true},
		)
	}
	expect := func(want uint64, when string) {
		t.Helper()
		got, err := w.d.Connections(t.Context())
		if err != nil || got["web"] != want || len(got) != 1 {
			t.Errorf("%s: connections %v, %v; want %d to web alone", when, got, err, want)
		}
	}
	program(true)
	expect(0, "at first")
	for _, to := range []string{"10.72.0.1:81", "[fd00:72::1]:81", "10.71.0.1:8080", "10.72.0.1:82"} {
		for range 5 {
			if _, _, err := ask(client.ns, "tcp", to); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, _, err := ask(w.hostNS, "tcp", "127.0.0.1:8080"); err != nil {
		t.Fatal(err)
	}
	expect(16, "after 15 connections of a task and one of the node")
	program(false)
	expect(16, "without an endpoint")
	if _, _, err := ask(client.ns, "tcp", "10.72.0.1:81"); err == nil {
		t.Fatal("a connection to no endpoint succeeded")
	}
	got, err := w.d.Connections(t.Context())
	if err != nil || got["web"] <= 16 {
		t.Errorf("connections %v, %v; want that who found no endpoint counts too", got, err)
	}
	program(true)
	if again, err := w.d.Connections(t.Context()); err != nil || again["web"] != got["web"] {
		t.Errorf("connections %v, %v after the endpoint is back; want %d still", again, err, got["web"])
	}
}
