package main

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"time"

	"github.com/orchestrate-go/orchestrate/scheduler"
)

var ours = contender{name: "orchestrate", run: runOurs}

func runOurs(l load) (sample, error) {
	nodes, reqs := ourNodes(l), ourRequests(l)
	s, err := scheduler.New(scheduler.Options{})
	if err != nil {
		return sample{}, err
	}
	start := time.Now()
	c, err := ourCluster(nodes)
	if err != nil {
		return sample{}, err
	}
	build := time.Since(start)
	built := live()

	var ds []scheduler.Decision
	m := timed(func() { ds, err = s.Place(c, reqs) })
	if err != nil {
		return sample{}, err
	}
	m.strict = build + m.whole
	places, err := ourPlaces(l, ds)
	if err != nil {
		return sample{}, err
	}
	err = errors.Join(l.check(places), l.checkSpread(places))
	ds, places = nil, nil
	m.kept = live() - built
	runtime.KeepAlive(c)
	runtime.KeepAlive(nodes)
	runtime.KeepAlive(reqs)
	return m, err
}

func nodeName(i int) string { return fmt.Sprintf("node-%06d", i) }

func ourNodes(l load) []scheduler.Node {
	nodes := make([]scheduler.Node, l.nodes)
	for i := range nodes {
		n := scheduler.Node{ID: nodeName(i), Hostname: "name" + strconv.Itoa(i), Ready: true}
		switch l.kind {
		case identical, constrained:
			if hasDriver(i) {
				n.Drivers = []string{"network/" + driver}
			}
		case mixed:
			n.Labels = map[string]string{"zone": zone(i), "disk": disk(i)}
			fallthrough
		case sized:
			n.Capacity = scheduler.Resources{CPU: nodeMilliCPU, Memory: nodeMemory}
		}
		nodes[i] = n
	}
	return nodes
}

func ourCluster(nodes []scheduler.Node) (*scheduler.Cluster, error) {
	c := scheduler.NewCluster()
	for i := range nodes {
		if err := c.SetNode(nodes[i]); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func ourRequests(l load) []scheduler.Request {
	reqs := make([]scheduler.Request, l.services())
	for i := range reqs {
		cpu, memory := l.size(i)
		r := scheduler.Request{
			Service:   fmt.Sprint("service-", i),
			Count:     l.replicas(i),
			Resources: scheduler.Resources{CPU: cpu, Memory: memory},
		}
		switch {
		case l.kind == constrained:
			r.Drivers = []string{"network/" + driver}
		case l.kind == mixed:
			r.Spread = []scheduler.SpreadKey{{Key: "node.labels.zone"}}
			if wantsSSD(i) {
				r.Constraints = []scheduler.Constraint{scheduler.MustConstraint("node.labels.disk == ssd")}
			}
		}
		reqs[i] = r
	}
	return reqs
}

func ourPlaces(l load, ds []scheduler.Decision) ([]placement, error) {
	places := make([]placement, 0, l.tasks)
	for i := range ds {
		if err := ds[i].Err(); err != nil {
			return nil, err
		}
		for _, id := range ds[i].Nodes {
			j, err := nodeIndex(id)
			if err != nil {
				return nil, err
			}
			places = append(places, placement{i, j})
		}
	}
	return places, nil
}

func nodeIndex(id string) (int, error) {
	if len(id) < len("node-") {
		return 0, fmt.Errorf("%q is no node", id)
	}
	return strconv.Atoi(id[len("node-"):])
}
