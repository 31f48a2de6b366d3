package orchestratetest_test

import (
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/orchestratetest"
)

func web(replicas int) orchestrate.Service {
	return orchestrate.Service{
		Name: "web", Replicas: replicas,
		Template: orchestrate.Template{
			Containers: []orchestrate.Container{{Image: "web:1", Resources: orchestrate.Resources{CPU: 500, Memory: 256 << 20}}},
			Ports:      []orchestrate.Port{{Port: 8080}},
		},
	}
}

// chaos is a small fleet on which everything fails now and then.
func chaos(seed uint64) orchestratetest.Scenario {
	check := &health.Check{HTTP: &health.HTTP{Port: 8080}}
	probed := web(9)
	probed.Name = "probed"
	probed.Containers[0].Readiness, probed.Containers[0].Liveness = check, check
	db := orchestrate.Service{
		Name: "db", Replicas: 2, Stateful: &orchestrate.Stateful{},
		Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: "db:1"}}},
	}
	return orchestratetest.Scenario{
		Seed: seed, For: 2 * time.Hour, ControlPlanes: 2,
		Nodes:   []orchestratetest.NodeGroup{{Count: 8, Zones: []string{"a", "b"}}},
		Objects: []orchestrate.Object{web(12), probed, db},
		Random:  orchestratetest.Random{Every: time.Minute, Quiet: 10 * time.Minute},
	}
}

// same runs a scenario again and shows where its history parts from the first.
func same(t *testing.T, s orchestratetest.Scenario, first []string) []string {
	t.Helper()
	var calls []string
	r := orchestratetest.Run(t, s.Trace(func(call string) { calls = append(calls, call) }))
	calls = append(calls, r.Hash)
	for i := range min(len(calls), len(first)) {
		if calls[i] != first[i] {
			t.Fatalf("seed %d: call %d is\n%s\nand was\n%s\nafter\n%s", s.Seed, i, calls[i], first[i], calls[max(i-1, 0)])
		}
	}
	if first != nil && len(calls) != len(first) {
		t.Fatalf("seed %d: %d calls, and %d before", s.Seed, len(calls), len(first))
	}
	return calls
}

// TestNodeDies is the least there is: three nodes, one service, one death.
func TestNodeDies(t *testing.T) {
	scenario := orchestratetest.Scenario{
		Objects: []orchestrate.Object{web(6)},
		Script:  []orchestratetest.Step{{At: 10 * time.Minute, Do: orchestratetest.NodeDies{Node: "n1", For: 10 * time.Minute}}},
	}
	r := orchestratetest.Run(t, scenario)
	for kind, want := range map[orchestratetest.EventKind]int{
		orchestratetest.NodeUp: 4, orchestratetest.NodeDown: 1, orchestratetest.FaultBegan: 1, orchestratetest.FaultEnded: 1,
		orchestratetest.TaskPlaced: 8, orchestratetest.TaskStop: 2, orchestratetest.TaskGone: 2, orchestratetest.RolloutDone: 1,
	} {
		if r.Counts[kind] != want {
			t.Errorf("%d events of kind %s, want %d", r.Counts[kind], kind, want)
		}
	}
	if r.Simulated != time.Hour {
		t.Errorf("simulated %v, want the hour that is the default", r.Simulated)
	}
	if t.Failed() {
		for _, e := range r.Events {
			t.Log(e)
		}
	}
	var calls []string
	for range 10 {
		calls = same(t, scenario, calls)
	}
}

// TestChaosIsTheSame runs seeds again with other numbers of processors, on which
// goroutines meet in other orders. Under the race detector they do so each time.
func TestChaosIsTheSame(t *testing.T) {
	runs := map[uint64]int{0: 10, 1: 3}
	if os.Getenv("ORCHESTRATE_LONG") != "" {
		for seed := range uint64(20) {
			runs[seed] = 10
		}
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, seed := range slices.Sorted(maps.Keys(runs)) {
		var calls []string
		for run := range runs[seed] {
			runtime.GOMAXPROCS([]int{2, 1, 4}[run%3])
			calls = same(t, chaos(seed), calls)
		}
		t.Logf("seed %d, %d runs: %d calls, hash %s", seed, runs[seed], len(calls)-1, calls[len(calls)-1])
	}
}

// TestBuildsAreTheSame has programs that were built in another way, with the race
// detector and without optimisations, come to the same history as this one. It
// takes as long as to build them, so it belongs to the long mode.
func TestBuildsAreTheSame(t *testing.T) {
	builds := [][]string{{"-race"}, {"-gcflags=-N -l"}, {}}
	if os.Getenv("ORCHESTRATE_LONG") == "" {
		builds = nil
	}
	const says = "the hash is "
	hash := orchestratetest.Run(t, chaos(2)).Hash
	t.Log(says + hash)
	if os.Getenv(inner) != "" {
		return
	}
	for _, flags := range builds {
		cmd := exec.Command("go", slices.Concat([]string{"test", "-count=1", "-v", "-run", "^TestBuildsAreTheSame$"}, flags, []string{"."})...)
		cmd.Env = append(os.Environ(), inner+"=yes")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), says+hash) {
			t.Errorf("built with %q: %v\n%s\nwant the hash %s", flags, err, out, hash)
		}
	}
}

// inner is set in programs that TestBuildsAreTheSame runs.
const inner = "ORCHESTRATE_ANOTHER_BUILD"

// TestSeedsDiffer makes sure that a hash says something.
func TestSeedsDiffer(t *testing.T) {
	hashes := map[string]bool{}
	for seed := range uint64(3) {
		s := chaos(seed)
		s.For = 20 * time.Minute
		s.Random.Quiet = time.Minute
		hashes[orchestratetest.Run(t, s).Hash] = true
	}
	if len(hashes) != 3 {
		t.Errorf("three seeds have %d histories", len(hashes))
	}
}

// TestSchedulesAreTheSame runs jobs and cron jobs again, which are decided about
// beside the planner.
func TestSchedulesAreTheSame(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	s := scheduled()
	s.For = 2 * time.Hour
	s.Script = s.Script[:3]
	s.Random = orchestratetest.Random{Every: 2 * time.Minute}
	s.Always = orchestratetest.Ready()
	s.ControlPlanes = 2
	var calls []string
	for run := range 4 {
		runtime.GOMAXPROCS([]int{2, 1, 4}[run%3])
		calls = same(t, s, calls)
	}
}
