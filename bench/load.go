package main

import "fmt"

// kind is what a cluster and the load on it look like. Every contender builds
// the same from this in its own types.
type kind int

const (
	// identical is what SwarmKit's own benchmarks place: nodes without labels
	// or resources, tasks that ask for nothing.
	identical kind = iota
	// constrained is SwarmKit's own benchmark with constraints: every third
	// node has a network driver, and every task needs it.
	constrained
	// sized is identical with resources: 100 millicores and 64 MiB a task on
	// nodes of 64 cores and 256 GiB.
	sized
	// mixed is services of 70 sizes on nodes with resources, every other one
	// constrained to half of the nodes, all spread over three zones.
	mixed
)

func (k kind) String() string {
	return [...]string{"identical", "constrained", "identical, with resources", "mixed, constrained, spread"}[k]
}

// load is a kind in a size.
type load struct {
	kind         kind
	nodes, tasks int
}

func (l load) String() string {
	return fmt.Sprintf("%s, %s × %s", l.kind, short(l.nodes), short(l.tasks))
}

// services is the number of distinct services.
func (l load) services() int {
	if l.kind == mixed {
		return min(1000, l.tasks)
	}
	return 1
}

// replicas is how many tasks service i has.
func (l load) replicas(i int) int {
	n := l.tasks / l.services()
	if i < l.tasks%l.services() {
		n++
	}
	return n
}

const driver = "network"

// hasDriver, zone and disk are what node i has.
func hasDriver(i int) bool { return i%3 == 0 }
func zone(i int) string    { return fmt.Sprint("z", i%3) }
func disk(i int) string    { return [...]string{"ssd", "hdd"}[i/3%2] }

const (
	nodeMilliCPU = 64_000
	nodeMemory   = 256 << 30
)

// size is what a replica of service i asks for.
func (l load) size(i int) (milliCPU, memory int64) {
	switch l.kind {
	case sized:
		return 100, 64 << 20
	case mixed:
		return int64(50 + 10*(i%10)), int64(32+8*(i%7)) << 20
	}
	return 0, 0
}

// wantsSSD says whether service i of a mixed load is constrained.
func wantsSSD(i int) bool { return i%2 == 0 }

// placement is one replica's place: service i on node j.
type placement struct{ service, node int }

// check says which rule a finished load breaks, if any: every task placed, none
// where it may not be, no node overcommitted.
func (l load) check(places []placement) error {
	if len(places) != l.tasks {
		return fmt.Errorf("%s: %d tasks placed, want %d", l, len(places), l.tasks)
	}
	cpu, mem := make([]int64, l.nodes), make([]int64, l.nodes)
	for _, p := range places {
		c, m := l.size(p.service)
		cpu[p.node] += c
		mem[p.node] += m
		switch {
		case l.kind == constrained && !hasDriver(p.node):
			return fmt.Errorf("%s: a task is on node %d, which has no %s driver", l, p.node, driver)
		case l.kind == mixed && wantsSSD(p.service) && disk(p.node) != "ssd":
			return fmt.Errorf("%s: service %d wants an ssd and node %d has none", l, p.service, p.node)
		case cpu[p.node] > nodeMilliCPU || mem[p.node] > nodeMemory:
			return fmt.Errorf("%s: node %d is overcommitted", l, p.node)
		}
	}
	return nil
}

// checkSpread says where a finished load is less even than it could be: a
// service over zones, or the only service over the nodes that may take it.
func (l load) checkSpread(places []placement) error {
	perNode, zones := make([]int, l.nodes), make([][3]int, l.services())
	for _, p := range places {
		perNode[p.node]++
		zones[p.service][p.node%3]++
	}
	if l.kind == mixed {
		for i, z := range zones {
			if d := max(z[0], z[1], z[2]) - min(z[0], z[1], z[2]); d > 1 {
				return fmt.Errorf("%s: service %d has %v replicas by zone, want a difference of at most 1", l, i, z)
			}
		}
		return nil
	}
	least, most := l.tasks, 0
	for j, n := range perNode {
		if l.kind != constrained || hasDriver(j) {
			least, most = min(least, n), max(most, n)
		}
	}
	if most-least > 1 {
		return fmt.Errorf("%s: nodes have from %d to %d tasks, want a difference of at most 1", l, least, most)
	}
	return nil
}

// short writes a round number as people do: 1k, 100k, 1M.
func short(n int) string {
	switch {
	case n >= 1e6 && n%1e6 == 0:
		return fmt.Sprint(n/1e6, "M")
	case n >= 1e3 && n%1e3 == 0:
		return fmt.Sprint(n/1e3, "k")
	}
	return fmt.Sprint(n)
}
