package scheduler

import (
	"fmt"
	"math"
	"slices"
)

// Filter refuses nodes. The built-in filters (see [Request]) always hold,
// whatever the strategy; a strategy can only add to them.
type Filter interface {
	// Name is a short word that reports use, such as "maintenance".
	Name() string
	// Refuse says why a replica of r can not go to n; empty is that it can.
	// It depends on r and n alone.
	Refuse(r *Request, n NodeView) string
}

// Scorer rates a node that all filters let pass.
type Scorer interface {
	// Name is a short word that reports use, such as "least-loaded".
	Name() string
	// Score is from 0, worst, to 1, best, as if the replica were not there
	// yet. It depends on r and n alone. What is outside that range is moved
	// to its border; NaN is 0.
	Score(r *Request, n NodeView) float64
}

// Weighted is a scorer and how much it counts beside the others: a node's
// score is the mean of its scores, weighted.
type Weighted struct {
	Scorer Scorer
	Weight float64
}

// Strategy is a way to choose among nodes, registered under its name. Spread
// keys of a request come before any score; then, with LevelNodes, the number of
// tasks of the same service on the node; then the scores.
type Strategy struct {
	Name string
	// LevelNodes takes the nodes with the fewest tasks of the service first.
	LevelNodes bool
	// FitTogether looks at the requests of one Place with the same priority
	// together and first plans which of them fill a node best. It needs a
	// strategy of built-in scorers alone.
	FitTogether bool
	Filters     []Filter
	Scorers     []Weighted
	// Placer, when not nil, chooses the nodes instead of the scores.
	Placer Placer
}

// Placer chooses nodes for a whole group in its own way.
type Placer interface {
	// Place calls g.Assign for each replica that it has a node for. What it
	// leaves is reported as not placed. An error ends the Scheduler's Place,
	// which then changes nothing.
	Place(g *Group) error
}

// The names of the strategies that every Scheduler has.
const (
	Spread  = "spread"
	BinPack = "binpack"
	Random  = "random"
)

// SpreadStrategy evens out each service over the nodes, and the load over
// them. It is the default.
func SpreadStrategy() Strategy {
	return Strategy{Name: Spread, LevelNodes: true, Scorers: []Weighted{
		{LeastLoaded{}, 1}, {FewestTasks{}, 1}, {TaskAffinity{}, 1}, {ImagePresent{}, 0.5},
	}}
}

// BinPackStrategy fills nodes up one after the other, so that the rest can be
// sent home.
func BinPackStrategy() Strategy {
	return Strategy{Name: BinPack, FitTogether: true, Scorers: []Weighted{{MostLoaded{}, 1}, {TaskAffinity{}, 0.1}}}
}

// RandomStrategy takes any node that fits, each as likely as the others.
func RandomStrategy() Strategy {
	return Strategy{Name: Random, Placer: randomPlacer{}}
}

// Options are what a Scheduler is made with. The zero value is ready to use.
type Options struct {
	// Default is the strategy of requests that name none; empty is spread.
	Default string
	// Strategies are added to spread, binpack and random; one of the same
	// name replaces the built-in.
	Strategies []Strategy
	// Seed is what the random strategy draws from.
	Seed uint64
	// Preempt lets requests displace tasks of lower priority, as far as
	// [Cluster.Spare] allows.
	Preempt bool
	// FailureLimit is how many recent failures of a service make a node the
	// last to be taken; 0 is 5.
	FailureLimit int
	// RunnersUp is how many nodes a Decision describes beside the first
	// chosen; 0 is 2, and below 0 is none.
	RunnersUp int
}

// Scheduler decides. It never changes, so it may be used by many goroutines,
// each with its own Cluster.
type Scheduler struct {
	opts       Options
	strategies map[string]*strategy
}

// strategy is a Strategy made ready: weights divided by their sum, and the
// built-in scorers, which are computed without a call, set apart.
type strategy struct {
	Strategy
	least, most, fewest, image, affinity float64
	custom                               []Weighted
	pure                                 bool // built-in parts only: an index of it can be kept
}

// New returns a Scheduler. Errors match ErrInvalid.
func New(o Options) (*Scheduler, error) {
	if o.Default == "" {
		o.Default = Spread
	}
	if o.FailureLimit == 0 {
		o.FailureLimit = 5
	}
	if o.RunnersUp == 0 {
		o.RunnersUp = 2
	}
	if o.FailureLimit < 0 {
		return nil, invalid("options.failureLimit", o.FailureLimit, "a number above 0, or 0 for 5")
	}
	s := &Scheduler{opts: o, strategies: map[string]*strategy{}}
	builtin := []Strategy{SpreadStrategy(), BinPackStrategy(), RandomStrategy()}
	for i, st := range append(builtin, o.Strategies...) {
		if st.Name == "" {
			return nil, invalid(fmt.Sprintf("options.strategies[%d].name", i-len(builtin)), st.Name, "a name")
		}
		if slices.ContainsFunc(o.Strategies[:max(0, i-len(builtin))], func(x Strategy) bool { return x.Name == st.Name }) {
			return nil, invalid(fmt.Sprintf("options.strategies[%d].name", i-len(builtin)), st.Name, "each name once")
		}
		made, err := compileStrategy(st)
		if err != nil {
			return nil, err
		}
		s.strategies[st.Name] = made
	}
	if s.strategies[o.Default] == nil {
		return nil, s.unknown(o.Default)
	}
	return s, nil
}

func (s *Scheduler) unknown(name string) error {
	known := make([]string, 0, len(s.strategies))
	for k := range s.strategies {
		known = append(known, k)
	}
	slices.Sort(known)
	return &StrategyError{Name: name, Known: known}
}

func compileStrategy(st Strategy) (*strategy, error) {
	out := &strategy{Strategy: st, pure: len(st.Filters) == 0 && st.Placer == nil}
	if len(st.Filters) > maxFilters {
		return nil, invalid("strategy "+st.Name+": filters", len(st.Filters), fmt.Sprintf("at most %d", maxFilters))
	}
	for i, f := range st.Filters {
		if f == nil || f.Name() == "" {
			return nil, invalid(fmt.Sprintf("strategy %s: filters[%d]", st.Name, i), "", "a filter with a name")
		}
	}
	sum := 0.0
	for i, w := range st.Scorers {
		field := fmt.Sprintf("strategy %s: scorers[%d]", st.Name, i)
		if w.Scorer == nil || w.Scorer.Name() == "" {
			return nil, invalid(field, "", "a scorer with a name")
		}
		if math.IsNaN(w.Weight) || w.Weight < 0 || w.Weight > maxWeight {
			return nil, invalid(field+".weight", w.Weight, fmt.Sprintf("a weight from 0 to %g", maxWeight))
		}
		sum += w.Weight
	}
	for _, w := range st.Scorers {
		if sum == 0 || w.Weight == 0 {
			continue
		}
		part := w.Weight / sum
		switch w.Scorer.(type) {
		case LeastLoaded:
			out.least += part
		case MostLoaded:
			out.most += part
		case FewestTasks:
			out.fewest += part
		case ImagePresent:
			out.image += part
		case TaskAffinity:
			out.affinity += part
		default:
			out.custom = append(out.custom, Weighted{w.Scorer, part})
			out.pure = false
		}
	}
	return out, nil
}

// maxFilters is how many filters have numbers of their own.
const maxFilters = 255 - int(whyCustom)

func (s *Scheduler) strategy(name string) (*strategy, error) {
	if name == "" {
		name = s.opts.Default
	}
	if st := s.strategies[name]; st != nil {
		return st, nil
	}
	return nil, s.unknown(name)
}
