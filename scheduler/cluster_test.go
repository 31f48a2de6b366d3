package scheduler_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/orchestrate-go/orchestrate/scheduler"
)

func newCluster(t testing.TB, nodes ...node) *scheduler.Cluster {
	t.Helper()
	c := scheduler.NewCluster()
	for _, x := range nodes {
		if err := c.SetNode(x); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func newScheduler(t testing.TB, o scheduler.Options) *scheduler.Scheduler {
	t.Helper()
	s, err := scheduler.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestClusterRefusesNonsense(t *testing.T) {
	c := newCluster(t, n("a"))
	if err := c.Bind("t", "a", &req{Service: "web"}); err != nil {
		t.Fatal(err)
	}
	before := describe(c)
	huge := req{Service: "huge", Resources: res{Memory: scheduler.MaxAmount}}
	for name, x := range map[string]struct {
		err  error
		want error
	}{
		"node without id":     {c.SetNode(node{}), scheduler.ErrInvalid},
		"negative capacity":   {c.SetNode(node{ID: "x", Capacity: res{CPU: -1}}), scheduler.ErrInvalid},
		"overflow":            {c.SetNode(node{ID: "x", Capacity: res{Memory: math.MaxInt64}}), scheduler.ErrInvalid},
		"NaN overcommit":      {c.SetNode(node{ID: "x", Overcommit: scheduler.Overcommit{CPU: math.NaN()}}), scheduler.ErrInvalid},
		"negative overcommit": {c.SetNode(node{ID: "x", Overcommit: scheduler.Overcommit{Disk: -1}}), scheduler.ErrInvalid},
		"infinite overcommit": {c.SetNode(node{ID: "x", Overcommit: scheduler.Overcommit{Memory: math.Inf(1)}}), scheduler.ErrInvalid},
		"taint without key":   {c.SetNode(node{ID: "x", Taints: []scheduler.Taint{{}}}), scheduler.ErrInvalid},
		"device twice":        {c.SetNode(node{ID: "x", Capacity: res{Devices: []scheduler.Device{{Kind: "gpu", Count: 1}, {Kind: "gpu", Count: 2}}}}), scheduler.ErrInvalid},
		"bind to nowhere":     {c.Bind("u", "x", &req{Service: "web"}), scheduler.ErrNodeUnknown},
		"bind twice":          {c.Bind("t", "a", &req{Service: "web"}), scheduler.ErrTaskExists},
		"bind without id":     {c.Bind("", "a", &req{Service: "web"}), scheduler.ErrInvalid},
		"bind nonsense":       {c.Bind("u", "a", &req{Service: "web", Resources: res{CPU: -5}}), scheduler.ErrInvalid},
		"release the unknown": {c.Release("u"), scheduler.ErrTaskUnknown},
	} {
		if !errors.Is(x.err, x.want) {
			t.Errorf("%s: got %v, want %v", name, x.err, x.want)
		}
	}
	if _, err := c.RemoveNode("x"); !errors.Is(err, scheduler.ErrNodeUnknown) {
		t.Errorf("remove the unknown: got %v", err)
	}
	if got := describe(c); got != before {
		t.Errorf("refused input changed the cluster from\n%s to\n%s", before, got)
	}
	// Facts may be more than a node has, but not more than can be counted.
	var err error
	for i := 0; err == nil && i < 2000; i++ {
		err = c.Bind(fmt.Sprint("huge-", i), "a", &huge)
	}
	if !errors.Is(err, scheduler.ErrInvalid) {
		t.Errorf("binding petabytes without end: got %v, want ErrInvalid", err)
	}
	if err := c.Verify(); err != nil {
		t.Error(err)
	}
}

func TestOptionsRefuseNonsense(t *testing.T) {
	scorer := scheduler.LeastLoaded{}
	for name, o := range map[string]scheduler.Options{
		"unknown default":     {Default: "x"},
		"no name":             {Strategies: []scheduler.Strategy{{}}},
		"name twice":          {Strategies: []scheduler.Strategy{{Name: "x"}, {Name: "x"}}},
		"NaN weight":          {Strategies: []scheduler.Strategy{{Name: "x", Scorers: []scheduler.Weighted{{Scorer: scorer, Weight: math.NaN()}}}}},
		"negative weight":     {Strategies: []scheduler.Strategy{{Name: "x", Scorers: []scheduler.Weighted{{Scorer: scorer, Weight: -1}}}}},
		"infinite weight":     {Strategies: []scheduler.Strategy{{Name: "x", Scorers: []scheduler.Weighted{{Scorer: scorer, Weight: math.Inf(1)}}}}},
		"no scorer":           {Strategies: []scheduler.Strategy{{Name: "x", Scorers: []scheduler.Weighted{{Weight: 1}}}}},
		"no filter":           {Strategies: []scheduler.Strategy{{Name: "x", Filters: []scheduler.Filter{nil}}}},
		"negative limit":      {FailureLimit: -1},
		"thousands of filter": {Strategies: []scheduler.Strategy{{Name: "x", Filters: make([]scheduler.Filter, 1000)}}},
	} {
		if _, err := scheduler.New(o); !errors.Is(err, scheduler.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
}

func TestPlaceErrorsSayWhere(t *testing.T) {
	c, s := newCluster(t, n("a")), newScheduler(t, scheduler.Options{})
	if err := c.Bind("taken", "a", &req{Service: "x"}); err != nil {
		t.Fatal(err)
	}
	var wrong *scheduler.RequestError
	_, err := s.Place(c, []req{{Service: "good", Count: 1}, {Namespace: "ns", Service: "bad", Count: 1, Tasks: []string{"taken"}}})
	if !errors.As(err, &wrong) || wrong.Index != 1 || wrong.Request != "ns/bad" || !errors.Is(err, scheduler.ErrTaskExists) {
		t.Errorf("id that is taken: got %v", err)
	}
	_, err = s.Place(c, []req{{Service: "a", Count: 1, Tasks: []string{"t"}}, {Service: "b", Count: 1, Tasks: []string{"t"}}})
	if !errors.Is(err, scheduler.ErrTaskExists) {
		t.Errorf("id given twice: got %v", err)
	}
	var unknown *scheduler.StrategyError
	_, err = s.Place(c, []req{{Service: "a", Count: 1, Strategy: "tetris"}})
	if !errors.As(err, &unknown) || !errors.Is(err, scheduler.ErrStrategyUnknown) || !slices.Equal(unknown.Known, []string{"binpack", "random", "spread"}) {
		t.Errorf("unknown strategy: got %v", err)
	}
	near := func(who string) []scheduler.Affinity { return []scheduler.Affinity{{Service: who}} }
	var circle *scheduler.CycleError
	_, err = s.Place(c, []req{{Service: "a", Count: 1, Affinity: near("b")}, {Service: "b", Count: 1, Affinity: near("c")}, {Service: "c", Count: 1, Affinity: near("a")}})
	if !errors.As(err, &circle) || !slices.Equal(circle.Services, []string{"a", "b", "c"}) {
		t.Errorf("circle: got %v", err)
	}
	// Once one of them runs there is no circle.
	if err := c.Bind("c.0", "a", &req{Service: "c"}); err != nil {
		t.Fatal(err)
	}
	ds, err := s.Place(c, []req{{Service: "a", Count: 1, Affinity: near("b")}, {Service: "b", Count: 1, Affinity: near("c")}, {Service: "c", Count: 1, Affinity: near("a")}})
	if err != nil || ds[0].Unplaced+ds[1].Unplaced+ds[2].Unplaced > 0 {
		t.Errorf("open circle: got %v, %v", ds, err)
	}
}

func TestTaskIDs(t *testing.T) {
	c, s := newCluster(t, n("a")), newScheduler(t, scheduler.Options{})
	if err := c.Bind("ns/web.2", "a", &req{Service: "other"}); err != nil {
		t.Fatal(err)
	}
	ds, err := s.Place(c, []req{
		{Namespace: "ns", Service: "web", Count: 2},
		{Service: "given", Count: 2, Tasks: []string{"ns/web.3", "x"}},
		{Namespace: "ns", Service: "web", Count: 1, Labels: map[string]string{"rev": "2"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, d := range ds {
		ids = append(ids, d.Tasks...)
	}
	slices.Sort(ids)
	if want := []string{"ns/web.1", "ns/web.3", "ns/web.4", "ns/web.5", "x"}; !slices.Equal(ids, want) {
		t.Errorf("ids %v, want %v: numbers in use or given to others are left out", ids, want)
	}
}

// A copy is played with in one goroutine while another goes on with the original;
// the race detector sees what they share.
func TestClonesAreUsedAtOnce(t *testing.T) {
	c, s := newCluster(t, n("a"), n("b")), newScheduler(t, scheduler.Options{})
	if _, err := s.Place(c, []req{{Service: "web", Count: 4}}); err != nil {
		t.Fatal(err)
	}
	d := c.Clone()
	var copies sync.WaitGroup
	copies.Go(func() {
		e := d.Clone()
		for _, x := range []*scheduler.Cluster{d, e} {
			if err := x.Release("web.1"); err != nil {
				t.Error(err)
			}
		}
	})
	if err := c.Release("web.2"); err != nil {
		t.Error(err)
	}
	copies.Wait()
	if a, b := describe(c), describe(d); a == b {
		t.Errorf("both are\n%s\nthough each released another task", a)
	}
}

func TestCloneIsApart(t *testing.T) {
	c, s := newCluster(t, n("a"), n("b")), newScheduler(t, scheduler.Options{})
	web := req{Service: "web", Count: 2, Resources: res{CPU: 500}, Ports: []scheduler.HostPort{{Port: 80}}}
	if _, err := s.Place(c, []req{web}); err != nil {
		t.Fatal(err)
	}
	d := c.Clone()
	want := describe(d)
	if err := c.Release("web.1"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RemoveNode("b"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Place(c, []req{{Service: "web", Count: 1}, {Service: "new", Count: 5}}); err != nil {
		t.Fatal(err)
	}
	if got := describe(d); got != want {
		t.Errorf("the clone changed from\n%s to\n%s", want, got)
	}
	want = describe(c)
	if err := d.SetNode(n("c")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Place(d, []req{{Service: "web", Count: 1}}); err != nil {
		t.Fatal(err)
	}
	if got := describe(c); got != want {
		t.Errorf("the original changed from\n%s to\n%s", want, got)
	}
	for _, x := range []*scheduler.Cluster{c, d} {
		if err := x.Verify(); err != nil {
			t.Error(err)
		}
	}
}

func TestRemoveNodeReleasesItsTasks(t *testing.T) {
	c := newCluster(t, n("a"), n("b"))
	for i, on := range []string{"b", "a", "b"} {
		if err := c.Bind(fmt.Sprint("t", i), on, &req{Service: "web"}); err != nil {
			t.Fatal(err)
		}
	}
	gone, err := c.RemoveNode("b")
	if err != nil || !slices.Equal(gone, []string{"t0", "t2"}) {
		t.Errorf("got %v, %v, want t0 and t2", gone, err)
	}
	if nodes, tasks := c.Len(); nodes != 1 || tasks != 1 {
		t.Errorf("%d nodes and %d tasks left, want 1 and 1", nodes, tasks)
	}
	if err := c.Verify(); err != nil {
		t.Error(err)
	}
}

// TestManyShapes: a program whose requests are all different does not fill the
// memory with what was.
func TestManyShapes(t *testing.T) {
	c, s := newCluster(t, n("a"), n("b")), newScheduler(t, scheduler.Options{})
	for i := range 20_000 {
		ds, err := s.Place(c, []req{{Service: fmt.Sprint("svc", i), Count: 1, Resources: res{CPU: int64(i % 50)}, Spread: spread("zone")}})
		if err != nil || ds[0].Unplaced > 0 {
			t.Fatal(err, ds[0].String())
		}
		if err := c.Release(ds[0].Tasks[0]); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.Shapes(); got > 10_000 {
		t.Errorf("%d shapes and services remembered, want no more than a few thousand", got)
	}
	if err := c.Verify(); err != nil {
		t.Error(err)
	}
	if err := c.VerifyIndexes(); err != nil {
		t.Error(err)
	}
}

// TestAllocations: a replica more costs no allocation, only a group does.
func TestAllocations(t *testing.T) {
	s := newScheduler(t, scheduler.Options{})
	var nodes []node
	for i := range 100 {
		nodes = append(nodes, n(fmt.Sprintf("n%02d", i), "zone", fmt.Sprint(i%3)))
	}
	c := newCluster(t, nodes...)
	r := []req{{Service: "web", Resources: res{CPU: 1}, Spread: spread("zone")}}
	round := func(count int) float64 {
		r[0].Count = count
		return testing.AllocsPerRun(20, func() {
			ds, err := s.Place(c, r)
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range ds[0].Tasks {
				if err := c.Release(id); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	round(5000)
	few, many := round(10), round(5000)
	t.Logf("%.0f allocations for 10 replicas, %.0f for 5000", few, many)
	if many-few > 100 {
		t.Errorf("%.0f allocations for 10 replicas and %.0f for 5000, want about as many", few, many)
	}
}

func TestDecisionJSON(t *testing.T) {
	c, s := newCluster(t, n("a"), n("b")), newScheduler(t, scheduler.Options{Preempt: true})
	if err := c.Bind("low", "a", &req{Service: "low", Resources: res{CPU: 4000}}); err != nil {
		t.Fatal(err)
	}
	ds, err := s.Place(c, []req{{Service: "web", Count: 9, Priority: 1, Resources: res{CPU: 1500, Memory: gib}, Constraints: where("node.id in (a, b, c)")}})
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(ds)
	if err != nil {
		t.Fatal(err)
	}
	var again []scheduler.Decision
	if err := json.Unmarshal(data, &again); err != nil || !reflect.DeepEqual(ds, again) {
		t.Errorf("%s reads back as %+v, %v", data, again, err)
	}
	var left *scheduler.UnplacedError
	if err := ds[0].Err(); !errors.As(err, &left) || !errors.Is(err, scheduler.ErrUnplaced) || left.Decision.Unplaced != 5 {
		t.Errorf("got %v, want 5 unplaced", err)
	}
}

// TestRandomIsEven: every node gets about its share (chi-squared, 9 degrees of
// freedom, far beyond any usual bound; the seed is fixed).
func TestRandomIsEven(t *testing.T) {
	var nodes []node
	for i := range 10 {
		nodes = append(nodes, n(fmt.Sprint("n", i)))
	}
	c, s := newCluster(t, nodes...), newScheduler(t, scheduler.Options{Seed: 42})
	ds, err := s.Place(c, []req{{Service: "web", Count: 10_000, Strategy: scheduler.Random}})
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for _, id := range ds[0].Nodes {
		counts[id]++
	}
	chi := 0.0
	for _, x := range nodes {
		chi += math.Pow(float64(counts[x.ID]-1000), 2) / 1000
	}
	if chi > 40 {
		t.Errorf("counts %v: chi-squared %.1f, want at most 40", counts, chi)
	}
	other := newScheduler(t, scheduler.Options{Seed: 43})
	es, err := other.Place(newCluster(t, nodes...), []req{{Service: "web", Count: 10_000, Strategy: scheduler.Random}})
	if err != nil || slices.Equal(ds[0].Nodes, es[0].Nodes) {
		t.Errorf("another seed gives the same places (%v)", err)
	}
}
