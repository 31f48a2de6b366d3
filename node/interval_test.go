package node

import (
	"fmt"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// TestRenewalsAreSpread has five thousand nodes begin in the same moment, as when
// the store comes back, and checks that their renewals stay under the limit and
// are spread over time soon after.
func TestRenewalsAreSpread(t *testing.T) {
	const nodes = 5000
	size := record.Size{}.Resize(nodes, record.DefaultRenewals)
	ttl := size.TTL(DefaultLeaseTTL)
	total, late := 0, map[time.Duration]int{}
	const began, until = 10 * time.Minute, 20 * time.Minute
	for i := range nodes {
		every := interval(ttl, fraction(fmt.Sprint("node-", i)))
		if every > ttl/3 || every < ttl/4 {
			t.Fatalf("a node renews a lease of %v every %v, want a quarter to a third of it", ttl, every)
		}
		for at := every; at < until; at += every {
			if at >= began {
				total++
				late[at.Truncate(time.Second)]++
			}
		}
	}
	rate := float64(total) / (until - began).Seconds()
	if rate > record.DefaultRenewals {
		t.Errorf("%d nodes renew %.0f times a second, want at most %d", nodes, rate, record.DefaultRenewals)
	}
	for at, n := range late {
		if float64(n) > 1.3*rate {
			t.Errorf("%d renewals in the second at %v, where %.0f are usual: they come together", n, at, rate)
		}
	}
}

// TestFractions holds that names as they are given to nodes are spread evenly.
func TestFractions(t *testing.T) {
	for _, form := range []string{"n%d", "node-%03d", "ip-10-0-0-%d", "%d.example.org"} {
		var tenths [10]int
		for i := range 1000 {
			f := fraction(fmt.Sprintf(form, i))
			if f < 0 || f >= 1 {
				t.Fatalf("fraction %v, want from 0 to less than 1", f)
			}
			tenths[int(10*f)]++
		}
		for i, n := range tenths {
			if n < 60 || n > 140 {
				t.Errorf("of 1000 names like %s, %d are in tenth %d; want about 100", form, n, i)
			}
		}
	}
}
