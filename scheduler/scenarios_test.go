package scheduler_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/orchestrate-go/orchestrate/scheduler"
)

// These scenarios are what the tests of SwarmKit's and of Kubernetes'
// schedulers describe, told anew. Each says which nodes there are, what runs,
// what is asked, and where the replicas must end up.

type (
	node = scheduler.Node
	req  = scheduler.Request
	res  = scheduler.Resources
)

const gib = 1 << 30

// n is a ready node with 4 cores and 8 GiB and labels in pairs.
func n(id string, labels ...string) node {
	x := node{ID: id, Hostname: id, Ready: true, Platform: scheduler.Platform{OS: "linux", Arch: "amd64"},
		Capacity: res{CPU: 4000, Memory: 8 * gib}, Labels: map[string]string{}}
	for i := 0; i < len(labels); i += 2 {
		x.Labels[labels[i]] = labels[i+1]
	}
	return x
}

func with(x node, f func(*node)) node {
	f(&x)
	return x
}

func where(texts ...string) []scheduler.Constraint {
	var list []scheduler.Constraint
	for _, s := range texts {
		list = append(list, scheduler.MustConstraint(s))
	}
	return list
}

func spread(keys ...string) []scheduler.SpreadKey {
	var list []scheduler.SpreadKey
	for _, k := range keys {
		list = append(list, scheduler.SpreadKey{Key: "node.labels." + k})
	}
	return list
}

// on is a task that runs already.
type on struct {
	node string
	req  req
}

type scenario struct {
	name  string
	nodes []node
	runs  []on
	asks  []req
	opts  scheduler.Options
	// want is where each request's replicas are: "a:2 b:1"; in any order of
	// nodes, "2 on a|b" is 2 on either. A number of replicas left over is
	// "left:1".
	want []string
	// says is what the first decision must mention.
	says []string
}

var scenarios1 = []scenario{
	{
		name:  "replicas of a service go to different nodes",
		nodes: []node{n("a"), n("b"), n("c")},
		asks:  []req{{Service: "web", Count: 3}},
		want:  []string{"a:1 b:1 c:1"},
	}, {
		name:  "nodes with fewer of the service come first, however loaded",
		nodes: []node{n("a"), n("b")},
		runs:  []on{{"a", req{Service: "web"}}, {"b", req{Service: "other", Resources: res{CPU: 3000}}}, {"b", req{Service: "other"}}},
		asks:  []req{{Service: "web", Count: 1}},
		want:  []string{"b:1"},
	}, {
		name:  "among nodes with as many, the least loaded",
		nodes: []node{n("a"), n("b"), n("c")},
		runs:  []on{{"a", req{Service: "x", Resources: res{CPU: 2000}}}, {"b", req{Service: "x", Resources: res{CPU: 500}}}, {"c", req{Service: "x", Resources: res{CPU: 1000}}}},
		asks:  []req{{Service: "web", Count: 1, Resources: res{CPU: 500}}},
		want:  []string{"b:1"},
	}, {
		name: "a node that is not ready, paused or drained gets nothing",
		nodes: []node{n("a"), with(n("b"), func(x *node) { x.Ready = false }),
			with(n("c"), func(x *node) { x.Paused = true }), with(n("d"), func(x *node) { x.Drained = true })},
		asks: []req{{Service: "web", Count: 3}},
		want: []string{"a:3"},
	}, {
		name:  "no ready node: everything is left, and it says why",
		nodes: []node{with(n("a"), func(x *node) { x.Ready = false })},
		asks:  []req{{Service: "web", Count: 2}},
		want:  []string{"left:2"},
		says:  []string{"2 of 2 replicas not placed", "ready: refused 1 node: a is not ready"},
	}, {
		name: "no node at all",
		asks: []req{{Service: "web", Count: 1}},
		want: []string{"left:1"},
		says: []string{"there are no nodes"},
	}, {
		name:  "memory is kept for what runs, and the numbers are told",
		nodes: []node{n("a"), n("b")},
		runs:  []on{{"a", req{Service: "db", Resources: res{Memory: 7 * gib}}}, {"b", req{Service: "db", Resources: res{Memory: 5 * gib}}}},
		asks:  []req{{Service: "web", Count: 2, Resources: res{Memory: 2 * gib}}},
		want:  []string{"b:1 left:1"},
		says:  []string{"memory: refused 2 nodes: a has 1 GiB free, needs 2 GiB, b has 1 GiB free", "free 1 GiB memory on a"},
	}, {
		name:  "a task that asks for nothing fits on a full node",
		nodes: []node{n("a")},
		runs:  []on{{"a", req{Service: "db", Resources: res{CPU: 9000, Memory: 9 * gib}}}},
		asks:  []req{{Service: "web", Count: 1}},
		want:  []string{"a:1"},
	}, {
		name:  "the service spreads although one node has more room",
		nodes: []node{n("a"), with(n("big"), func(x *node) { x.Capacity = res{CPU: 64_000, Memory: 256 * gib} })},
		asks:  []req{{Service: "web", Count: 4, Resources: res{CPU: 1000}}},
		want:  []string{"a:2 big:2"},
	}, {
		name:  "when a node is full the rest goes where there is room",
		nodes: []node{n("a"), with(n("big"), func(x *node) { x.Capacity = res{CPU: 64_000} })},
		asks:  []req{{Service: "web", Count: 10, Resources: res{CPU: 2000}}},
		want:  []string{"a:2 big:8"},
	}, {
		name:  "overcommit promises more than there is",
		nodes: []node{with(n("a"), func(x *node) { x.Overcommit.CPU = 1.5 })},
		asks:  []req{{Service: "web", Count: 7, Resources: res{CPU: 1000}}},
		want:  []string{"a:6 left:1"},
	}, {
		name:  "equality and inequality of labels",
		nodes: []node{n("a", "disk", "ssd"), n("b", "disk", "hdd"), n("c")},
		asks: []req{
			{Service: "eq", Count: 1, Constraints: where("node.labels.disk == ssd")},
			{Service: "ne", Count: 2, Constraints: where("node.labels.disk != ssd")},
			{Service: "both", Count: 1, Constraints: where("node.labels.disk != ssd", "node.labels.disk exists")},
		},
		want: []string{"a:1", "b:1 c:1", "b:1"},
	}, {
		name:  "sets, numbers, versions and patterns",
		nodes: []node{n("a", "zone", "eu", "cores", "9", "ver", "1.9.0"), n("b", "zone", "us", "cores", "16", "ver", "1.10.0"), n("c", "zone", "asia", "cores", "x", "ver", "2.0.0-rc.1")},
		asks: []req{
			{Service: "in", Count: 2, Constraints: where("node.labels.zone in (eu, us)")},
			{Service: "notin", Count: 1, Constraints: where("node.labels.zone not in (eu, us)")},
			{Service: "gt", Count: 1, Constraints: where("node.labels.cores > 9")},
			{Service: "le", Count: 1, Constraints: where("node.labels.cores <= 9")},
			{Service: "semver", Count: 1, Constraints: where("node.labels.ver >= semver 1.10", "node.labels.ver < semver 2.0.0-rc.1")},
			{Service: "re", Count: 1, Constraints: where(`node.hostname =~ "[c-z]"`)},
		},
		want: []string{"a:1 b:1", "c:1", "b:1", "a:1", "b:1", "c:1"},
	}, {
		name:  "a node by its id, and an explanation that names the constraint",
		nodes: []node{n("a"), n("b")},
		asks:  []req{{Service: "web", Count: 1, Constraints: where("node.id == z")}},
		want:  []string{"left:1"},
		says:  []string{"constraint node.id == z: refused 2 nodes: a has a", "drop node.id == z: 2 nodes would fit"},
	}, {
		name:  "platforms of the image",
		nodes: []node{n("a"), with(n("w"), func(x *node) { x.Platform.OS = "windows" }), with(n("r"), func(x *node) { x.Platform.Arch = "arm64" })},
		asks: []req{
			{Service: "linux", Count: 2, Platforms: []scheduler.Platform{{OS: "linux"}}},
			{Service: "win", Count: 1, Platforms: []scheduler.Platform{{OS: "windows", Arch: "amd64"}, {OS: "plan9"}}},
		},
		want: []string{"a:1 r:1", "w:1"},
	}, {
		name:  "taints keep tasks away that do not tolerate them",
		nodes: []node{n("a"), with(n("gpu"), func(x *node) { x.Taints = []scheduler.Taint{{Key: "dedicated", Value: "gpu"}} })},
		asks: []req{
			{Service: "web", Count: 2},
			{Service: "train", Count: 2, Tolerations: []scheduler.Toleration{{Key: "dedicated", Value: "gpu"}}},
			{Service: "other", Count: 1, Tolerations: []scheduler.Toleration{{Key: "dedicated", Value: "db"}}},
		},
		want: []string{"a:2", "a:1 gpu:1", "a:1"},
	}, {
		name:  "host ports are had once a node, per protocol and address",
		nodes: []node{n("a"), n("b")},
		runs:  []on{{"a", req{Service: "old", Ports: []scheduler.HostPort{{Port: 80, IP: "10.0.0.1"}}}}},
		asks: []req{
			{Service: "all", Count: 2, Priority: 9, Ports: []scheduler.HostPort{{Port: 80}}},
			{Service: "udp", Count: 2, Ports: []scheduler.HostPort{{Port: 80, Protocol: "udp"}}},
			{Service: "elsewhere", Count: 1, Ports: []scheduler.HostPort{{Port: 80, IP: "10.0.0.2"}}},
		},
		want: []string{"b:1 left:1", "a:1 b:1", "a:1"},
		says: []string{"port: refused 2 nodes: a has port 80/tcp taken"},
	}, {
		name:  "at most so many of a service on a node",
		nodes: []node{n("a"), n("b")},
		runs:  []on{{"a", req{Service: "web"}}},
		asks:  []req{{Service: "web", Count: 4, MaxPerNode: 2}},
		want:  []string{"a:1 b:2 left:1"},
		says:  []string{"max-per-node: refused 2 nodes: a has 2 already, allowed 2", "drop maxPerNode: 2 nodes would fit"},
	}, {
		name: "drivers must be on the node",
		nodes: []node{n("a"), with(n("b"), func(x *node) { x.Drivers = []string{"volume/nfs", "network/overlay"} }),
			with(n("c"), func(x *node) { x.Drivers = []string{"volume/nfs"} })},
		asks: []req{{Service: "web", Count: 2, Drivers: []string{"volume/nfs", "network/overlay"}}, {Service: "x", Count: 2, Drivers: []string{"volume/nfs"}}},
		want: []string{"b:2", "c:1 b:1"},
	}, {
		name: "a volume that only one zone reaches",
		nodes: []node{with(n("a"), func(x *node) { x.Topology = map[string]string{"zone": "1"} }),
			with(n("b"), func(x *node) { x.Topology = map[string]string{"zone": "2", "rack": "7"} }), n("c")},
		asks: []req{
			{Service: "db", Count: 2, Volumes: []scheduler.Volume{{Name: "data", Accessible: []map[string]string{{"zone": "3"}, {"zone": "2", "rack": "7"}}}}},
			{Service: "any", Count: 1, Volumes: []scheduler.Volume{{Name: "shared"}}, Constraints: where("node.id == c")},
			{Service: "no", Count: 1, Volumes: []scheduler.Volume{{Name: "lost", Accessible: []map[string]string{{"zone": "9"}}}}},
		},
		want: []string{"b:2", "c:1", "left:1"},
	}, {
		name: "devices are counted by model, and any model will do when none is said",
		nodes: []node{with(n("a"), func(x *node) {
			x.Capacity.Devices = []scheduler.Device{{Kind: "gpu", Model: "a100", Count: 2}, {Kind: "gpu", Model: "t4", Count: 1}}
		}), n("b")},
		asks: []req{
			{Service: "a100", Count: 1, Priority: 2, Resources: res{Devices: []scheduler.Device{{Kind: "gpu", Model: "a100", Count: 1}}}},
			{Service: "any", Count: 3, Priority: 1, Resources: res{Devices: []scheduler.Device{{Kind: "gpu", Count: 1}}}},
			{Service: "pair", Count: 1, Resources: res{Devices: []scheduler.Device{{Kind: "gpu", Count: 2}}}},
		},
		want: []string{"a:1", "a:2 left:1", "left:1"},
	}, {
		name: "devices of one model are set aside before those of any",
		nodes: []node{with(n("a"), func(x *node) {
			x.Capacity.Devices = []scheduler.Device{{Kind: "gpu", Model: "a100", Count: 2}, {Kind: "gpu", Model: "t4", Count: 1}}
		})},
		asks: []req{{Service: "both", Count: 1, Resources: res{Devices: []scheduler.Device{{Kind: "gpu", Count: 1}, {Kind: "gpu", Model: "a100", Count: 2}}}}},
		want: []string{"a:1"},
	},
}

var scenarios2 = []scenario{
	{
		name:  "spread over datacenters first, then over nodes",
		nodes: []node{n("a1", "dc", "a"), n("a2", "dc", "a"), n("a3", "dc", "a"), n("b1", "dc", "b")},
		asks:  []req{{Service: "web", Count: 6, Spread: spread("dc")}},
		want:  []string{"a1:1 a2:1 a3:1 b1:3"},
	}, {
		name: "spread over a tree: nodes without the label are a domain of their own",
		nodes: []node{n("a1", "dc", "a", "rack", "r1"), n("a2", "dc", "a", "rack", "r2"), n("a3", "dc", "a", "rack", "r2"),
			n("b1", "dc", "b", "rack", "r1"), n("none")},
		asks: []req{{Service: "web", Count: 12, Spread: spread("dc", "rack")}},
		want: []string{"a1:2 2 on a2|a3 b1:4 none:4"},
	}, {
		name:  "scaling up fills the domains that have fewer",
		nodes: []node{n("a1", "dc", "a"), n("a2", "dc", "a"), n("b1", "dc", "b"), n("c1", "dc", "c")},
		runs:  []on{{"a1", req{Service: "web"}}, {"a1", req{Service: "web"}}, {"a2", req{Service: "web"}}, {"b1", req{Service: "web"}}},
		asks:  []req{{Service: "web", Count: 5, Spread: spread("dc")}},
		want:  []string{"b1:2 c1:3"},
	}, {
		name:  "a full domain gives what it can not take to the others",
		nodes: []node{n("a1", "dc", "a"), n("b1", "dc", "b"), n("c1", "dc", "c")},
		runs:  []on{{"a1", req{Service: "x", Resources: res{CPU: 3000}}}},
		asks:  []req{{Service: "web", Count: 7, Spread: spread("dc"), Resources: res{CPU: 1000}}},
		want:  []string{"a1:1 b1:3 c1:3"},
	}, {
		name:  "a full domain and a rule of skew: the rest is left over",
		nodes: []node{n("a1", "dc", "a"), n("b1", "dc", "b"), n("c1")},
		runs:  []on{{"a1", req{Service: "x", Resources: res{CPU: 3000}}}},
		asks:  []req{{Service: "web", Count: 7, Spread: []scheduler.SpreadKey{{Key: "node.labels.dc", MaxSkew: 1}}, Resources: res{CPU: 1000}}},
		want:  []string{"a1:1 b1:2 left:4"},
		says:  []string{"spread-key: refused 1 node: c1 has no node.labels.dc", "max-skew: refused 1 node: b1", "drop maxSkew of node.labels.dc: 1 node would fit"},
	}, {
		name:  "weights give a domain a larger part",
		nodes: []node{n("a1", "dc", "a"), n("b1", "dc", "b")},
		asks:  []req{{Service: "web", Count: 9, Spread: []scheduler.SpreadKey{{Key: "node.labels.dc", Weights: map[string]float64{"a": 2}}}}},
		want:  []string{"a1:6 b1:3"},
	}, {
		name:  "anti-affinity to itself, by node",
		nodes: []node{n("a"), n("b")},
		asks:  []req{{Service: "db", Count: 3, AntiAffinity: []scheduler.Affinity{{Service: "db"}}}},
		want:  []string{"a:1 b:1 left:1"},
		says:  []string{"anti-affinity: refused 2 nodes: a is near tasks to keep away from"},
	}, {
		name:  "anti-affinity to itself, by zone",
		nodes: []node{n("a1", "zone", "a"), n("a2", "zone", "a"), n("b1", "zone", "b")},
		asks:  []req{{Service: "db", Count: 3, AntiAffinity: []scheduler.Affinity{{Service: "db", Topology: "node.labels.zone"}}}},
		want:  []string{"1 on a1|a2 b1:1 left:1"},
	}, {
		name:  "anti-affinity holds against those that come later, too",
		nodes: []node{n("a1", "zone", "a"), n("b1", "zone", "b")},
		runs:  []on{{"a1", req{Service: "quiet", AntiAffinity: []scheduler.Affinity{{Topology: "node.labels.zone", Labels: map[string]string{"noise": "loud"}}}}}},
		asks:  []req{{Service: "loud", Count: 2, Labels: map[string]string{"noise": "loud"}}, {Service: "soft", Count: 2}},
		want:  []string{"b1:2", "a1:1 b1:1"},
	}, {
		name:  "affinity to a service that is placed in the same call",
		nodes: []node{n("a1", "zone", "a"), n("b1", "zone", "b"), n("b2", "zone", "b")},
		asks: []req{
			{Service: "web", Count: 2, Priority: 5, Affinity: []scheduler.Affinity{{Service: "cache", Topology: "node.labels.zone"}}},
			{Service: "cache", Count: 1, Constraints: where("node.labels.zone == b")},
		},
		want: []string{"b1:1 b2:1", "1 on b1|b2"},
	}, {
		name:  "affinity to itself: the first goes anywhere, the others to it",
		nodes: []node{n("a1", "zone", "a"), n("a2", "zone", "a"), n("b1", "zone", "b"), n("b2", "zone", "b")},
		asks:  []req{{Service: "hpc", Count: 4, Affinity: []scheduler.Affinity{{Service: "hpc", Topology: "node.labels.zone"}}}},
		want:  []string{"a1:2 a2:2"},
	}, {
		name:  "affinity to nobody is not met",
		nodes: []node{n("a")},
		asks:  []req{{Service: "web", Count: 1, Affinity: []scheduler.Affinity{{Service: "cache"}}}},
		want:  []string{"left:1"},
		says:  []string{"affinity: refused 1 node", "drop required affinity: 1 node would fit"},
	}, {
		name:  "preferred affinity gives way",
		nodes: []node{n("a", "zone", "1"), n("b", "zone", "2"), n("c", "zone", "2")},
		runs:  []on{{"c", req{Service: "cache"}}, {"c", req{Service: "cache"}}},
		asks: []req{
			{Service: "web", Count: 1, Affinity: []scheduler.Affinity{{Service: "cache", Topology: "node.labels.zone", Preferred: true}}},
			{Service: "away", Count: 1, AntiAffinity: []scheduler.Affinity{{Service: "cache", Topology: "node.labels.zone", Preferred: true}}},
		},
		want: []string{"b:1", "a:1"},
	}, {
		name:  "the image that is there already decides between equals",
		nodes: []node{n("a"), with(n("b"), func(x *node) { x.Images = []string{"web:1"} }), n("c")},
		asks:  []req{{Service: "web", Count: 1, Images: []string{"web:1"}}},
		want:  []string{"b:1"},
	}, {
		name:  "a node where the service failed often comes last, but comes",
		nodes: []node{n("a"), n("b")},
		asks: []req{
			{Service: "web", Count: 1, Failures: map[string]int{"a": 5}},
			{Service: "one", Count: 2, MaxPerNode: 1, Failures: map[string]int{"a": 5}},
			{Service: "few", Count: 1, Failures: map[string]int{"b": 4}, Constraints: where("node.id == b")},
		},
		want: []string{"b:1", "a:1 b:1", "b:1"},
	}, {
		name:  "back to the node with the data, away from the one to avoid",
		nodes: []node{n("a"), n("b"), n("c")},
		runs:  []on{{"c", req{Service: "x", Resources: res{CPU: 3000}}}},
		asks:  []req{{Service: "db", Count: 1, Prefer: []string{"c"}}, {Service: "web", Count: 1, Avoid: []string{"a", "b"}}},
		want:  []string{"c:1", "c:1"},
	}, {
		name:  "binpack fills the fullest node that fits",
		nodes: []node{n("a"), n("b"), n("c")},
		runs:  []on{{"b", req{Service: "x", Resources: res{CPU: 1000, Memory: gib}}}, {"c", req{Service: "x", Resources: res{CPU: 3800, Memory: gib}}}},
		asks:  []req{{Service: "web", Count: 3, Strategy: scheduler.BinPack, Resources: res{CPU: 1000, Memory: gib}}},
		want:  []string{"b:3"},
	}, {
		name:  "higher priority is served first when there is not enough",
		nodes: []node{n("a")},
		asks: []req{
			{Service: "low", Count: 3, Resources: res{CPU: 1000}},
			{Service: "high", Count: 3, Resources: res{CPU: 1000}, Priority: 10},
		},
		want: []string{"a:1 left:2", "a:3"},
		says: []string{"cpu: refused 1 node: a has 0 free, needs 1"},
	}, {
		name:  "a gang is placed whole or not at all",
		nodes: []node{n("a"), n("b")},
		asks: []req{
			{Service: "mpi", Count: 9, Priority: 2, Resources: res{CPU: 1000}, Gang: &scheduler.Gang{}},
			{Service: "fits", Count: 6, Priority: 1, Resources: res{CPU: 1000}, Gang: &scheduler.Gang{Min: 4}},
			{Service: "rest", Count: 2, Resources: res{CPU: 1000}},
		},
		want: []string{"left:9", "a:3 b:3", "a:1 b:1"},
		says: []string{"the gang needs 9 of mpi and 8 fit"},
	}, {
		name:  "a gang of several services",
		nodes: []node{n("a")},
		asks: []req{
			{Service: "ps", Count: 1, Resources: res{CPU: 1000}, Gang: &scheduler.Gang{Name: "job"}},
			{Service: "worker", Count: 4, Resources: res{CPU: 1000}, Gang: &scheduler.Gang{Name: "job", Min: 4}},
			{Service: "other", Count: 4, Resources: res{CPU: 500}},
		},
		want: []string{"left:1", "left:4", "a:4"},
	}, {
		name:  "preemption stops the least important, and no more than it must",
		nodes: []node{n("a"), n("b")},
		opts:  scheduler.Options{Preempt: true},
		runs: []on{
			{"a", req{Service: "p5", Priority: 5, Resources: res{CPU: 4000}}},
			{"b", req{Service: "p1", Priority: 1, Resources: res{CPU: 1000}}},
			{"b", req{Service: "p2", Priority: 2, Resources: res{CPU: 2500}}},
		},
		asks: []req{{Service: "vip", Count: 1, Priority: 9, Resources: res{CPU: 1500}}},
		want: []string{"b:1"},
		says: []string{"stops: p1-1 on b (priority 1) for vip.1"},
	}, {
		name:  "preemption lets back a victim that would not help",
		nodes: []node{n("a")},
		opts:  scheduler.Options{Preempt: true},
		runs: []on{
			{"a", req{Service: "small", Priority: 1, Resources: res{CPU: 100}}},
			{"a", req{Service: "large", Priority: 2, Resources: res{CPU: 3900}}},
		},
		asks: []req{{Service: "vip", Count: 1, Priority: 9, Resources: res{CPU: 3900}}},
		want: []string{"a:1"},
		says: []string{"stops: large-1 on a (priority 2) for vip.1"},
	}, {
		name:  "without preemption it is only named as a way out",
		nodes: []node{n("a")},
		runs:  []on{{"a", req{Service: "low", Resources: res{CPU: 4000}}}},
		asks:  []req{{Service: "vip", Count: 1, Priority: 9, Resources: res{CPU: 1000}}, {Service: "equal", Count: 1, Resources: res{CPU: 1000}}},
		want:  []string{"left:1", "left:1"},
		says:  []string{"stop low-0 on a"},
	}, {
		name:  "preemption never touches equals",
		nodes: []node{n("a")},
		opts:  scheduler.Options{Preempt: true},
		runs:  []on{{"a", req{Service: "peer", Priority: 9, Resources: res{CPU: 4000}}}},
		asks:  []req{{Service: "vip", Count: 1, Priority: 9, Resources: res{CPU: 1000}}},
		want:  []string{"left:1"},
	}, {
		name:  "namespaces do not see each other's services",
		nodes: []node{n("a"), n("b")},
		runs:  []on{{"a", req{Namespace: "dev", Service: "web"}}, {"b", req{Service: "x"}}, {"b", req{Service: "x"}}},
		asks:  []req{{Namespace: "prod", Service: "web", Count: 1, AntiAffinity: []scheduler.Affinity{{Service: "web"}}}},
		want:  []string{"a:1"},
	},
}

func TestScenarios(t *testing.T) {
	for _, sc := range append(scenarios1, scenarios2...) {
		t.Run(sc.name, func(t *testing.T) {
			c := scheduler.NewCluster()
			for _, x := range sc.nodes {
				if err := c.SetNode(x); err != nil {
					t.Fatal(err)
				}
			}
			for i, x := range sc.runs {
				if err := c.Bind(fmt.Sprintf("%s-%d", x.req.Service, i), x.node, &x.req); err != nil {
					t.Fatal(err)
				}
			}
			s, err := scheduler.New(sc.opts)
			if err != nil {
				t.Fatal(err)
			}
			ds, err := s.Place(c, sc.asks)
			if err != nil {
				t.Fatal(err)
			}
			for i := range ds {
				if err := matches(&ds[i], sc.want[i]); err != nil {
					t.Errorf("%s: %v\n%s", ds[i].Service, err, ds[i].String())
				}
			}
			for _, text := range sc.says {
				if !strings.Contains(ds[0].String(), text) {
					t.Errorf("the decision does not say %q:\n%s", text, ds[0].String())
				}
			}
			if err := c.Verify(); err != nil {
				t.Error(err)
			}
		})
	}
}

// matches compares a decision with a text such as "a:2 1 on b|c left:1".
func matches(d *scheduler.Decision, want string) error {
	got := map[string]int{}
	for _, id := range d.Nodes {
		got[id]++
	}
	left := 0
	text := want
	for words := strings.Fields(want); len(words) > 0; {
		if len(words) > 2 && words[1] == "on" {
			var count, have int
			fmt.Sscan(words[0], &count)
			for _, id := range strings.Split(words[2], "|") {
				have += got[id]
				delete(got, id)
			}
			if have != count {
				return fmt.Errorf("%d on %s, want %s", have, words[2], text)
			}
			words = words[3:]
			continue
		}
		id, number, _ := strings.Cut(words[0], ":")
		var count int
		fmt.Sscan(number, &count)
		if id == "left" {
			left = count
		} else if got[id] != count {
			return fmt.Errorf("%d on %s, want %s", got[id], id, text)
		}
		delete(got, id)
		words = words[1:]
	}
	if d.Unplaced != left || len(got) > 0 {
		return fmt.Errorf("%d left over and more on %v, want %s", d.Unplaced, slices.Sorted(maps.Keys(got)), text)
	}
	return nil
}
