package record_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

func TestTTLOfASize(t *testing.T) {
	for _, tt := range []struct {
		nodes, renewals int
		base, want      time.Duration
	}{
		{0, 0, 5 * time.Second, 5 * time.Second},
		{1, 1000, 5 * time.Second, 5 * time.Second},
		{1333, 1000, 5 * time.Second, 5 * time.Second},
		{1334, 1000, 5 * time.Second, 6 * time.Second},
		{5000, 1000, 5 * time.Second, 19 * time.Second},
		{5000, 1000, time.Minute, time.Minute},
		{5000, 10_000, 5 * time.Second, 5 * time.Second},
		{10, 10, time.Second, 4 * time.Second},
		{100_000, 0, time.Second, time.Second}, // no limit
	} {
		if got := (record.Size{Nodes: tt.nodes, Renewals: tt.renewals}).TTL(tt.base); got != tt.want {
			t.Errorf("%d nodes, %d renewals a second, base %v: %v, want %v", tt.nodes, tt.renewals, tt.base, got, tt.want)
		}
	}
}

// TestSizes lets a fleet grow and shrink at random and checks that what its size
// says keeps the renewals of all nodes under the limit, that it is not far more
// than is needed, and that it changes seldom.
func TestSizes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 5000).Draw(t, "limit")
		base := time.Duration(rapid.IntRange(1000, 10_000).Draw(t, "base")) * time.Millisecond
		nodes, size := 0, record.Size{}
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			nodes = max(0, nodes+rapid.IntRange(-3000, 3000).Draw(t, "change"))
			before := size
			size = size.Resize(nodes, limit)
			if again := size.Resize(nodes, limit); again != size {
				t.Fatalf("of %d nodes the size is %+v, and then %+v", nodes, size, again)
			}
			if n := max(nodes, before.Nodes/2); before.Nodes > 0 && nodes <= before.Nodes && nodes >= n && size != before {
				t.Fatalf("%d nodes change the size %+v to %+v, want no change for few", nodes, before, size)
			}
			ttl := size.TTL(base)
			if rate := record.RenewalsPerTTL * float64(nodes) / ttl.Seconds(); rate > float64(limit)+1e-6 {
				t.Fatalf("%d nodes with a TTL of %v renew %.0f times a second, want at most %d", nodes, ttl, rate, limit)
			}
			needed := record.Size{Nodes: max(nodes, 1), Renewals: limit}.TTL(base)
			if ttl > 3*needed+3*time.Second {
				t.Fatalf("%d nodes have a TTL of %v, where %v would do", nodes, ttl, needed)
			}
		}
		if none := size.Resize(nodes, -1); none.TTL(base) != base {
			t.Fatalf("without a limit the TTL is %v, want %v", none.TTL(base), base)
		}
	})
}
