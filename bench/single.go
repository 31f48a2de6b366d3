package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/moby/swarmkit/v2/api"
	swarm "github.com/moby/swarmkit/v2/manager/scheduler"
	"github.com/moby/swarmkit/v2/manager/state/store"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// full is a cluster in which every node but ten has ten tasks and is then full:
// 6.4 of 64 cores and 25 of 256 GiB each.
func full(nodes int) (*scheduler.Scheduler, *scheduler.Cluster, error) {
	s, err := scheduler.New(scheduler.Options{})
	if err != nil {
		return nil, nil, err
	}
	c, err := ourCluster(ourNodes(load{sized, nodes, 0}))
	if err != nil {
		return nil, nil, err
	}
	r := fullRequest("fill")
	r.Count = nodes*10 - 10
	ds, err := s.Place(c, []scheduler.Request{r})
	if err != nil {
		return nil, nil, err
	}
	return s, c, ds[0].Err()
}

func fullRequest(service string) scheduler.Request {
	return scheduler.Request{Service: service, Count: 1, Resources: scheduler.Resources{CPU: 6400, Memory: 25 << 30}}
}

// oneIntoFull measures one Place of one task, and its Release, in a full
// cluster: of the service that fills it, of twenty services in turn, and of one
// too big for any node, which is also explained.
var oneIntoFull = []struct {
	name string
	reqs func() [][]scheduler.Request
	fits int
}{
	{"of a known shape", func() [][]scheduler.Request { return [][]scheduler.Request{{fullRequest("fill")}} }, 1},
	{"of 20 shapes in turn", func() [][]scheduler.Request {
		var all [][]scheduler.Request
		for i := range 20 {
			r := fullRequest(fmt.Sprint("turn-", i))
			r.Resources.CPU -= int64(100 * (i % 10))
			all = append(all, []scheduler.Request{r})
		}
		return all
	}, 1},
	{"that fits nowhere, with the reasons", func() [][]scheduler.Request {
		r := fullRequest("big")
		r.Resources.CPU = 9600
		return [][]scheduler.Request{{r}}
	}, 0},
}

const cpuPerOp = "cpu-ns/op"

func benchOne(b *testing.B, s *scheduler.Scheduler, c *scheduler.Cluster, reqs [][]scheduler.Request, fits int) {
	b.ReportAllocs()
	cpu := cpuTime()
	defer func() { b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N), cpuPerOp) }()
	for i := 0; b.Loop(); i++ {
		ds, err := s.Place(c, reqs[i%len(reqs)])
		if err != nil {
			b.Fatal(err)
		}
		if ds[0].Placed() != fits {
			b.Fatalf("placed %d, want %d:\n%s", ds[0].Placed(), fits, &ds[0])
		}
		for _, id := range ds[0].Tasks {
			if err := c.Release(id); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// benchOneSpread places one replica of a service that is spread over zones, and
// releases it, in a cluster of that many nodes: a point of the curve.
func benchOneSpread(b *testing.B, nodes int) {
	l := load{mixed, nodes, 1}
	c, err := ourCluster(ourNodes(l))
	if err != nil {
		b.Fatal(err)
	}
	s, err := scheduler.New(scheduler.Options{})
	if err != nil {
		b.Fatal(err)
	}
	benchOne(b, s, c, [][]scheduler.Request{ourRequests(l)}, 1)
}

// swarmOne is SwarmKit's cost of one more task that is alone in its service: the
// time of a pass with count of them less the time of a pass with none, which is
// that of reading its store; each the median of three. perNode tasks run on
// every node before.
func swarmOne(nodes, perNode, count int) (time.Duration, error) {
	var with, without []sample
	for range 3 {
		for _, n := range []int{0, count} {
			m, err := swarmPassOn(load{sized, nodes, n}, perNode)
			if err != nil {
				return 0, err
			}
			if n == 0 {
				without = append(without, m)
			} else {
				with = append(with, m)
			}
		}
	}
	return (middle(with).whole - middle(without).whole) / time.Duration(count), nil
}

func swarmPassOn(l load, perNode int) (sample, error) {
	s := store.NewMemoryStore(nil)
	defer s.Close()
	if err := swarmFill(s, l, false); err != nil {
		return sample{}, err
	}
	if err := swarmRunning(s, l, perNode); err != nil {
		return sample{}, err
	}
	sched := swarm.New(s)
	m, err := swarmPass(s, sched)
	if err != nil {
		return sample{}, err
	}
	places, err := swarmPlaces(s, l)
	if err != nil {
		return sample{}, err
	}
	return m, l.check(places)
}

// swarmRunning adds perNode running tasks to every node.
func swarmRunning(s *store.MemoryStore, l load, perNode int) error {
	return s.Update(func(tx store.Tx) error {
		for j := range l.nodes {
			for k := range perNode {
				t := swarmTask(l, 0, fmt.Sprintf("running-%d.%d", j, k), true)
				t.NodeID = nodeName(j)
				t.Status.State = api.TaskStateRunning
				if err := store.CreateTask(tx, t); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
