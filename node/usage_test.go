package node_test

import (
	"encoding/json"
	"math"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate/autoscale"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
	runmem "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/store"
)

// usage reads what the node has reported.
func (m *machine) usage() (u record.Usage, found bool) {
	m.t.Helper()
	item, found, err := store.Get(m.t.Context(), m.store, record.Key(record.Usages, "n1"))
	if err != nil {
		m.t.Fatal(err)
	}
	if found {
		if err := json.Unmarshal(item.Value, &u); err != nil {
			m.t.Fatal(err)
		}
	}
	return u, found
}

// A node measures what an autoscaler asks for, of tasks that run already too,
// with rates over the time since it measured last; and nothing else.
func TestUsage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.runtime.SetImage("web:1", runmem.Image{Program: runmem.Program{
			Load: func() float64 { return 250 }, Stats: runtime.Stats{Memory: 5 << 20},
		}})
		kill := m.agent()
		m.apply(web(2))
		m.wait("web", "completed")
		time.Sleep(time.Minute)
		if u, found := m.usage(); found {
			t.Fatalf("nobody asked, and the node reports %+v", u)
		}
		s := web(2)
		s.Autoscale = &autoscale.Policy{Min: 2, Max: 2, Interval: 10 * time.Second, Metrics: []autoscale.Metric{
			{Name: autoscale.CPU, Average: 250}, {Name: autoscale.Memory, Average: 5 << 20}, {Name: autoscale.Requests, Average: 10},
		}}
		m.apply(s)
		m.wait("web", "completed")
		dial := func() {
			if _, err := m.network.Dial("tcp", netip.MustParseAddr("192.0.2.2"), netip.MustParseAddrPort("192.0.2.1:80")); err != nil {
				t.Fatal(err)
			}
		}
		for range 40 {
			dial()
			time.Sleep(time.Second)
		}
		check := func(when string, rate float64) {
			t.Helper()
			u, found := m.usage()
			if !found || len(u.Tasks) != 2 || math.Abs(u.Requests["default/web"]-rate) > 0.11 {
				t.Fatalf("%s the node reports %+v; want 2 tasks, and %v connections a second", when, u, rate)
			}
			for id, task := range u.Tasks {
				c := task.Containers["main"]
				if math.Abs(c.CPU-250) > 0.01 || c.Memory != 5<<20 || time.Since(task.Begin) > 20*time.Second {
					t.Errorf("%s task %s is said to use %+v since %v; want 250 thousandths of a core and 5 MiB, of late", when, id, c, task.Begin)
				}
			}
		}
		check("while it is asked,", 1)

		// The record is the agent's life: it goes with it, and comes again.
		kill()
		time.Sleep(time.Minute)
		if u, found := m.usage(); found {
			t.Errorf("a node whose agent is dead reports %+v", u)
		}
		m.agent()
		time.Sleep(time.Minute)
		check("with another agent", 0)

		m.apply(web(2))
		m.wait("web", "completed")
		time.Sleep(time.Minute)
		if u, found := m.usage(); found {
			t.Errorf("nobody asks any more, and the node reports %+v", u)
		}
	})
}
