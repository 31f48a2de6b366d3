package main

import (
	"runtime"

	"github.com/orchestrate-go/orchestrate/scheduler"
)

// footprint is what a loaded cluster of ours keeps alive.
type footprint struct{ perNode, perTask float64 }

// ourFootprint measures it from outside: the nodes with one replica of every
// service placed, so that what is kept by node to place these shapes fast is
// counted as the nodes', and then all other replicas, as the tasks'.
func ourFootprint(l load) (footprint, error) {
	s, err := scheduler.New(scheduler.Options{})
	if err != nil {
		return footprint{}, err
	}
	nodes, reqs := ourNodes(l), ourRequests(l)
	empty := live()
	c, err := ourCluster(nodes)
	if err != nil {
		return footprint{}, err
	}
	for i := range reqs {
		reqs[i].Count = 1
	}
	if err := place(s, c, reqs); err != nil {
		return footprint{}, err
	}
	started := live()
	for i := range reqs {
		reqs[i].Count = l.replicas(i) - 1
	}
	if err := place(s, c, reqs); err != nil {
		return footprint{}, err
	}
	loaded := live()
	runtime.KeepAlive(c)
	runtime.KeepAlive(nodes)
	runtime.KeepAlive(reqs)
	return footprint{
		perNode: float64(started-empty) / float64(l.nodes),
		perTask: float64(loaded-started) / float64(l.tasks-len(reqs)),
	}, nil
}

func place(s *scheduler.Scheduler, c *scheduler.Cluster, reqs []scheduler.Request) error {
	ds, err := s.Place(c, reqs)
	if err != nil {
		return err
	}
	for i := range ds {
		if err := ds[i].Err(); err != nil {
			return err
		}
	}
	return nil
}
