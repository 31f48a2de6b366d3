//go:build linux

package conntrack

import "testing"

func FuzzParse(f *testing.F) {
	f.Add(make([]byte, 4))
	f.Add([]byte{2, 0, 0, 0, 8, 0, 1, 0x80, 4, 0, 1, 0x80})
	f.Fuzz(func(t *testing.T, data []byte) {
		flow, ok := Parse(data)
		if ok && (!flow.Original.valid() || !flow.Reply.valid() || len(flow.original) == 0) {
			t.Fatalf("%x is taken for %+v", data, flow)
		}
	})
}
