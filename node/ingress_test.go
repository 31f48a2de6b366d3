package node_test

import (
	"context"
	"encoding/json"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// A port with local ingress leads to the node's own tasks alone; the virtual
// address, and a port without, to those of all nodes.
func TestIngress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.agent()
		s := web(1)
		s.Ports = []orchestrate.Port{
			{Port: 80, Published: 8080},
			{Port: 443, Published: 8443, Ingress: orchestrate.IngressLocal},
		}
		m.apply(s)
		m.wait("web", orchestrate.RolloutCompleted)
		elsewhere, err := json.Marshal(record.Endpoint{Task: "web.9.x", Node: "n2", Slot: 9, Addresses: []netip.Addr{netip.MustParseAddr("10.96.15.9")}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.store.Commit(context.Background(), store.Txn{Writes: []store.Write{
			store.Put(record.Key(record.Endpoints, "n2", orchestrate.DefaultNetwork, "default", "web", "web.9.x"), elsewhere),
		}})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		want := map[string]int{"10.96.15.9:80": 2, "10.96.15.9:443": 1} // virtual IPv4 and published; virtual alone
		got := map[string]int{}
		for _, r := range m.network.Rules() {
			for _, e := range r.Endpoints {
				if e.Addr() == netip.MustParseAddr("10.96.15.9") {
					got[e.String()]++
				}
			}
			if r.Port == 8443 && len(r.Endpoints) == 0 {
				t.Errorf("the port with local ingress leads to nobody, want the node's own task")
			}
		}
		for e, n := range want {
			if got[e] != n {
				t.Errorf("%d rules lead to %s, want %d", got[e], e, n)
			}
		}
	})
}
