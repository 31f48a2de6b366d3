package scheduler_test

import (
	"fmt"
	"log"

	"github.com/orchestrate-go/orchestrate/scheduler"
)

func Example() {
	c := scheduler.NewCluster()
	for _, id := range []string{"n1", "n2", "n3"} {
		err := c.SetNode(scheduler.Node{ID: id, Ready: true,
			Capacity: scheduler.Resources{CPU: 2000, Memory: 4 << 30}})
		if err != nil {
			log.Fatal(err)
		}
	}
	s, err := scheduler.New(scheduler.Options{})
	if err != nil {
		log.Fatal(err)
	}
	decisions, err := s.Place(c, []scheduler.Request{
		{Service: "web", Count: 3, Resources: scheduler.Resources{CPU: 500, Memory: 1 << 30}},
		{Service: "db", Count: 1, Resources: scheduler.Resources{Memory: 6 << 30}},
	})
	if err != nil {
		log.Fatal(err)
	}
	for i, task := range decisions[0].Tasks {
		fmt.Println(task, "on", decisions[0].Nodes[i])
	}
	fmt.Println(decisions[1].Err())
	// Output:
	// web.1 on n1
	// web.2 on n2
	// web.3 on n3
	// db: 1 of 1 replica not placed: none of 3 nodes fits
	//   memory: refused 3 nodes: n1 has 4 GiB free, needs 6 GiB, n2 has 4 GiB free, needs 6 GiB, n3 has 4 GiB free, needs 6 GiB
}

// cheapest prefers nodes where power costs little.
type cheapest struct {
	price map[string]float64 // by node, in cents a kWh
	most  float64
}

func (cheapest) Name() string { return "power-price" }

func (p cheapest) Score(_ *scheduler.Request, n scheduler.NodeView) float64 {
	return 1 - p.price[n.ID()]/p.most
}

func ExampleScorer() {
	price := cheapest{price: map[string]float64{"berlin": 32, "lulea": 9, "porto": 17}, most: 40}
	s, err := scheduler.New(scheduler.Options{Strategies: []scheduler.Strategy{{
		Name:    "cheapest",
		Scorers: []scheduler.Weighted{{Scorer: price, Weight: 3}, {Scorer: scheduler.LeastLoaded{}, Weight: 1}},
	}}})
	if err != nil {
		log.Fatal(err)
	}
	c := scheduler.NewCluster()
	for id := range price.price {
		if err := c.SetNode(scheduler.Node{ID: id, Ready: true, Capacity: scheduler.Resources{CPU: 8000}}); err != nil {
			log.Fatal(err)
		}
	}
	ds, err := s.Place(c, []scheduler.Request{{Service: "batch", Count: 1, Strategy: "cheapest", Resources: scheduler.Resources{CPU: 1000}}})
	fmt.Println(ds[0].String(), err)
	// Output:
	// batch: placed 1 replica on 1 node
	//   best: lulea score 0.800 = power-price 0.775 × 0.75 + least-loaded 0.875 × 0.25
	//   then: porto score 0.650 = power-price 0.575 × 0.75 + least-loaded 0.875 × 0.25
	//   then: berlin score 0.369 = power-price 0.200 × 0.75 + least-loaded 0.875 × 0.25 <nil>
}

// window refuses nodes that are about to be maintained.
type window struct{ closed map[string]bool }

func (window) Name() string { return "maintenance" }

func (w window) Refuse(_ *scheduler.Request, n scheduler.NodeView) string {
	if w.closed[n.ID()] {
		return "is maintained tonight"
	}
	return ""
}

func ExampleFilter() {
	careful := scheduler.SpreadStrategy()
	careful.Name = "careful"
	careful.Filters = []scheduler.Filter{window{map[string]bool{"n1": true}}}
	s, err := scheduler.New(scheduler.Options{Default: "careful", Strategies: []scheduler.Strategy{careful}})
	if err != nil {
		log.Fatal(err)
	}
	c := scheduler.NewCluster()
	if err := c.SetNode(scheduler.Node{ID: "n1", Ready: true}); err != nil {
		log.Fatal(err)
	}
	ds, err := s.Place(c, []scheduler.Request{{Service: "web", Count: 2}})
	fmt.Println(ds[0].String(), err)
	// Output:
	// web: 2 of 2 replicas not placed: none of 1 node fits
	//   maintenance: refused 1 node: n1 is maintained tonight <nil>
}

// oneByOne fills a node before it takes the next, whatever the scores.
type oneByOne struct{}

func (oneByOne) Place(g *scheduler.Group) error {
	for n := range g.Candidates() {
		for g.Left() > 0 && g.Assign(n.ID()) == nil {
		}
	}
	return nil
}

func ExamplePlacer() {
	s, err := scheduler.New(scheduler.Options{Strategies: []scheduler.Strategy{{Name: "one-by-one", Placer: oneByOne{}}}})
	if err != nil {
		log.Fatal(err)
	}
	c := scheduler.NewCluster()
	for _, id := range []string{"n1", "n2"} {
		if err := c.SetNode(scheduler.Node{ID: id, Ready: true, Capacity: scheduler.Resources{CPU: 3000}}); err != nil {
			log.Fatal(err)
		}
	}
	ds, err := s.Place(c, []scheduler.Request{{Service: "web", Count: 5, Strategy: "one-by-one", Resources: scheduler.Resources{CPU: 1000}}})
	fmt.Println(ds[0].Nodes, err)
	// Output: [n1 n1 n1 n2 n2] <nil>
}

func ExampleFairShare() {
	c := scheduler.NewCluster()
	if err := c.SetNode(scheduler.Node{ID: "n1", Ready: true, Capacity: scheduler.Resources{CPU: 9000, Memory: 18 << 30}}); err != nil {
		log.Fatal(err)
	}
	// The example of the paper on dominant resource fairness: a wants much
	// memory, b much CPU.
	fair := scheduler.FairShare{}
	admitted, held, err := fair.Admit(c, []scheduler.Request{
		{Namespace: "a", Service: "cache", Count: 100, Resources: scheduler.Resources{CPU: 1000, Memory: 4 << 30}},
		{Namespace: "b", Service: "math", Count: 100, Resources: scheduler.Resources{CPU: 3000, Memory: 1 << 30}},
	})
	if err != nil {
		log.Fatal(err)
	}
	for i, r := range admitted {
		fmt.Println(r.Namespace, r.Count, "held:", held[i].Count, held[i].Reason, held[i].Resource)
	}
	// Output:
	// a 3 held: 97 share cpu
	// b 2 held: 98 share cpu
}

func ExampleScheduler_Rebalance() {
	c := scheduler.NewCluster()
	web := scheduler.Request{Service: "web", Resources: scheduler.Resources{CPU: 1000}}
	for _, id := range []string{"n1", "n2"} {
		if err := c.SetNode(scheduler.Node{ID: id, Ready: true, Capacity: scheduler.Resources{CPU: 4000}}); err != nil {
			log.Fatal(err)
		}
	}
	for _, task := range []string{"web.1", "web.2", "web.3"} {
		if err := c.Bind(task, "n1", &web); err != nil {
			log.Fatal(err)
		}
	}
	s, err := scheduler.New(scheduler.Options{})
	if err != nil {
		log.Fatal(err)
	}
	moves, err := s.Rebalance(c, scheduler.RebalanceOptions{})
	fmt.Println(moves, err)
	// Output: [{web.1 n1 n2 2}] <nil>
}
