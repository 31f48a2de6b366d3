package scheduler_test

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/orchestrate-go/orchestrate/scheduler"
	"pgregory.net/rapid"
)

func TestFairShare(t *testing.T) {
	cores := func(x int64) node {
		return with(n("a"), func(y *node) { y.Capacity = res{CPU: x * 1000, Memory: 100 * gib} })
	}
	one := res{CPU: 1000}
	gpu := func(k int64) res { return res{Devices: []scheduler.Device{{Kind: "gpu", Model: "a100", Count: k}}} }
	for _, x := range []struct {
		name  string
		nodes []node
		runs  []on
		fair  scheduler.FairShare
		asks  []req
		want  []int
		held  []scheduler.HeldReason
	}{
		{
			name:  "enough for all: nothing is held",
			nodes: []node{cores(10)},
			asks:  []req{{Namespace: "a", Service: "s", Count: 4, Resources: one}, {Namespace: "b", Service: "s", Count: 6, Resources: one}},
			want:  []int{4, 6},
		}, {
			name:  "equal weights halve what there is",
			nodes: []node{cores(10)},
			asks:  []req{{Namespace: "a", Service: "s", Count: 100, Resources: one}, {Namespace: "b", Service: "s", Count: 100, Resources: one}},
			want:  []int{5, 5}, held: []scheduler.HeldReason{scheduler.HeldShare, scheduler.HeldShare},
		}, {
			name:  "who asks for less than its part leaves the rest to others",
			nodes: []node{cores(10)},
			asks:  []req{{Namespace: "a", Service: "s", Count: 2, Resources: one}, {Namespace: "b", Service: "s", Count: 100, Resources: one}},
			want:  []int{2, 8}, held: []scheduler.HeldReason{scheduler.HeldShare},
		}, {
			name:  "weights",
			nodes: []node{cores(12)},
			fair:  scheduler.FairShare{Shares: map[string]scheduler.Share{"a": {Weight: 3}}},
			asks:  []req{{Namespace: "a", Service: "s", Count: 100, Resources: one}, {Namespace: "b", Service: "s", Count: 100, Resources: one}},
			want:  []int{9, 3}, held: []scheduler.HeldReason{scheduler.HeldShare, scheduler.HeldShare},
		}, {
			name:  "what runs already counts",
			nodes: []node{cores(10)},
			runs:  []on{{"a", req{Namespace: "a", Service: "old", Resources: res{CPU: 4000}}}},
			asks:  []req{{Namespace: "a", Service: "s", Count: 100, Resources: one}, {Namespace: "b", Service: "s", Count: 100, Resources: one}},
			want:  []int{1, 5}, held: []scheduler.HeldReason{scheduler.HeldShare, scheduler.HeldShare},
		}, {
			name:  "the quota holds although there is room",
			nodes: []node{cores(100)},
			fair:  scheduler.FairShare{Shares: map[string]scheduler.Share{"a": {Quota: &scheduler.Quota{Resources: res{CPU: 3500}}}, "b": {Quota: &scheduler.Quota{Tasks: 2}}}},
			runs:  []on{{"a", req{Namespace: "a", Service: "old", Resources: one}}},
			asks:  []req{{Namespace: "a", Service: "s", Count: 9, Resources: one}, {Namespace: "b", Service: "s", Count: 9, Resources: one}},
			want:  []int{2, 2}, held: []scheduler.HeldReason{scheduler.HeldQuota, scheduler.HeldQuota},
		}, {
			name:  "devices are a resource too, and can be forbidden",
			nodes: []node{with(n("a"), func(x *node) { x.Capacity.Devices = gpu(8).Devices })},
			fair:  scheduler.FairShare{Shares: map[string]scheduler.Share{"c": {Quota: &scheduler.Quota{Resources: gpu(0)}}}},
			asks: []req{{Namespace: "a", Service: "s", Count: 9, Resources: gpu(2)}, {Namespace: "b", Service: "s", Count: 9, Resources: gpu(1)},
				{Namespace: "c", Service: "s", Count: 1, Resources: gpu(1)}},
			want: []int{2, 4, 0}, held: []scheduler.HeldReason{scheduler.HeldShare, scheduler.HeldShare, scheduler.HeldQuota},
		}, {
			name:  "priority within a namespace, not between them",
			nodes: []node{cores(10)},
			asks: []req{{Namespace: "a", Service: "low", Count: 5, Resources: one}, {Namespace: "a", Service: "high", Count: 4, Priority: 9, Resources: one},
				{Namespace: "b", Service: "low", Count: 9, Resources: one, Priority: -1}},
			want: []int{1, 4, 5}, held: []scheduler.HeldReason{scheduler.HeldShare, scheduler.HeldShare},
		}, {
			name:  "a gang is let through whole or held whole",
			nodes: []node{cores(10)},
			asks: []req{{Namespace: "a", Service: "mpi", Count: 12, Resources: one, Gang: &scheduler.Gang{}},
				{Namespace: "b", Service: "mpi", Count: 12, Resources: one, Gang: &scheduler.Gang{Min: 4}}},
			want: []int{0, 10}, held: []scheduler.HeldReason{scheduler.HeldGang, scheduler.HeldShare},
		}, {
			name:  "a drained node has nothing to share",
			nodes: []node{cores(2), with(n("b"), func(x *node) { x.Drained = true })},
			asks:  []req{{Namespace: "a", Service: "s", Count: 9, Resources: one}},
			want:  []int{2}, held: []scheduler.HeldReason{scheduler.HeldShare},
		}, {
			name:  "what asks for nothing is let through",
			nodes: []node{cores(1)},
			asks:  []req{{Namespace: "a", Service: "s", Count: 1000}},
			want:  []int{1000},
		},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := newCluster(t, x.nodes...)
			for i, r := range x.runs {
				if err := c.Bind(fmt.Sprint("old", i), r.node, &r.req); err != nil {
					t.Fatal(err)
				}
			}
			got, held, err := x.fair.Admit(c, x.asks)
			if err != nil {
				t.Fatal(err)
			}
			var counts []int
			var reasons []scheduler.HeldReason
			for i := range got {
				counts = append(counts, got[i].Count)
			}
			for _, h := range held {
				reasons = append(reasons, h.Reason)
				if h.Count != x.asks[h.Index].Count-got[h.Index].Count {
					t.Errorf("held %+v of %d, let through %d", h, x.asks[h.Index].Count, got[h.Index].Count)
				}
			}
			if fmt.Sprint(counts) != fmt.Sprint(x.want) || fmt.Sprint(reasons) != fmt.Sprint(x.held) {
				t.Errorf("let through %v, held %v; want %v and %v", counts, reasons, x.want, x.held)
			}
			if _, err := newScheduler(t, scheduler.Options{}).Place(c, got); err != nil {
				t.Errorf("Place refuses what was let through: %v", err)
			}
		})
	}
}

func TestFairShareRefusesNonsense(t *testing.T) {
	c := newCluster(t, n("a"))
	for name, s := range map[string]scheduler.Share{
		"NaN": {Weight: math.NaN()}, "negative": {Weight: -1}, "infinite": {Weight: math.Inf(1)}, "vanishing": {Weight: 1e-300},
		"negative quota": {Quota: &scheduler.Quota{Resources: res{CPU: -1}}}, "negative tasks": {Quota: &scheduler.Quota{Tasks: -1}},
	} {
		f := scheduler.FairShare{Shares: map[string]scheduler.Share{"x": s}}
		if _, _, err := f.Admit(c, nil); !errors.Is(err, scheduler.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	var f scheduler.FairShare
	var wrong *scheduler.RequestError
	if _, _, err := f.Admit(c, []req{{Service: "x", Count: -1}}); !errors.As(err, &wrong) {
		t.Errorf("bad request: got %v", err)
	}
}

// TestFairShareProperties: whatever is asked, nothing is let through beyond
// the cluster, and no namespace that was held for its share could have had one
// replica more by taking it from one with a larger share.
func TestFairShareProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := scheduler.NewCluster()
		for i := range rapid.IntRange(1, 4).Draw(t, "nodes") {
			if err := c.SetNode(with(n(fmt.Sprint("n", i)), func(x *node) { x.Capacity = res{CPU: 10_000, Memory: 10 * gib} })); err != nil {
				t.Fatal(err)
			}
		}
		nodes, _ := c.Len()
		totalCPU, totalMemory := float64(10_000*nodes), float64(10*gib*nodes)
		fair := scheduler.FairShare{Shares: map[string]scheduler.Share{"a": {Weight: float64(rapid.IntRange(1, 4).Draw(t, "weight"))}}}
		weight := func(ns string) float64 { return max(1, fair.Shares[ns].Weight) }
		var asks []req
		for _, ns := range []string{"a", "b", "c"} {
			asks = append(asks, req{Namespace: ns, Service: "s", Count: rapid.IntRange(0, 60).Draw(t, "count"), Resources: res{
				CPU: int64(100 * rapid.IntRange(1, 10).Draw(t, "cpu")), Memory: int64(rapid.IntRange(0, 4).Draw(t, "memory")) * gib / 4}})
		}
		got, _, err := fair.Admit(c, asks)
		if err != nil {
			t.Fatal(err)
		}
		var cpu, memory float64
		share := func(r *req, count int) float64 {
			k := float64(count)
			return max(k*float64(r.Resources.CPU)/totalCPU, k*float64(r.Resources.Memory)/totalMemory) / weight(r.Namespace)
		}
		for i := range got {
			cpu += float64(got[i].Count) * float64(got[i].Resources.CPU)
			memory += float64(got[i].Count) * float64(got[i].Resources.Memory)
		}
		if cpu > totalCPU || memory > totalMemory {
			t.Fatalf("let through %v cpu and %v memory of %v and %v", cpu, memory, totalCPU, totalMemory)
		}
		for i := range got {
			if got[i].Count == asks[i].Count {
				continue
			}
			for k := range got {
				fits := cpu-float64(got[k].Resources.CPU)+float64(got[i].Resources.CPU) <= totalCPU &&
					memory-float64(got[k].Resources.Memory)+float64(got[i].Resources.Memory) <= totalMemory
				if fits && got[k].Count > 0 && share(&got[k], got[k].Count-1) > share(&got[i], got[i].Count+1)+1e-9 {
					t.Fatalf("%s has %d (share %.3f) although %s has %d (share %.3f) of %+v", got[i].Namespace, got[i].Count,
						share(&got[i], got[i].Count), got[k].Namespace, got[k].Count, share(&got[k], got[k].Count), asks)
				}
			}
		}
	})
}
