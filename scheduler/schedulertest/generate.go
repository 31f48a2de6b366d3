package schedulertest

import (
	"fmt"

	"github.com/orchestrate-go/orchestrate/scheduler"
)

// Scenario is a cluster and what is asked of it.
type Scenario struct {
	Nodes    []scheduler.Node
	Bound    []Bound
	Requests []scheduler.Request
}

// Bound is a task that runs before anything is asked.
type Bound struct {
	Task, Node string
	Request    scheduler.Request
}

// Cluster builds the scenario's cluster.
func (s *Scenario) Cluster() (*scheduler.Cluster, error) {
	c := scheduler.NewCluster()
	for _, n := range s.Nodes {
		if err := c.SetNode(n); err != nil {
			return nil, err
		}
	}
	for _, b := range s.Bound {
		if err := c.Bind(b.Task, b.Node, &b.Request); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Generate makes a small random scenario that uses every feature now and then.
// intn(n) is a number from 0 to n-1; smaller numbers give simpler scenarios,
// so that a property tester that shrinks them shows a simple one.
func Generate(intn func(n int) int) Scenario {
	g := gen{intn}
	var s Scenario
	for i := range 1 + intn(10) {
		s.Nodes = append(s.Nodes, g.node(i))
	}
	for i := range intn(8) {
		r := g.request(intn(6))
		r.Count, r.Gang = 1, nil
		for k := range r.Resources.Devices {
			// What runs has a model; one left open would be chosen by Bind,
			// depending on what was bound before.
			if d := &r.Resources.Devices[k]; d.Model == "" {
				d.Model = "a100"
			}
		}
		s.Bound = append(s.Bound, Bound{
			Task: fmt.Sprintf("old-%d", i), Node: s.Nodes[intn(len(s.Nodes))].ID, Request: r,
		})
	}
	for i := range 1 + intn(4) {
		s.Requests = append(s.Requests, g.request(i))
	}
	return s
}

type gen struct{ intn func(int) int }

// one is true once in n, and false when intn gives 0.
func (g gen) one(n int) bool { return g.intn(n) == n-1 }

func (g gen) pick(list ...string) string { return list[g.intn(len(list))] }

func (g gen) node(i int) scheduler.Node {
	n := scheduler.Node{
		ID: fmt.Sprintf("n%d", i), Hostname: fmt.Sprintf("host%d", i), Ready: !g.one(12),
		Platform: scheduler.Platform{OS: "linux", Arch: g.pick("amd64", "amd64", "arm64")},
		Labels:   map[string]string{"zone": g.pick("a", "b", "c"), "ver": g.pick("1.2.3", "1.10.0", "2.0.0-rc.1")},
		Capacity: scheduler.Resources{CPU: 1000 * int64(1+g.intn(8)), Memory: int64(1+g.intn(8)) << 30, Disk: int64(g.intn(3)) << 35},
	}
	if !g.one(4) {
		n.Labels["rack"] = g.pick("r1", "r2", "r3")
	}
	if g.one(5) {
		n.Labels["ssd"] = "yes"
	}
	if g.one(8) {
		delete(n.Labels, "zone")
	}
	if g.one(6) {
		n.Taints = []scheduler.Taint{{Key: "dedicated", Value: g.pick("db", "gpu")}}
	}
	n.Paused, n.Drained = g.one(15), g.one(15)
	if g.one(4) {
		n.Capacity.Devices = append(n.Capacity.Devices, scheduler.Device{Kind: "gpu", Model: g.pick("a100", "t4"), Count: int64(1 + g.intn(4))})
		if n.Capacity.Devices[0].Model == "t4" && g.one(2) {
			n.Capacity.Devices = append(n.Capacity.Devices, scheduler.Device{Kind: "gpu", Model: "a100", Count: int64(1 + g.intn(2))})
		}
	}
	if g.one(5) {
		n.Overcommit = scheduler.Overcommit{CPU: 1.5}
	}
	if g.one(3) {
		n.Drivers = []string{"volume/nfs"}
	}
	if g.one(3) {
		n.Topology = map[string]string{"zone": g.pick("a", "b")}
	}
	if g.one(3) {
		n.Images = []string{"web:1"}
	}
	return n
}

var constraintTexts = []string{
	"node.labels.zone == a", "node.labels.zone != b", "node.labels.zone in (a, c)", "node.labels.zone not in (a)",
	"node.labels.ssd exists", "node.labels.ssd not exists", "node.labels.ver >= semver 1.3", "node.labels.ver < semver 2",
	`node.hostname =~ "host[0-4]"`, `node.hostname !~ "host[13]"`, "node.os == linux", "node.arch == amd64", "node.id != n0",
}

func (g gen) request(i int) scheduler.Request {
	r := scheduler.Request{
		Service: fmt.Sprintf("svc%d", i), Count: 1 + g.intn(8),
		Resources: scheduler.Resources{CPU: int64(100 * g.intn(20)), Memory: int64(g.intn(12)) << 28},
		Labels:    map[string]string{"tier": g.pick("front", "back")},
		Priority:  int32(g.intn(3)),
	}
	if g.one(6) {
		r.Resources.Disk = 1 << 34
	}
	if g.one(8) {
		r.Resources.Devices = []scheduler.Device{{Kind: "gpu", Model: g.pick("", "a100", "t4"), Count: int64(1 + g.intn(2))}}
	}
	if g.one(4) {
		r.Constraints = append(r.Constraints, scheduler.MustConstraint(constraintTexts[g.intn(len(constraintTexts))]))
	}
	if g.one(8) {
		r.Constraints = append(r.Constraints, scheduler.MustConstraint(constraintTexts[g.intn(len(constraintTexts))]))
	}
	if g.one(3) {
		r.Spread = append(r.Spread, scheduler.SpreadKey{Key: "node.labels.zone"})
		switch {
		case g.one(3):
			r.Spread[0].MaxSkew = 1 + g.intn(2)
		case g.one(4):
			r.Spread[0].Weights = map[string]float64{"a": 2}
		}
		if g.one(3) {
			r.Spread = append(r.Spread, scheduler.SpreadKey{Key: "node.labels.rack", MaxSkew: g.intn(2)})
		}
	}
	if g.one(5) {
		r.MaxPerNode = 1 + g.intn(2)
	}
	if g.one(6) {
		r.Ports = []scheduler.HostPort{{Port: uint16(80 + g.intn(2)), IP: g.pick("", "", "10.0.0.1")}}
	}
	if g.one(5) {
		r.Tolerations = []scheduler.Toleration{{Key: "dedicated", Value: g.pick("", "db")}}
	}
	if g.one(10) {
		r.Platforms = []scheduler.Platform{{OS: "linux", Arch: g.pick("amd64", "arm64")}}
	}
	if g.one(12) {
		r.Drivers = []string{"volume/nfs"}
	}
	if g.one(12) {
		r.Volumes = []scheduler.Volume{{Name: "data", Accessible: []map[string]string{{"zone": "a"}}}}
	}
	if g.one(6) {
		r.Images = []string{"web:1"}
	}
	g.relations(&r)
	return r
}

func (g gen) relations(r *scheduler.Request) {
	if g.one(8) {
		r.AntiAffinity = append(r.AntiAffinity, scheduler.Affinity{
			Topology: g.pick("", "node.labels.zone", "node.labels.rack"), Service: fmt.Sprintf("svc%d", g.intn(4)), Preferred: g.one(3)})
	}
	if g.one(10) {
		r.AntiAffinity = append(r.AntiAffinity, scheduler.Affinity{
			Topology: g.pick("", "node.labels.zone"), Labels: map[string]string{"tier": g.pick("front", "back")}, Preferred: g.one(3)})
	}
	if g.one(10) {
		// Of itself or of what is bound already: circles are tested apart.
		r.Affinity = append(r.Affinity, scheduler.Affinity{
			Topology: g.pick("", "node.labels.zone"), Service: g.pick(r.Service, "svc5"), Preferred: g.one(3)})
	}
	if g.one(8) {
		r.Gang = &scheduler.Gang{Min: g.intn(r.Count + 1)}
	}
	if g.one(8) {
		r.Avoid = []string{"n0"}
	}
	if g.one(8) {
		r.Prefer = []string{"n1"}
	}
	if g.one(8) {
		r.Failures = map[string]int{"n2": 5, "n3": 2}
	}
}
