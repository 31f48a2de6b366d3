//go:build linux

package local

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// A task whose node it is takes its endpoint back, and stops when the other node
// has acknowledged it: in that order, in the store that both share.
func TestStopIsAcknowledged(t *testing.T) {
	f := openFleet(t, WithNode("a", nil), WithNodes("b"))
	s := service("web", 2)
	s.Ports[0].Published = 8081
	up(t, f, s)
	snapshot, err := f.store.List(t.Context(), "/")
	if err != nil {
		t.Fatal(err)
	}
	batches, err := f.store.Watch(t.Context(), "/", snapshot.Revision)
	if err != nil {
		t.Fatal(err)
	}
	s.Replicas = 1
	up(t, f, s)
	var leaving, acked, ended int64 // revisions
	var node string
	for batch := range batches {
		if batch.Err != nil {
			t.Fatal(batch.Err)
		}
		for _, c := range batch.Changes {
			switch key := c.Item.Key; {
			case strings.HasPrefix(key, record.Endpoints) && !c.Deleted:
				var e record.Endpoint
				if err := json.Unmarshal(c.Item.Value, &e); err != nil {
					t.Fatal(err)
				}
				if e.Leaving {
					leaving, node = batch.Revision, e.Node
				}
			case strings.HasPrefix(key, record.Acks) && leaving > 0 && key != record.Key(record.Acks, node):
				var a record.Ack
				if err := json.Unmarshal(c.Item.Value, &a); err != nil {
					t.Fatal(err)
				}
				if acked == 0 && a.Revision >= leaving {
					acked = batch.Revision
				}
			case strings.HasPrefix(key, record.Statuses) && !c.Deleted && strings.Contains(string(c.Item.Value), `"state":"stopped"`):
				ended = batch.Revision
			}
		}
		if ended > 0 {
			break
		}
	}
	if leaving == 0 || acked < leaving || ended < acked {
		t.Errorf("an endpoint of %s is leaving at revision %d, acknowledged at %d, and its task stopped at %d; want that order", node, leaving, acked, ended)
	}
}
