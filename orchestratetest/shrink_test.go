package orchestratetest_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/orchestratetest"
)

// fragile does not survive the loss of both its nodes at a time, among much else
// that happens.
func fragile() orchestratetest.Scenario {
	return orchestratetest.Scenario{
		Seed: 7, For: 3 * time.Hour,
		Nodes:   []orchestratetest.NodeGroup{{Count: 2}},
		Objects: []orchestrate.Object{web(4)},
		Random: orchestratetest.Random{Every: time.Minute, Mix: orchestratetest.Mix{
			NodeDies: 2, ContainerCrashes: 6, NodeSlow: 2, ClockSkew: 1, StoreSlow: 1, PullSlow: 1,
		}},
		Always: []orchestratetest.Invariant{orchestratetest.AtLeast("web", 1)},
	}
}

// TestShrink finds of hundreds of steps the few that it takes, and prints a test
// of them that fails in the same way.
func TestShrink(t *testing.T) {
	s := fragile()
	s.Shrink = 10 * time.Minute // until it is as short as can be, however slow the machine
	r := orchestratetest.Explore(t, s)
	if r.Failure == nil {
		t.Fatal("the fleet survives both its nodes; find another seed")
	}
	if len(r.Script) == 0 || len(r.Script) > 2 {
		t.Errorf("shrunk to %d steps, want the deaths of two nodes: %v", len(r.Script), r.Script)
	}
	for _, step := range r.Script {
		if _, ok := step.Do.(orchestratetest.NodeDies); !ok {
			t.Errorf("step %v has nothing to do with it", step.Do)
		}
	}
	out, err := pasted(t, r.Test)
	if err == nil || !strings.Contains(out, "web has at least 1 tasks that serve: 0 of 1") {
		t.Errorf("the printed test says %q (%v)\n%s", out, err, r.Test)
	}
}

// pasted runs a test as if it had been pasted into a package.
func pasted(t *testing.T, source string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "found_test.go")
	if err := os.WriteFile(file, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(here, "pasted", "found_test.go"): file}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o644); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "pasted.test")
	if out, err := exec.Command("go", "test", "-vet=off", "-c", "-o", binary, "-overlay", filepath.Join(dir, "overlay.json"), "./pasted").CombinedOutput(); err != nil {
		t.Fatalf("it does not compile: %v\n%s\n%s", err, out, source)
	}
	cmd := exec.Command(binary)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func dailyLoad(since time.Duration) float64 { return orchestratetest.Daily(1, 2)(since) }

// TestEverythingIsPrinted has a scenario with something of all kinds printed and
// compiled.
func TestEverythingIsPrinted(t *testing.T) {
	s := chaos(1)
	s.For, s.Random.Quiet = 10*time.Minute, time.Minute
	s.Traffic = map[string]orchestratetest.Load{"web": orchestratetest.Constant(3), "probed": dailyLoad}
	s.Always = append(orchestratetest.Ready(), orchestratetest.Always("nothing happens", func(v *orchestratetest.View) error {
		if v.Since() > 5*time.Minute {
			return errFew
		}
		return nil
	}))
	s.Shrink = time.Nanosecond // as it is
	r := orchestratetest.Explore(t, s)
	if r.Failure == nil {
		t.Fatal("want a failure")
	}
	source := strings.ReplaceAll(r.Test, "dailyLoad", "orchestratetest.Constant(1)") // of this package
	for _, want := range []string{"orchestratetest.EveryApplyEnds(time.Hour)", "&health.Check{", "a function without a name", "Stateful: &orchestrate.Stateful{}"} {
		if !strings.Contains(source, want) {
			t.Errorf("%q is not in the test", want)
		}
	}
	if out, err := pasted(t, source); err != nil { // without its function it passes
		t.Errorf("the printed test: %v\n%s\n%s", err, out, source)
	}
}
