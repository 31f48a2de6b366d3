package orchestratetest_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/node"
	"github.com/orchestrate-go/orchestrate/orchestratetest"
)

// balanced is a fleet with balancers, whose services change in all ways: rolled out,
// switched from one set to another, drained, scaled and removed.
func balanced() orchestratetest.Scenario {
	switched := web(3)
	switched.Name = "switched"
	switched.Update.Strategy, switched.Update.BlueGreen.Bake = orchestrate.BlueGreenUpdate, time.Minute
	probed := web(5)
	probed.Name = "probed"
	return orchestratetest.Scenario{
		Nodes: []orchestratetest.NodeGroup{{Count: 5}}, Balancers: true, For: 2 * time.Hour,
		Objects: []orchestrate.Object{web(8), probed, switched},
		Script: []orchestratetest.Step{
			{At: 10 * time.Minute, Do: orchestratetest.Apply{Objects: []orchestrate.Object{revised(web(8)), revised(switched)}}},
			{At: 30 * time.Minute, Do: orchestratetest.Drain{Node: "n2"}},
			{At: 40 * time.Minute, Do: orchestratetest.Uncordon{Node: "n2"}},
			{At: 50 * time.Minute, Do: orchestratetest.Scale{Name: "probed", Replicas: 9}},
			{At: 60 * time.Minute, Do: orchestratetest.Scale{Name: "probed", Replicas: 2}},
			{At: 70 * time.Minute, Do: orchestratetest.Remove{Names: []string{"switched"}}},
		},
		Always: append(orchestratetest.Ready(), orchestratetest.BalancersFollow(10*time.Second)),
	}
}

// TestBalancersFollow has it hold with no faults, at once, and with all kinds of
// them, soon; and each run be the same.
func TestBalancersFollow(t *testing.T) {
	rules := 0
	calm := balanced()
	calm.Always = append(calm.Always, orchestratetest.Always("it is counted", func(v *orchestratetest.View) error {
		rules = max(rules, len(v.Rules("n1")))
		return nil
	}))
	same(t, calm, same(t, calm, nil))
	if rules != 6 {
		t.Errorf("a balancer had %d rules at most, want one of each service for each family of addresses", rules)
	}
	faulty := chaos(7)
	faulty.Balancers, faulty.Script = true, balanced().Script[:1]
	faulty.Always = append(orchestratetest.Ready(), orchestratetest.BalancersFollow(time.Minute))
	same(t, faulty, same(t, faulty, nil))
}

// A balancer that takes nothing away, and one that is programmed once.
type (
	keepsAll struct {
		network.Balancer
		had map[netip.AddrPort][]netip.AddrPort
	}
	programmedOnce struct {
		network.Balancer
		done bool
	}
)

func (b *keepsAll) Program(ctx context.Context, rules []network.Rule) error {
	for i, r := range rules {
		at := netip.AddrPortFrom(r.Address, r.Port)
		for _, e := range r.Endpoints {
			b.had[at] = append(b.had[at], e)
		}
		rules[i].Endpoints = b.had[at]
	}
	return b.Balancer.Program(ctx, rules)
}

func (b *programmedOnce) Program(ctx context.Context, rules []network.Rule) error {
	if b.done || len(rules) == 0 || len(rules[0].Endpoints) == 0 {
		return nil
	}
	b.done = true
	return b.Balancer.Program(ctx, rules)
}

// TestBalancersFollowCatches plants mistakes of balancers and of who programs them.
func TestBalancersFollowCatches(t *testing.T) {
	for name, tc := range map[string]struct {
		agent func(*node.Options)
		says  string
	}{
		"a balancer that takes nothing away": {
			func(o *node.Options) { o.Balancer = &keepsAll{o.Balancer, map[netip.AddrPort][]netip.AddrPort{}} }, "is behind for 10s: default/",
		},
		"a balancer that is programmed once": {
			func(o *node.Options) { o.Balancer = &programmedOnce{Balancer: o.Balancer} }, "is behind for 10s: default/",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := balanced()
			s.Agent, s.Shrink = tc.agent, -1
			r := orchestratetest.Explore(t, s)
			if r.Failure == nil || r.Failure.Invariant != "balancers follow endpoints" || !strings.Contains(r.Failure.Error(), tc.says) {
				t.Errorf("found %v, want %q", r.Failure, tc.says)
			}
		})
	}
	s := balanced()
	s.Shrink = -1
	r := orchestratetest.Explore(t, s.Tamper(edit("n1", "/endpoints/", func(rec map[string]any) bool {
		rec["addresses"] = []string{"10.9.9.9"} // an agent that publishes what it does not have
		return true
	})))
	if r.Failure == nil || !strings.Contains(r.Failure.Error(), "node n1 is behind") {
		t.Errorf("found %v, want that n1, which knows better, sends elsewhere", r.Failure)
	}
}
