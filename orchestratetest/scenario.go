package orchestratetest

import (
	"log/slog"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/node"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/store"
)

// Scenario is a fleet, what happens to it, and what must hold. It is data: the
// same scenario has the same history each time it is run, bit for bit, whatever
// the machine, the number of its processors or the race detector.
//
// The zero value of a field is its default, as each comment says.
type Scenario struct {
	// Seed is what all randomness comes from: that of Random, and of the nodes'
	// failure rates.
	Seed uint64
	// For is how much virtual time is simulated; default one hour.
	For time.Duration

	// Nodes are the fleet's machines. Default: three of 4 cores and 8 GiB in
	// one zone each.
	Nodes []NodeGroup
	// ControlPlanes is how many there are, of which one leads; default 1.
	ControlPlanes int
	// Options are further options of each control plane, such as
	// [orchestrate.WithScheduler] with a strategy of your own. It is called each
	// time that one starts. Schedules of cron jobs are read by package cron, unless
	// it has another [orchestrate.WithSchedules].
	Options func() []orchestrate.Option
	// Agent may change the options of each node's agent before it starts, such as
	// its drivers.
	Agent func(*node.Options)

	// Objects are applied before anything else.
	Objects []orchestrate.Object
	// Script is what happens, and when.
	Script []Step
	// Random adds faults at random moments, drawn from Seed.
	Random Random
	// Traffic is the load of services, by NAME or NAMESPACE/NAME: requests a
	// second at a time since the begin. It is the metric "requests" of their
	// autoscalers. See [Daily].
	Traffic map[string]Load

	// Always are invariants that are checked after every step, and Eventually
	// those that must become true again within a time.
	Always     []Invariant
	Eventually []Eventual

	// Images are what references mean, and Program what containers of others
	// run. By default all run until they are told to stop.
	Images  map[string]runtimememory.Image
	Program runtimememory.Program
	// Delays are how long things take.
	Delays Delays
	// LostAfter is how long a node may be silent before its tasks are replaced;
	// default 30 s. NodeTTL is that of the nodes' leases; default 5 s.
	LostAfter time.Duration
	NodeTTL   time.Duration
	// Balancers gives each node a balancer, in memory, which follows all
	// endpoints of the fleet. Its cost grows with the square of the fleet's size.
	// See [BalancersFollow] and [View.Rules].
	Balancers bool

	// Keep is how many of the last events the report has; default 1000. The hash
	// is of all.
	Keep int
	// Shrink bounds the time, in seconds of the machine's clock, that is spent on
	// finding a shorter script for a failure; default 20 s, negative none.
	Shrink time.Duration
	// Logger gets what control planes and agents log; nil discards.
	Logger *slog.Logger

	trace  func(string)                                // gets each call that is let in
	tamper func(actor string, txn store.Txn) store.Txn // changes each commit, as a mistake in the code would
}

// NodeGroup is a number of like machines.
type NodeGroup struct {
	// Name is the prefix of the machines' IDs, NAME1, NAME2 and so on; default
	// "n".
	Name string
	// Count is how many there are; default 1.
	Count int
	// CPU is in thousandths of a core, default 4000; Memory in bytes, default
	// 8 GiB.
	CPU, Memory int64
	// Zones are dealt out in turn, as the label "zone".
	Zones []string
	// Labels are further labels of each.
	Labels map[string]string
	// FailsEvery is the mean time between failures of one machine, each of which
	// takes it down for RepairIn, by default 10 minutes. 0 is never.
	FailsEvery, RepairIn time.Duration
}

// Delays are how long things take in a simulated world. Zero is no time at all,
// but for Pull.
type Delays struct {
	Pull   time.Duration // of an image that is not on the node; default 2 s
	Attach time.Duration // to a network
	Start  time.Duration // of a container
	Store  time.Duration // of each commit
}

// Step is something that happens at a time.
type Step struct {
	At time.Duration // since the begin
	Do Action
}

// Load is a load, in requests a second, at a time since the begin.
type Load func(since time.Duration) float64

func (s Scenario) withDefaults() Scenario {
	if s.For == 0 {
		s.For = time.Hour
	}
	if len(s.Nodes) == 0 {
		s.Nodes = []NodeGroup{{Count: 3, Zones: []string{"a", "b", "c"}}}
	}
	nodes := make([]NodeGroup, len(s.Nodes))
	for i, g := range s.Nodes {
		if g.Name == "" {
			g.Name = "n"
		}
		if g.Count == 0 {
			g.Count = 1
		}
		if g.CPU == 0 {
			g.CPU = 4000
		}
		if g.Memory == 0 {
			g.Memory = 8 << 30
		}
		if g.RepairIn == 0 {
			g.RepairIn = 10 * time.Minute
		}
		nodes[i] = g
	}
	s.Nodes = nodes
	if s.ControlPlanes == 0 {
		s.ControlPlanes = 1
	}
	if s.Delays.Pull == 0 {
		s.Delays.Pull = 2 * time.Second
	}
	if s.LostAfter == 0 {
		s.LostAfter = 30 * time.Second
	}
	if s.NodeTTL == 0 {
		s.NodeTTL = node.DefaultLeaseTTL
	}
	if s.Keep == 0 {
		s.Keep = 1000
	}
	if s.Shrink == 0 {
		s.Shrink = 20 * time.Second
	}
	return s
}
