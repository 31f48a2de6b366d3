package scheduler_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/orchestrate-go/orchestrate/scheduler"
	"pgregory.net/rapid"
)

// TestFixesHelp: each change that a decision proposes, made, gives one replica
// more a place.
func TestFixesHelp(t *testing.T) {
	seen := map[scheduler.FixKind]int{}
	rapid.Check(t, func(t *rapid.T) {
		sc := anyScenario.Draw(t, "scenario")
		c, err := sc.Cluster()
		if err != nil {
			t.Fatal(err)
		}
		s, err := scheduler.New(scheduler.Options{})
		if err != nil {
			t.Fatal(err)
		}
		r := sc.Requests[0]
		r.Count, r.Gang = 30, nil
		ds, err := s.Place(c, []scheduler.Request{r})
		if err != nil {
			t.Fatal(err)
		}
		hard := slices.ContainsFunc(r.Spread, func(k scheduler.SpreadKey) bool { return k.MaxSkew > 0 })
		for _, fix := range ds[0].Fixes {
			d, more := c.Clone(), r
			more.Count = 1
			switch fix.Kind {
			case scheduler.FixFree:
				v, _ := d.Node(fix.Node)
				x := *v.Spec()
				switch fix.Resource {
				case "cpu":
					x.Capacity.CPU += fix.Amount
				case "memory":
					x.Capacity.Memory += fix.Amount
				case "disk":
					x.Capacity.Disk += fix.Amount
				default:
					t.Fatalf("free %q?", fix.Resource)
				}
				if err := d.SetNode(x); err != nil {
					t.Fatal(err)
				}
			case scheduler.FixPreempt:
				for _, id := range fix.Tasks {
					if err := d.Release(id); err != nil {
						t.Fatal(err)
					}
				}
			case scheduler.FixDrop:
				switch {
				case fix.Rule == "maxPerNode":
					more.MaxPerNode = 0
				case fix.Rule == "required affinity":
					more.Affinity = nil
				case fix.Rule == "required anti-affinity":
					// Those of the same service that are there already still
					// have theirs, which holds both ways.
					continue
				case strings.HasPrefix(fix.Rule, "maxSkew"):
					more.Spread = nil
				case hard:
					continue // other nodes make other domains
				default:
					more.Constraints = slices.DeleteFunc(slices.Clone(r.Constraints), func(x scheduler.Constraint) bool { return x.String() == fix.Rule })
				}
			}
			es, err := s.Place(d, []scheduler.Request{more})
			if err != nil {
				t.Fatal(err)
			}
			if es[0].Placed() != 1 {
				t.Fatalf("%s does not help %+v: %s", &fix, more, es[0].String())
			}
			seen[fix.Kind]++
		}
	})
	t.Log(seen)
	for _, kind := range []scheduler.FixKind{scheduler.FixFree, scheduler.FixDrop} {
		if seen[kind] == 0 {
			t.Errorf("no case proposed to %s anything", kind)
		}
	}
}
