package orchestrate

import (
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// Whatever networks there are, the ranges of a new one overlap none of theirs,
// nor each other.
func TestRangesNeverOverlap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := ranges{netip.MustParsePrefix("10.64.0.0/15"), netip.MustParsePrefix("fd00:1::/58")}
		taken := map[string]record.Network{}
		for i := range 40 {
			rec := record.Network{Name: fmt.Sprint("n", i)}
			if rapid.Bool().Draw(t, "own subnet") {
				bits := rapid.IntRange(12, 28).Draw(t, "bits")
				a := netip.AddrFrom4([4]byte{10, byte(rapid.IntRange(64, 66).Draw(t, "b")), byte(rapid.IntRange(0, 255).Draw(t, "c")), 0})
				subnet := netip.PrefixFrom(a, bits).Masked()
				clash := false
				for _, n := range taken {
					for _, p := range append(n.Subnets, n.Virtual...) {
						clash = clash || p.Overlaps(subnet)
					}
				}
				if clash {
					continue // the driver refuses it
				}
				rec.Subnets = []netip.Prefix{subnet}
			}
			if err := r.choose(&rec, taken); err != nil {
				return // the pool is used up
			}
			all := append(append([]netip.Prefix(nil), rec.Subnets...), rec.Virtual...)
			for _, n := range taken {
				all = append(append(all, n.Subnets...), n.Virtual...)
			}
			for i, p := range all {
				for _, q := range all[:i] {
					if p.Overlaps(q) {
						t.Fatalf("%v overlaps %v", p, q)
					}
				}
			}
			taken[rec.Name] = rec
			if rapid.Bool().Draw(t, "remove one") {
				delete(taken, rec.Name)
			}
		}
	})
}

func TestRangesRunOut(t *testing.T) {
	r := ranges{netip.MustParsePrefix("10.64.0.0/18"), netip.MustParsePrefix("fd00:1::/62")}
	taken := map[string]record.Network{}
	for i := range 3 {
		rec := record.Network{Name: fmt.Sprint("n", i)}
		err := r.choose(&rec, taken)
		if (err != nil) != (i == 2) {
			t.Errorf("network %d: error %v, want one for the third alone", i, err)
		}
		taken[rec.Name] = rec
	}
}
