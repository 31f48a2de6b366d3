package schedulertest

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/orchestrate-go/orchestrate/scheduler"
)

// Placer is what the suite checks; *scheduler.Scheduler is one.
type Placer interface {
	Place(c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error)
}

// Harness says what to check.
type Harness struct {
	// New makes the Placer, each time anew.
	New func(seed uint64) (Placer, error)
	// Strategy is written into every request.
	Strategy string
	// Declines allows replicas to be left over although a node has room, as
	// a strategy with filters of its own does. Monotonicity is not asked for
	// then either.
	Declines bool
	// Cases is how many random scenarios each property sees; 0 is 300.
	Cases int
	// Seed is where the random scenarios start.
	Seed uint64
}

// property is one promise, asked of one scenario.
type property struct {
	name  string
	check func(h *Harness, s *Scenario) error
}

var properties = []property{
	{"rules", (*Harness).rules},
	{"determinism", (*Harness).determinism},
	{"conservation", (*Harness).conservation},
	{"monotonicity", (*Harness).monotonicity},
	{"agreement", (*Harness).agreement},
}

// Run checks each property in a subtest of its own.
func Run(t *testing.T, h Harness) {
	t.Helper()
	for _, p := range properties {
		t.Run(p.name, func(t *testing.T) {
			if err := h.each(p); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("refusal", func(t *testing.T) {
		if err := h.refusal(); err != nil {
			t.Error(err)
		}
	})
}

// Test checks all properties and returns what fails, joined.
func Test(h Harness) error {
	var errs []error
	for _, p := range properties {
		errs = append(errs, h.each(p))
	}
	return errors.Join(append(errs, h.refusal())...)
}

// Property asks every property of one scenario; a property tester can call it
// with scenarios of its own.
func Property(h Harness, s Scenario) error {
	for _, p := range properties {
		if err := p.check(&h, &s); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func (h *Harness) each(p property) error {
	cases := h.Cases
	if cases == 0 {
		cases = 300
	}
	for i := range cases {
		rng := rand.New(rand.NewPCG(h.Seed, uint64(i)))
		s := Generate(rng.IntN)
		if err := p.check(h, &s); err != nil {
			return fmt.Errorf("%s: case %d of seed %d: %w", p.name, i, h.Seed, err)
		}
	}
	return nil
}

func (h *Harness) requests(s *Scenario) []scheduler.Request {
	reqs := slices.Clone(s.Requests)
	for i := range reqs {
		reqs[i].Strategy = h.Strategy
	}
	return reqs
}

// place runs one Place on the cluster with a Placer made anew.
func (h *Harness) place(c *scheduler.Cluster, reqs []scheduler.Request) ([]scheduler.Decision, error) {
	p, err := h.New(1)
	if err != nil {
		return nil, err
	}
	return p.Place(c, reqs)
}

func (h *Harness) rules(s *Scenario) error {
	before, err := s.Cluster()
	if err != nil {
		return err
	}
	after, reqs := before.Clone(), h.requests(s)
	given := fmt.Sprint(reqs)
	ds, err := h.place(after, reqs)
	if err != nil {
		return err
	}
	if fmt.Sprint(reqs) != given {
		return errors.New("Place changed the requests it was given")
	}
	if err := before.Verify(); err != nil {
		return fmt.Errorf("Place on a clone changed the original: %w", err)
	}
	if err := Check(before, after, reqs, ds); err != nil {
		return err
	}
	if !h.Declines {
		k := checker{before: before, after: after, reqs: reqs, decisions: ds, state: stateOf(after)}
		k.complete()
		return errors.Join(k.errs...)
	}
	return nil
}

// same says whether two outcomes put everything in the same places.
func same(a, b []scheduler.Decision) error {
	for i := range a {
		if !slices.Equal(a[i].Nodes, b[i].Nodes) {
			return fmt.Errorf("%s: on %v, and again on %v", a[i].Service, a[i].Nodes, b[i].Nodes)
		}
		if len(a[i].Victims) != len(b[i].Victims) {
			return fmt.Errorf("%s: victims %v, and again %v", a[i].Service, a[i].Victims, b[i].Victims)
		}
	}
	return nil
}

// determinism: the order in which nodes and tasks came does not matter, and
// nothing else does.
func (h *Harness) determinism(s *Scenario) error {
	var first []scheduler.Decision
	for round := range 3 {
		t := *s
		if round > 0 {
			t.Nodes, t.Bound = slices.Clone(s.Nodes), slices.Clone(s.Bound)
			slices.Reverse(t.Nodes)
			slices.Reverse(t.Bound)
		}
		c, err := t.Cluster()
		if err != nil {
			return err
		}
		ds, err := h.place(c, h.requests(s))
		if err != nil {
			return err
		}
		if round == 0 {
			first = ds
		} else if err := same(first, ds); err != nil {
			return err
		}
	}
	return nil
}

// conservation: releasing what was placed leaves the cluster as it was.
func (h *Harness) conservation(s *Scenario) error {
	c, err := s.Cluster()
	if err != nil {
		return err
	}
	want := describe(c)
	ds, err := h.place(c, h.requests(s))
	if err != nil {
		return err
	}
	for _, d := range ds {
		if len(d.Victims) > 0 {
			return nil
		}
	}
	for _, d := range ds {
		for _, id := range d.Tasks {
			if err := c.Release(id); err != nil {
				return err
			}
		}
	}
	if got := describe(c); got != want {
		return fmt.Errorf("after releasing everything: %s\nbefore: %s", got, want)
	}
	return c.Verify()
}

func describe(c *scheduler.Cluster) string {
	s := ""
	for n := range c.Nodes() {
		s += fmt.Sprintln(n.ID(), n.Tasks(), n.Free())
	}
	for t := range c.Tasks() {
		s += fmt.Sprintln(t.ID, t.Node)
	}
	return s
}

// monotonicity: for one group, a node more or a constraint less never places
// fewer. It is not true, and not asked for, where a rule speaks of other
// replicas of the group than those on the node.
func (h *Harness) monotonicity(s *Scenario) error {
	if h.Declines {
		return nil
	}
	for _, r := range h.requests(s) {
		if len(r.Affinity)+len(r.AntiAffinity) > 0 {
			continue
		}
		r.Gang = nil
		soft := slices.Clone(r.Spread)
		for i := range soft {
			soft[i].MaxSkew = 0
		}
		r.Spread = soft
		base, err := h.count(s, r)
		if err != nil {
			return err
		}
		more := *s
		n := s.Nodes[0]
		n.ID, n.Hostname, n.Ready = "one-more", "one-more", true
		more.Nodes = append(slices.Clone(s.Nodes), n)
		if got, err := h.count(&more, r); err != nil || got < base {
			return fmt.Errorf("%s: %d placed, with one node more %d (%v)", r.Service, base, got, err)
		}
		r.Constraints = nil
		if got, err := h.count(s, r); err != nil || got < base {
			return fmt.Errorf("%s: %d placed, without constraints %d (%v)", r.Service, base, got, err)
		}
	}
	return nil
}

func (h *Harness) count(s *Scenario, r scheduler.Request) (int, error) {
	c, err := s.Cluster()
	if err != nil {
		return 0, err
	}
	ds, err := h.place(c, []scheduler.Request{r})
	if err != nil {
		return 0, err
	}
	return ds[0].Placed(), nil
}

// agreement: after a history of deltas a cluster decides like one that is built
// anew from what it lists.
func (h *Harness) agreement(s *Scenario) error {
	c, err := s.Cluster()
	if err != nil {
		return err
	}
	p, err := h.New(1)
	if err != nil {
		return err
	}
	reqs := h.requests(s)
	first, err := p.Place(c, reqs)
	if err != nil {
		return err
	}
	for i := range first {
		for k, id := range first[i].Tasks {
			if _, bound := c.Task(id); k%2 == 0 && bound {
				if err := c.Release(id); err != nil {
					return err
				}
			}
		}
	}
	changed := s.Nodes[len(s.Nodes)-1]
	changed.Capacity.CPU += 500
	changed.Drained = !changed.Drained
	if err := c.SetNode(changed); err != nil {
		return err
	}
	if len(s.Nodes) > 2 {
		if _, err := c.RemoveNode(s.Nodes[1].ID); err != nil {
			return err
		}
	}
	if err := c.Verify(); err != nil {
		return err
	}
	anew, err := Rebuild(c)
	if err != nil {
		return err
	}
	for i := range reqs {
		reqs[i].Tasks = nil
		for k := range reqs[i].Count {
			reqs[i].Tasks = append(reqs[i].Tasks, fmt.Sprintf("again-%d-%d", i, k))
		}
	}
	x, err := p.Place(c, reqs)
	if err != nil {
		return err
	}
	y, err := h.place(anew, reqs)
	if err != nil {
		return err
	}
	return same(x, y)
}

// Rebuild makes a new cluster from the nodes and tasks that c lists.
func Rebuild(c *scheduler.Cluster) (*scheduler.Cluster, error) {
	d := scheduler.NewCluster()
	for n := range c.Nodes() {
		if err := d.SetNode(*n.Spec()); err != nil {
			return nil, err
		}
	}
	open := func(t scheduler.Task) bool {
		return slices.ContainsFunc(t.Request.Resources.Devices, func(d scheduler.Device) bool { return d.Model == "" })
	}
	// Tasks that hold a model first, so that the others choose as they did.
	for _, later := range []bool{false, true} {
		for t := range c.Tasks() {
			if open(t) != later {
				continue
			}
			if err := d.Bind(t.ID, t.Node, t.Request); err != nil {
				return nil, err
			}
		}
	}
	return d, nil
}

// refusal: bad requests beside a good one give an error that matches
// scheduler.ErrInvalid, and nothing is placed.
func (h *Harness) refusal() error {
	good := scheduler.Request{Service: "good", Count: 1}
	for name, bad := range badRequests() {
		c := scheduler.NewCluster()
		if err := c.SetNode(scheduler.Node{ID: "n", Ready: true, Capacity: scheduler.Resources{CPU: 1000}}); err != nil {
			return err
		}
		want := describe(c)
		reqs := append([]scheduler.Request{good}, bad...)
		for i := range reqs {
			if reqs[i].Strategy == "" {
				reqs[i].Strategy = h.Strategy
			}
		}
		if _, err := h.place(c, reqs); !errors.Is(err, scheduler.ErrInvalid) {
			return fmt.Errorf("refusal: %s: error is %v, want one that matches ErrInvalid", name, err)
		}
		if got := describe(c); got != want {
			return fmt.Errorf("refusal: %s: the cluster changed from %s to %s", name, want, got)
		}
	}
	return nil
}

func badRequests() map[string][]scheduler.Request {
	one := func(f func(*scheduler.Request)) []scheduler.Request {
		r := scheduler.Request{Service: "bad", Count: 1}
		f(&r)
		return []scheduler.Request{r}
	}
	return map[string][]scheduler.Request{
		"no service":         one(func(r *scheduler.Request) { r.Service = "" }),
		"negative count":     one(func(r *scheduler.Request) { r.Count = -1 }),
		"huge count":         one(func(r *scheduler.Request) { r.Count = math.MaxInt }),
		"negative memory":    one(func(r *scheduler.Request) { r.Resources.Memory = -1 }),
		"overflowing cpu":    one(func(r *scheduler.Request) { r.Resources.CPU = math.MaxInt64 }),
		"negative device":    one(func(r *scheduler.Request) { r.Resources.Devices = []scheduler.Device{{Kind: "gpu", Count: -1}} }),
		"NaN weight":         one(func(r *scheduler.Request) { r.Spread = spreadWeight(math.NaN()) }),
		"infinite weight":    one(func(r *scheduler.Request) { r.Spread = spreadWeight(math.Inf(1)) }),
		"negative weight":    one(func(r *scheduler.Request) { r.Spread = spreadWeight(-1) }),
		"unknown strategy":   one(func(r *scheduler.Request) { r.Strategy = "no such strategy" }),
		"too few ids":        one(func(r *scheduler.Request) { r.Tasks = []string{} }),
		"gang over count":    one(func(r *scheduler.Request) { r.Gang = &scheduler.Gang{Min: 2} }),
		"port 0":             one(func(r *scheduler.Request) { r.Ports = []scheduler.HostPort{{}} }),
		"unknown protocol":   one(func(r *scheduler.Request) { r.Ports = []scheduler.HostPort{{Port: 1, Protocol: "icmp"}} }),
		"bad constraint":     one(func(r *scheduler.Request) { r.Constraints = []scheduler.Constraint{{Key: "zone", Op: "=="}} }),
		"affinity to nobody": one(func(r *scheduler.Request) { r.Affinity = []scheduler.Affinity{{}} }),
		"affinity in a circle": {
			{Service: "a", Count: 1, Affinity: []scheduler.Affinity{{Service: "b"}}},
			{Service: "b", Count: 1, Affinity: []scheduler.Affinity{{Service: "a"}}},
		},
	}
}

func spreadWeight(w float64) []scheduler.SpreadKey {
	return []scheduler.SpreadKey{{Key: "node.labels.zone", Weights: map[string]float64{"a": w}}}
}
