package control_test

import (
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// FuzzRecords puts any record into a fleet that runs. The planner must survive
// it, come to rest, and write nobody else's keys; tell checks that.
func FuzzRecords(f *testing.F) {
	for _, seed := range []struct{ key, value string }{
		{record.Services + "default/web", `{"spec": {"replicas": 3, "image": "v2"}, "hash": "v2", "revision": 2}`},
		{record.Services + "default/x", `{"spec": {"replicas": -3}, "hash": ""}`},
		{record.Rollouts + "default/web", `{"spec": 3, "state": "failed", "slots": {"-1": {"failures": 99}}}`},
		{record.Rollouts + "default/web", `{"spec": 9223372036854775807, "state": "?"}`},
		{record.Rollouts + "default/web", `{"spec": 3, "state": "failed", "rollback": {"state": "progressing", "revision": 7, "hash": "v0"}}`},
		{record.Rollouts + "default/web", `{"spec": 3, "state": "completed", "rollback": {}, "completed": [{}, {"revision": 1}]}`},
		{record.Services + "default/web", `{"spec": {"replicas": 2, "image": "v3"}, "history": [{"template": 1}, {"template": null}]}`},
		{record.Frontends + "default/web", `{"addresses": {"net": ["10.0.0.1", "::"]}}`},
		{record.Networks + "net", `{"virtual": ["10.0.0.0/31", "fd00::/127", "", "0.0.0.0/0"]}`},
		{record.Tasks + "n1/web.0.x", `{"id": "web.0.x", "node": "n1", "namespace": "default", "service": "web", "slot": -7}`},
		{record.Tasks + "n9/q", `{"id": "q", "node": "n9", "namespace": "default", "service": "gone", "stop": {}}`},
		{record.Nodes + "n1", `{"capacity": {"memory": -1}}`},
		{record.Nodes + "n2", `{"id": "n3", "ready": true}`},
		{record.NodeSpecs + "n1", `{"drain": true, "labels": {"a": "b"}, "taints": [{}]}`},
		{record.Alive + "n7", ``},
		// No store of this library takes these keys, but others may write to it.
		{record.Services + "default/", `{"spec": {"replicas": 1}, "hash": "v2", "revision": 2}`},
		{record.Services + "default/" + strings.Repeat("x", 1000), `{"spec": {"replicas": 1}, "hash": "v2", "revision": 2}`},
		{record.Nodes, `{"capacity": {"memory": 4000, "cpu": 4000}}`},
		{"", ``}, {"/", ``}, {"//", ``},
	} {
		f.Add(seed.key, []byte(seed.value), false)
		f.Add(seed.key, []byte(seed.value), true)
	}
	f.Fuzz(func(t *testing.T, key string, value []byte, deleted bool) {
		if len(value) > 4096 || strings.Contains(string(value), `"replicas"`) && len(value) > 100 {
			t.Skip("large fleets are for the benchmarks")
		}
		s := newSim(t)
		s.node("n1", 1000)
		s.commit(store.Put(record.Networks+"net", []byte(`{"virtual": ["10.9.0.0/24"]}`)))
		s.apply("web", spec{Replicas: 2, Image: "v1", Networks: []string{"net"}, Ports: []record.Port{{Port: 80}}})
		s.plan()
		if deleted {
			s.commit(store.Delete(key))
		} else {
			s.commit(store.Write{Key: key, Value: value})
		}
		s.plan()
		for _, task := range s.tasks("web") {
			s.report(task, record.Ready, nil)
		}
		s.pass(time.Hour)
		s.lead()
	})
}
