package record

import (
	"encoding/json"
	"testing"

	"pgregory.net/rapid"
)

// TestIndexSet holds a set against a map, through its JSON in both forms.
func TestIndexSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int{5, 70, 1000, 100_000}).Draw(t, "most")
		want := map[int]bool{}
		var s IndexSet
		step := rapid.IntRange(1, 3).Draw(t, "step")
		for i := range rapid.IntRange(0, most/step).Draw(t, "run") {
			want[i*step] = true
			s.Add(i * step)
		}
		for _, i := range rapid.SliceOf(rapid.IntRange(0, most)).Draw(t, "others") {
			if s.Add(i) == want[i] {
				t.Fatalf("Add(%d) says %v of one that was there: %v", i, !want[i], want[i])
			}
			want[i] = true
		}
		data, err := json.Marshal(struct {
			S IndexSet `json:"s,omitzero"`
		}{s})
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > most/6+100 {
			t.Fatalf("%d bytes for %d of %d", len(data), len(want), most)
		}
		var got struct{ S IndexSet }
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatal(err)
		}
		if got.S.Len() != len(want) {
			t.Fatalf("%d elements, want %d", got.S.Len(), len(want))
		}
		for i := range want {
			if !got.S.Has(i) {
				t.Fatalf("%d is missing", i)
			}
		}
		free := got.S.NextFree(0)
		for i := range free {
			if !want[i] {
				t.Fatalf("NextFree is %d, but %d is free", free, i)
			}
		}
		if want[free] {
			t.Fatalf("NextFree is %d, which is taken", free)
		}
	})
	for _, bad := range []string{"x", "3-1", "-1", "1,", "0-99999999", "bits:!", "bits:AAAA"} {
		if err := new(IndexSet).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was read, want an error", bad)
		}
	}
}
