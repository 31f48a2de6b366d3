package record

import (
	"encoding/json"
	"testing"
)

// FuzzIndexSet reads what may be a set of indexes: one that can be read comes back
// from its own text, and is as long as it says.
func FuzzIndexSet(f *testing.F) {
	for _, seed := range []string{"", "0", "0-4,7", "4-0", "-1", "1,1,1", "16777215", "16777216", "bits:", "bits://///////w==", "bits:AAAA", "0-16777215", "\x00"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var s IndexSet
		if s.UnmarshalText(text) != nil {
			return
		}
		n := 0
		for i := s.nextIn(0); i >= 0; i = s.nextIn(i + 1) {
			if n++; !s.Has(i) || i >= maxIndex {
				t.Fatalf("%q: %d is in it and is not", text, i)
			}
		}
		if n != s.Len() {
			t.Fatalf("%q has %d indexes and says %d", text, n, s.Len())
		}
		again, err := s.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var back IndexSet
		if err := back.UnmarshalText(again); err != nil || back.String() != s.String() {
			t.Fatalf("%q is written as %q, which is %q, %v", text, again, back.String(), err)
		}
	})
}

// FuzzDecodeEvents reads records of events, of which those of a node can be
// anything that a machine which was taken over likes to say.
func FuzzDecodeEvents(f *testing.F) {
	f.Add("/events/node/n1/1", []byte(`{"events": [{"kind": "node-lost", "node": "n2", "decision": 7, "cause": {"actor": "alice"}}]}`))
	f.Add("/events/node//", []byte(`{"events": [{"kind": "task-ended", "failure": {}}], "decisions": [null, {}]}`))
	f.Add("/events/leader/1", []byte(`{"events": null}`))
	f.Add("/events/node/n1/a/b", []byte(`{"events": [{"kind": "task-started", "decision": 1}], "decisions": [{}], "forgotten": -1}`))
	f.Fuzz(func(t *testing.T, key string, data []byte) {
		events, err := DecodeEvents(data)
		if err != nil {
			return
		}
		node := Teller(key)
		for i := range events {
			e := &events[i]
			believed := Testimony(key, e)
			_ = e.Object()
			if node != "" && (e.Node != node || e.Cause.Actor != ActorAgent(node) || believed && !nodeEvents[e.Kind]) {
				t.Fatalf("under %s it is believed %+v", key, e)
			}
		}
		if !json.Valid(EncodeEvents(events)) {
			t.Fatal("what was read cannot be written")
		}
	})
}
