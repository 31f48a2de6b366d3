package orchestratetest_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/orchestratetest"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// recorded is the log of a scenario.
func recorded(t testing.TB, s orchestratetest.Scenario) []byte {
	t.Helper()
	var log bytes.Buffer
	s.ControlPlanes = 1 // they would share the log
	s.Options = func() []orchestrate.Option { return []orchestrate.Option{orchestrate.WithRecorder(&log)} }
	orchestratetest.Run(t.(*testing.T), s)
	return log.Bytes()
}

func packing(t testing.TB) orchestrate.Option {
	t.Helper()
	pack := scheduler.BinPackStrategy()
	pack.Name = scheduler.Spread // in its place
	sched, err := scheduler.New(scheduler.Options{Strategies: []scheduler.Strategy{pack}})
	if err != nil {
		t.Fatal(err)
	}
	return orchestrate.WithScheduler(sched)
}

// TestReplay decides again as it was decided, over restarts of the leader, and
// otherwise with another strategy.
func TestReplay(t *testing.T) {
	s := chaos(5)
	s.Script = []orchestratetest.Step{
		{At: 30 * time.Minute, Do: orchestratetest.LeaderDies{For: 5 * time.Second}},
		{At: 40 * time.Minute, Do: orchestratetest.Apply{Objects: []orchestrate.Object{revised(web(12))}}},
	}
	log := recorded(t, s)
	again, err := orchestratetest.Replay(bytes.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes, %d plans, %d placements, %+v", len(log), again.Plans, again.Placements, again.Was)
	if again.Placements < 30 || again.Same != again.Placements || len(again.Differences) > 0 {
		t.Errorf("%d placements, of which the same code makes %d again: %v", again.Placements, again.Same, again.Differences)
	}
	if again.Was != again.Would {
		t.Errorf("the same decisions cost %+v, and then %+v", again.Was, again.Would)
	}
	if d := again.To.Sub(again.From); d < time.Hour {
		t.Errorf("the log is of %v, want the two hours", d)
	}
	other, err := orchestratetest.Replay(bytes.NewReader(log), packing(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("packed: %d differ, %+v", len(other.Differences), other.Would)
	if other.Same+len(other.Differences) != other.Placements || len(other.Differences) == 0 || other.Was != again.Was {
		t.Errorf("another strategy: %d of %d differ, and it was %+v", len(other.Differences), other.Placements, other.Was)
	}
	if other.Would.Imbalance <= other.Was.Imbalance {
		t.Errorf("packed the imbalance is %v, and spread %v", other.Would.Imbalance, other.Was.Imbalance)
	}
	// The log of a program that crashed ends anywhere.
	cut := log[:bytes.LastIndexByte(log[:len(log)/2], '\n')+9]
	if short, err := orchestratetest.Replay(bytes.NewReader(cut)); err != nil || short.Placements == 0 || short.Placements >= again.Placements {
		t.Errorf("half a log: %+v, %v", short, err)
	}
}

// TestLogsHaveNoSecrets runs services that are full of them.
func TestLogsHaveNoSecrets(t *testing.T) {
	const secret = "hunter2"
	s := web(2)
	c := &s.Containers[0]
	c.Env = map[string]string{"PASSWORD": secret}
	c.Command, c.Entrypoint, c.Dir, c.User = []string{"serve", "--token=" + secret}, []string{"/bin/" + secret}, "/"+secret, secret
	c.Labels = map[string]string{"note": secret}
	c.Readiness = &health.Check{HTTP: &health.HTTP{Port: 80, Path: "/" + secret, Headers: map[string]string{"Authorization": secret}}}
	c.Liveness = &health.Check{Exec: &health.Exec{Command: []string{"check", secret}}}
	s.Hostname = secret
	s.DNS.Hosts = nil
	s.DNS.Search = []string{secret + ".example"}
	other := s
	other.Containers = []orchestrate.Container{s.Containers[0]}
	other.Containers[0].Env = map[string]string{"PASSWORD": secret + "too"}
	log := recorded(t, orchestratetest.Scenario{
		For: 30 * time.Minute, Objects: []orchestrate.Object{s},
		Script: []orchestratetest.Step{
			{At: 5 * time.Minute, Do: orchestratetest.Apply{Objects: []orchestrate.Object{other}}},
			{At: 10 * time.Minute, Do: orchestratetest.ContainerCrashes{Service: "web", Slot: 0}},
		},
	})
	if bytes.Contains(log, []byte(secret)) {
		at := bytes.Index(log, []byte(secret))
		t.Errorf("a secret is in the log: …%s…", log[max(0, at-200):at+20])
	}
	if !bytes.Contains(log, []byte("web:1")) {
		t.Error("the log does not even have the image")
	}
}

func TestReplayRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ log, says string }{
		"nothing":         {"", "the log is empty"},
		"another form":    {"hello\n", "is no entry of a log"},
		"no snapshot":     {`{"t":1,"plan":true}` + "\n", "does not begin with a snapshot"},
		"another version": {`{"orchestrate":2,"t":1,"load":true}` + "\n", "version 2"},
		"a broken record": {`{"orchestrate":1,"t":1,"load":true,"set":{"/tasks/n/x":3}}` + "\n", "/tasks/n/x"},
		"a broken later":  {`{"orchestrate":1,"t":1,"load":true}` + "\n" + `{"t":2,"set":{"/nodes/a":[]}}` + "\n", "line 2"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := orchestratetest.Replay(strings.NewReader(tc.log))
			var bad *orchestrate.LogError
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v, want a *LogError with %q", err, tc.says)
			}
		})
	}
}

var writeLog = flag.Bool("write-log", false, "write the log that FuzzReplay begins with")

// FuzzReplay reads logs that anybody may have written.
func FuzzReplay(f *testing.F) {
	const file = "testdata/small.log"
	log, err := os.ReadFile(filepath.FromSlash(file))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(log)
	f.Add([]byte(`{"orchestrate":1,"t":1,"load":true,"set":{"/nodes/a":{"r":1,"v":{"id":"a","capacity":{"cpu":1}}},"/alive/a":{"r":1,"v":{}}}}` + "\n" + `{"t":2,"plan":true}` + "\n"))
	f.Add([]byte(`{"orchestrate":1,"t":1,"load":true,"set":{"/services/x/y":{"r":-1,"v":{"spec":{"replicas":-5}}}}}` + "\n" + `{"t":-2,"plan":true}` + "\n"))
	// Found by this: the planner made a list of all that was missing.
	f.Add([]byte(`{"orchestrate":1,"t":1,"load":true,"set":{"/services/x/y":{"r":1,"v":{"spec":{"replicas":9000000000000}}}}}` + "\n" + `{"t":2,"plan":true}` + "\n"))
	f.Fuzz(func(t *testing.T, log []byte) {
		r, err := orchestratetest.Replay(bytes.NewReader(log))
		if err != nil {
			return
		}
		if r.Same+len(r.Differences) != r.Placements || r.To.Before(r.From) {
			t.Errorf("%+v", r)
		}
	})
}

// TestSmallLog keeps the log that the fuzzing begins with one of today's form.
func TestSmallLog(t *testing.T) {
	log := recorded(t, orchestratetest.Scenario{
		For: 5 * time.Minute, Objects: []orchestrate.Object{web(2)},
		Script: []orchestratetest.Step{{At: time.Minute, Do: orchestratetest.NodeDies{Node: "n1"}}},
	})
	if *writeLog {
		if err := os.WriteFile("testdata/small.log", log, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile("testdata/small.log")
	if err != nil {
		t.Fatal(err)
	}
	was, err := orchestratetest.Replay(bytes.NewReader(kept))
	if err != nil {
		t.Fatal(err)
	}
	if was.Placements == 0 {
		t.Errorf("%+v: run this test with -write-log", was)
	}
}
