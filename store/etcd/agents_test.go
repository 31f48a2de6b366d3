//go:build unix

package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/record"
	networkmemory "github.com/orchestrate-go/orchestrate/network/memory"
	"github.com/orchestrate-go/orchestrate/node"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/etcd"
	"github.com/orchestrate-go/orchestrate/store/etcd/internal/etcdtest"
	volumememory "github.com/orchestrate-go/orchestrate/volume/memory"
)

// crowd is many agents, each with its own connection to one member of etcd, its
// own watches and its own lease, and containers in memory. A member is a process
// of its own.
type crowd struct {
	*loops
	tb     testing.TB
	fleet  *orchestrate.Fleet
	store  *etcd.Store
	agents int

	mu   sync.Mutex // guards what follows
	lags []time.Duration
}

// probed is a store whose follower of the fleet's size notes when a probe arrives.
type probed struct {
	*etcd.Store
	crowd *crowd
}

func (p probed) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	batches, err := p.Store.Watch(ctx, prefix, after)
	if err != nil || prefix != record.Fleet {
		return batches, err
	}
	out := make(chan store.Batch)
	p.crowd.wg.Go(func() {
		defer close(out)
		for b := range batches {
			p.crowd.arrived(b)
			select {
			case out <- b:
			case <-ctx.Done():
			}
		}
	})
	return out, nil
}

const probeKey = record.Fleet + "probe"

// arrived notes how long ago a probe was sent.
func (c *crowd) arrived(b store.Batch) {
	now := time.Now()
	for _, change := range b.Changes {
		if change.Item.Key != probeKey {
			continue
		}
		nanos, err := strconv.ParseInt(string(change.Item.Value), 10, 64)
		if err != nil {
			c.tb.Error(err)
			return
		}
		c.mu.Lock()
		c.lags = append(c.lags, now.Sub(time.Unix(0, nanos)))
		c.mu.Unlock()
	}
}

func newCrowd(tb testing.TB, agents int, ttl time.Duration, balance bool) *crowd {
	tb.Helper()
	cluster := etcdtest.New(tb, 1)
	c := &crowd{loops: newLoops(tb), tb: tb, agents: agents}
	c.store = c.dial(tb, cluster.Endpoints())
	for i := range agents {
		rt, network := runtimememory.New(runtimememory.Options{}), networkmemory.New(networkmemory.Options{})
		opts := node.Options{
			Node:    scheduler.Node{ID: fmt.Sprint("n", i), Capacity: scheduler.Resources{CPU: 64_000, Memory: 64 << 30}},
			Runtime: rt, Network: network, Namespaces: network,
			Volumes: new(volumememory.Driver), Dir: tb.TempDir(), LeaseTTL: ttl, Logger: etcdtest.Logger(),
		}
		if balance {
			opts.Balancer = network
		}
		agent, err := node.New(probed{c.dial(tb, cluster.Endpoints()), c}, opts)
		if err != nil {
			tb.Fatal(err)
		}
		c.closers = append(c.closers, rt)
		c.run(tb, fmt.Sprint("agent ", i), agent.Run)
	}
	var err error
	if c.fleet, err = orchestrate.New(c.store, orchestrate.WithID("only"), orchestrate.WithLogger(etcdtest.Logger())); err != nil {
		tb.Fatal(err)
	}
	c.run(tb, "fleet", c.fleet.Run)
	deadline := time.Now().Add(5 * time.Minute)
	for {
		snapshot, err := c.store.List(c.ctx, record.Alive) // which may be busy
		if err == nil && len(snapshot.Items) == agents {
			return c
		}
		if time.Now().After(deadline) {
			tb.Fatalf("%d of %d nodes are alive after five minutes (%v)", len(snapshot.Items), agents, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// probe has each agent told something every so often, until the returned function
// is called, which returns the lag of the watches: from before the write was sent
// to its arrival, the median, the 99th percentile and the worst.
func (c *crowd) probe(every time.Duration) (stop func() (p50, p99, worst time.Duration)) {
	ctx, cancel := context.WithCancel(c.ctx)
	done := make(chan struct{})
	c.mu.Lock()
	c.lags = nil
	c.mu.Unlock()
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			value := strconv.FormatInt(time.Now().UnixNano(), 10)
			if _, err := c.store.Commit(ctx, store.Txn{Writes: []store.Write{store.Put(probeKey, []byte(value))}}); err != nil && ctx.Err() == nil && !errors.Is(err, etcd.ErrUnavailable) {
				c.tb.Errorf("probe: %v", err) // else the machine is busy, and the next is soon
			}
			select {
			case <-ctx.Done():
			case <-time.After(every):
			}
		}
	}()
	return func() (p50, p99, worst time.Duration) {
		cancel()
		<-done
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.lags) < c.agents {
			c.tb.Fatalf("%d arrivals at %d agents, want each to be told", len(c.lags), c.agents)
		}
		slices.Sort(c.lags)
		at := func(q float64) time.Duration { return c.lags[int(math.Ceil(q*float64(len(c.lags))))-1] }
		return at(0.50), at(0.99), at(1)
	}
}

// lost fails the test if a node was silent since a revision.
func (c *crowd) lost(after int64) {
	c.tb.Helper()
	snapshot, err := c.store.List(c.ctx, record.Alive)
	if err != nil {
		c.tb.Fatal(err)
	}
	if n := len(snapshot.Items); n != c.agents {
		c.tb.Errorf("%d of %d nodes are alive", n, c.agents)
	}
	for _, item := range snapshot.Items {
		if item.Revision > after {
			c.tb.Errorf("%s was written anew: its lease was lost", item.Key)
		}
	}
}

// place applies a service of so many tasks on each node and returns how long it
// took until all were placed, started and acknowledged.
func (c *crowd) place(perNode int) time.Duration {
	c.tb.Helper()
	s := orchestrate.Service{
		Name: "web", Replicas: perNode * c.agents,
		Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: "img:1"}}},
		Update:   orchestrate.UpdatePolicy{Monitor: -1},
	}
	s.Ports = []orchestrate.Port{{Port: 80}}
	began := time.Now()
	if err := c.fleet.Apply(c.ctx, s); err != nil {
		c.tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Minute)
	defer cancel()
	r, err := c.fleet.Wait(ctx, s.Name)
	if err != nil || r.Outcome != orchestrate.RolloutCompleted {
		c.tb.Fatalf("%v, %v; want all tasks ready", r, err)
	}
	return time.Since(began)
}

func (c *crowd) revision() int64 {
	c.tb.Helper()
	snapshot, err := c.store.List(c.ctx, record.Alive)
	if err != nil {
		c.tb.Fatal(err)
	}
	return snapshot.Revision
}

// TestManyAgents has fifty agents hold steady on one member of etcd, at rest and
// while tasks are placed on all of them: no lease is lost, every task becomes
// ready, and each agent is told what it watches. BenchmarkAgents is the same with
// a thousand.
func TestManyAgents(t *testing.T) {
	c := newCrowd(t, 50, 30*time.Second, true) // on a machine that is busy with other tests
	settled := c.revision()
	stop := c.probe(100 * time.Millisecond)
	took := c.place(10)
	p50, p99, worst := stop()
	t.Logf("500 tasks placed, ready and acknowledged in %v; watches lag %v at the median, %v at the 99th percentile, %v at worst",
		took, p50, p99, worst)
	c.lost(settled)
}

// BenchmarkAgents has a thousand agents, or as many as ORCHESTRATE_AGENTS says, in
// one process with the leader, and one member of etcd in another: at rest, and
// while ten tasks are placed on each. With a balancer each of them follows the
// endpoints of all others too.
func BenchmarkAgents(b *testing.B) {
	agents := 1000
	if text := os.Getenv("ORCHESTRATE_AGENTS"); text != "" {
		var err error
		if agents, err = strconv.Atoi(text); err != nil {
			b.Fatal(err)
		}
	}
	for _, balance := range []bool{false, true} {
		b.Run(fmt.Sprintf("balance=%v", balance), func(b *testing.B) {
			c := newCrowd(b, agents, 0, balance)
			time.Sleep(15 * time.Second) // until all have come to rest
			c.measure(b, "rest", func(b *testing.B) {
				for range b.N {
					time.Sleep(30 * time.Second)
				}
			})
			c.measure(b, "place", func(b *testing.B) {
				var took time.Duration
				for range b.N {
					took += c.place(10)
				}
				b.ReportMetric(float64(b.N*10*agents)/took.Seconds(), "tasks/s")
			})
		})
	}
}

// measure does something with probes under way.
func (c *crowd) measure(b *testing.B, name string, do func(b *testing.B)) {
	b.Run(name, func(b *testing.B) {
		settled := c.revision()
		stop := c.probe(500 * time.Millisecond)
		do(b)
		p50, p99, worst := stop()
		b.ReportMetric(float64(p50)/1e6, "p50-ms")
		b.ReportMetric(float64(p99)/1e6, "p99-ms")
		b.ReportMetric(float64(worst)/1e6, "worst-ms")
		b.ReportMetric(0, "ns/op")
		c.lost(settled)
	})
}
