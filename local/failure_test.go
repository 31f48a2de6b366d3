//go:build linux

package local

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// Each way to fail has its type, and says what the container had said.
func TestFailures(t *testing.T) {
	f := openFleet(t)
	outside := t.TempDir()
	sick := func(kind string) orchestrate.Service {
		s := service("sick", 1)
		s.Containers[0].Env = map[string]string{"SICK": kind}
		return s
	}
	quick := func(kind string) *health.Check {
		return &health.Check{HTTP: &health.HTTP{Port: 8080, Path: "/healthy?" + kind}, Interval: 20 * time.Millisecond, Delay: 100 * time.Millisecond}
	}
	cases := map[string]struct {
		service   func() orchestrate.Service
		reason    orchestrate.Reason
		kind      orchestrate.FailureKind
		message   string
		log       string
		permanent bool
	}{
		"image": {
			service: func() orchestrate.Service {
				s := silent("image")
				s.Containers[0].Image, s.Containers[0].Pull = "orchestrate.test/absent:1", runtime.PullNever
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedImage, message: "orchestrate.test/absent:1", permanent: true,
		},
		"command": {
			service: func() orchestrate.Service {
				s := silent("command")
				s.Containers[0].Entrypoint = []string{"/absent"}
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedStart, message: "/absent", permanent: true,
		},
		"bind": {
			service: func() orchestrate.Service {
				s := silent("bind", "wait")
				s.Containers[0].Mounts = []orchestrate.Mount{{Target: "/x", Bind: outside}}
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedVolume, message: outside, permanent: true,
		},
		"cpus": {
			service: func() orchestrate.Service {
				s := silent("cpus", "wait")
				s.Containers[0].Resources.CPUSet = "0,8191"
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedStart, message: `CPU set "0,8191": this node has the CPUs 0`, permanent: true,
		},
		"crash": {
			service: func() orchestrate.Service {
				s := silent("crash", "print=I give up", "exit=3")
				s.Update.Monitor = 5 * time.Second // it runs for a moment
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedExit, message: "exit code 3", log: "I give up",
		},
		"init": {
			service: func() orchestrate.Service {
				s := silent("init", "wait")
				s.Init = []orchestrate.Container{{Image: testImage, Command: []string{"print=not yet", "exit=4"}}}
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedInit, message: "exit code 4", log: "not yet",
		},
		"memory": {
			service: func() orchestrate.Service {
				s := silent("memory", "print=hungry", "eat=200")
				s.Containers[0].Resources.MemoryLimit = 32 * orchestrate.MiB
				s.Update.Monitor = 5 * time.Second
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedOOM, message: "out of memory", log: "hungry",
		},
		"startup": {
			service: func() orchestrate.Service {
				s := sick("startup")
				s.Containers[0].Startup = quick("startup")
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedStartup, message: "503",
		},
		"readiness": {
			service: func() orchestrate.Service {
				s := sick("readiness")
				s.Update.ProgressDeadline = 4 * time.Second // its server has to be up, beside those of the others
				return s
			},
			reason: orchestrate.ReasonDeadline, kind: orchestrate.FailedReadiness, message: "503",
		},
		"liveness": {
			service: func() orchestrate.Service {
				s := sick("liveness")
				s.Containers[0].Liveness = quick("liveness")
				s.Update.Monitor = 5 * time.Second
				return s
			},
			reason: orchestrate.ReasonFailures, kind: orchestrate.FailedLiveness, message: "503",
		},
		"capacity": {
			service: func() orchestrate.Service {
				s := silent("capacity", "wait")
				s.Containers[0].Resources.CPU = 1000 * orchestrate.Core
				s.Update.ProgressDeadline = time.Second
				return s
			},
			reason: orchestrate.ReasonCapacity,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := c.service()
			s.Name = name
			// The first failure of a task is its last, and the rollout's.
			s.Restart = orchestrate.RestartPolicy{Attempts: 1, MaxBackoff: 10 * time.Millisecond}
			s.Update.MaxFailures = 1
			apply(t, f, s)
			r := wait(t, f, name)
			var err *orchestrate.RolloutError
			if r.Outcome != orchestrate.RolloutFailed || r.Reason != c.reason || !errors.As(r.Err(), &err) {
				t.Fatalf("got %v, want it failed because of %s; failure %+v", r, c.reason, r.Failure)
			}
			if c.kind == "" {
				return
			}
			if r.Failure == nil || r.Failure.Kind != c.kind || !strings.Contains(r.Failure.Message, c.message) || r.Failure.Permanent != c.permanent {
				t.Fatalf("failure: got %+v, want kind %s, a message with %q, permanent %v", r.Failure, c.kind, c.message, c.permanent)
			}
			if c.log != "" && !slices.Contains(r.Failure.Log, c.log) {
				t.Errorf("the failure's log is %q, want it to have %q", r.Failure.Log, c.log)
			}
		})
	}
}

// Checks of a running service: readiness decides about traffic, liveness
// restarts.
func TestChecks(t *testing.T) {
	f := openFleet(t)
	s := service("web", 1)
	c := &s.Containers[0]
	c.Startup = &health.Check{TCP: &health.TCP{Port: 8080}, Interval: 20 * time.Millisecond, Failures: 100}
	c.Liveness = &health.Check{Exec: &health.Exec{Command: []string{"/program", "get=http://127.0.0.1:8080/healthy?liveness"}}, Interval: 50 * time.Millisecond}
	up(t, f, s)
	// The task itself answers also while it has no traffic.
	task := one(t, f, "web")
	direct := at(task.Addresses[orchestrate.DefaultNetwork][0], 8080)
	service := at(virtual(t, f, "web")[0], 80)
	events := watch(t, f)
	state := func(want orchestrate.State) {
		t.Helper()
		until(t, events, "the task is "+string(want), func(e orchestrate.Event) bool { return e.Task == task.ID && e.State == want })
	}
	get(t, direct, "/sick?readiness")
	state(orchestrate.Running)
	// The state is told first; the balancer follows within moments.
	refused := time.Now().Add(10 * time.Second)
	for {
		if _, err := ask(service, "/"); err != nil {
			break
		}
		if time.Now().After(refused) {
			t.Fatal("a task that is not ready still has traffic")
		}
	}
	get(t, direct, "/well?readiness")
	state(orchestrate.Ready)
	get(t, service, "/")

	get(t, direct, "/sick?liveness")
	e := until(t, events, "the container is restarted", func(e orchestrate.Event) bool {
		return e.Task == task.ID && e.State == orchestrate.Ready && e.Restarts == 1
	})
	if now := one(t, f, "web"); now.Failure == nil || now.Failure.Kind != orchestrate.FailedLiveness {
		t.Errorf("the task's last failure: got %+v, want liveness; event %+v", now.Failure, e)
	}
	get(t, service, "/")
}
