package node_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// FuzzAgentReads puts any record before an agent that runs, of those that an agent
// reads: it goes on, and what it runs goes on.
func FuzzAgentReads(f *testing.F) {
	for _, seed := range []struct{ key, value string }{
		{record.Tasks + "n1/x.0.y", `{"id": "x.0.y", "node": "n1", "namespace": "default", "service": "x", "template": {"containers": [{"image": ""}]}}`},
		{record.Tasks + "n1/x.0.y", `{"id": "z"}`},
		{record.Tasks + "n1/x.0.y", `{"id": "x.0.y", "template": "?", "epoch": 9223372036854775807, "erase": true}`},
		{record.Tasks + "n1/x.0.y", `{"id": "x.0.y", "template": {"containers": [{"name": "a", "image": "img", "mounts": [{"volume": "v", "target": "/"}]}], "networks": ["", "../x"]}, "stop": {}}`},
		{record.Tasks + "n1/x.0.y", `{"id": "x.0.y", "template": null, "next": {"images": [{}]}, "resized": "2000-01-01T00:00:00Z", "job": {"attempt": -1}}`},
		{record.Frontends + "default/one", `{"addresses": {"default": ["0.0.0.0", "::"]}, "ports": [{"port": 0, "published": 65535, "protocol": "?"}], "held": [""]}`},
		{record.Frontends + "x", `{"ports": [{}]}`},
		{record.Endpoints + "n2/default/default/one/a", `{"addresses": [""], "leaving": true}`},
		{record.Endpoints + "n1/default/default/one/a", `{"node": "n2", "addresses": ["10.0.0.1"], "notReady": true, "name": "../x"}`},
		{record.Endpoints + "n2/default/default/one/a", `{"addresses": ["255.255.255.255"], "leaving": true, "hash": "h"}`},
		{record.Networks + "default", `{"subnets": ["10.0.0.0/33"]}`},
		{record.Networks + "..", `{"subnets": [], "mtu": -1}`},
		{record.Acks + "n2", `{"revision": -1}`},
		{record.Acks + "n2", `?`},
		{record.Statuses + "n1/ghost", `{"state": "ready", "containers": [{"id": ""}]}`},
		{record.NodeEvents("n1", 1<<62), `{"events": [{}], "forgotten": -1}`},
		{record.Volumes + "n1/v", `{"slot": -1}`},
	} {
		f.Add(seed.key, []byte(seed.value), true)
		f.Add(seed.key, []byte(seed.value), false)
	}
	f.Fuzz(func(t *testing.T, key string, value []byte, before bool) {
		if store.ValidateKey(key) != nil || len(value) > 1<<14 || strings.HasPrefix(key, record.Tasks+"n1/one.") {
			t.Skip("no store takes it, or it is of the task that is to go on")
		}
		read, write := orchestrate.NodeKeys("n1")
		if !covers(read, key) && !covers(write, key) {
			t.Skip("no agent reads it")
		}
		synctest.Test(t, func(t *testing.T) {
			m := newMachine(t)
			put := func() {
				if _, err := m.store.Commit(t.Context(), store.Txn{Writes: []store.Write{store.Put(key, value)}}); err != nil {
					t.Fatal(err)
				}
			}
			kill := m.agent()
			m.apply(one(orchestrate.Template{Containers: []orchestrate.Container{{Image: "img"}}}))
			m.wait("one", orchestrate.RolloutCompleted)
			id := m.task("one").ID
			if before { // the next agent finds it
				kill()
				put()
				m.agent()
			} else {
				put()
			}
			time.Sleep(time.Minute)
			if _, err := m.store.Commit(t.Context(), store.Txn{Writes: []store.Write{store.Delete(key)}}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			for _, c := range m.containers() {
				if strings.HasPrefix(c.ID, id+".") && c.State == "running" {
					return
				}
			}
			t.Errorf("the task that ran does not any more: %v", m.containers())
		})
	})
}
