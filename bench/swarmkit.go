package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"time"

	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/log"
	swarm "github.com/moby/swarmkit/v2/manager/scheduler"
	"github.com/moby/swarmkit/v2/manager/state"
	"github.com/moby/swarmkit/v2/manager/state/store"
	"github.com/sirupsen/logrus"
)

// SwarmKit runs twice. It decides tasks of one service and spec version as a
// group, and others one at a time. Its own benchmarks have no spec version, so
// they measure the second; a Swarm of services uses the first.
var (
	swarmGrouped = contender{
		name: "SwarmKit, by service",
		run:  func(l load) (sample, error) { return runSwarm(l, true) },
	}
	swarmSingle = contender{
		name: "SwarmKit, as its benchmarks",
		run:  func(l load) (sample, error) { return runSwarm(l, false) },
		// Tasks without a service are not spread, so they cannot be mixed.
		cannot: func(l load) bool { return l.kind == mixed },
	}
)

func runSwarm(l load, grouped bool) (sample, error) {
	s := store.NewMemoryStore(nil)
	defer s.Close()
	if err := swarmFill(s, l, grouped); err != nil {
		return sample{}, err
	}
	before := live()
	sched := swarm.New(s)
	m, err := swarmPass(s, sched)
	if err != nil {
		return sample{}, err
	}
	places, err := swarmPlaces(s, l)
	if err != nil {
		return sample{}, err
	}
	err = errors.Join(l.check(places), l.checkSpread(places))
	places = nil
	m.kept = live() - before
	runtime.KeepAlive(sched)
	return m, err
}

// swarmPass times one pass of SwarmKit's loop over a filled store: it reads the
// store, decides, and commits in its batches of 200. The loop has been told to
// stop before it begins, so it returns after that pass. Against its own
// benchmark, which creates the tasks under a running loop, this spares it an
// event for each task and the 50 ms for which it waits for more.
func swarmPass(s *store.MemoryStore, sched *swarm.Scheduler) (sample, error) {
	ctx := log.WithLogger(context.Background(), quiet())
	commits, cancel := state.Watch(s.WatchQueue(), state.EventCommit{})
	done := make(chan struct{})
	first := make(chan time.Time, 1)
	go func() {
		defer close(first)
		defer cancel() // one is enough: the rest of the pass has no watcher of ours
		select {
		case <-commits:
			first <- time.Now()
		case <-done:
		}
	}()
	var err error
	var start time.Time
	m := timed(func() {
		start = time.Now()
		go sched.Stop()
		err = sched.Run(ctx)
	})
	close(done)
	m.strict = m.whole
	if at, ok := <-first; ok {
		m.strict = at.Sub(start)
	}
	return m, err
}

// quiet is a logger that drops everything at the lowest cost there is.
func quiet() *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.PanicLevel)
	return logrus.NewEntry(l)
}

func swarmFill(s *store.MemoryStore, l load, grouped bool) error {
	return s.Update(func(tx store.Tx) error {
		for i := range l.nodes {
			if err := store.CreateNode(tx, swarmNode(l, i)); err != nil {
				return err
			}
		}
		for i := range l.services() {
			for k := range l.replicas(i) {
				id := fmt.Sprintf("task-%d.%d", i, k)
				if err := store.CreateTask(tx, swarmTask(l, i, id, grouped)); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func swarmNode(l load, i int) *api.Node {
	n := &api.Node{
		ID: nodeName(i),
		Spec: api.NodeSpec{Annotations: api.Annotations{
			Name: "name" + strconv.Itoa(i), Labels: map[string]string{},
		}},
		Status:      api.NodeStatus{State: api.NodeStatus_READY},
		Description: &api.NodeDescription{Engine: &api.EngineDescription{}},
	}
	switch l.kind {
	case identical, constrained:
		if hasDriver(i) {
			n.Description.Engine.Plugins = []api.PluginDescription{{Name: driver, Type: "Network"}}
		}
	case mixed:
		n.Spec.Annotations.Labels["zone"] = zone(i)
		n.Spec.Annotations.Labels["disk"] = disk(i)
		fallthrough
	case sized:
		n.Description.Resources = &api.Resources{NanoCPUs: nodeMilliCPU * 1e6, MemoryBytes: nodeMemory}
	}
	return n
}

func swarmTask(l load, i int, id string, grouped bool) *api.Task {
	t := &api.Task{
		ID:                 id,
		DesiredState:       api.TaskStateRunning,
		ServiceAnnotations: api.Annotations{Name: id},
		Status:             api.TaskStatus{State: api.TaskStatePending},
	}
	if grouped {
		t.ServiceID = "service-" + strconv.Itoa(i)
		t.ServiceAnnotations.Name = t.ServiceID
		t.SpecVersion = &api.Version{Index: 1}
	}
	if cpu, memory := l.size(i); cpu > 0 {
		t.Spec.Resources = &api.ResourceRequirements{
			Reservations: &api.Resources{NanoCPUs: cpu * 1e6, MemoryBytes: memory},
		}
	}
	switch l.kind {
	case constrained:
		t.Networks = []*api.NetworkAttachment{{
			Network: &api.Network{DriverState: &api.Driver{Name: driver}},
		}}
	case mixed:
		t.Spec.Placement = &api.Placement{Preferences: []*api.PlacementPreference{{
			Preference: &api.PlacementPreference_Spread{Spread: &api.SpreadOver{SpreadDescriptor: "node.labels.zone"}},
		}}}
		if wantsSSD(i) {
			t.Spec.Placement.Constraints = []string{"node.labels.disk==ssd"}
		}
	}
	return t
}

func swarmPlaces(s *store.MemoryStore, l load) ([]placement, error) {
	var tasks []*api.Task
	var err error
	s.View(func(tx store.ReadTx) { tasks, err = store.FindTasks(tx, store.All) })
	if err != nil {
		return nil, err
	}
	places := make([]placement, 0, len(tasks))
	for _, t := range tasks {
		if t.NodeID == "" || t.Status.State == api.TaskStateRunning {
			continue // not placed, which load.check counts, or there before
		}
		var i, k int
		if _, err := fmt.Sscanf(t.ID, "task-%d.%d", &i, &k); err != nil {
			return nil, err
		}
		j, err := nodeIndex(t.NodeID)
		if err != nil {
			return nil, err
		}
		places = append(places, placement{i, j})
	}
	return places, nil
}
