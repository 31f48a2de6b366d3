// Rollout shows a canary on real containers: a new version is tried by one task
// beside the old ones, and promoted by its health alone; a bad one is given up
// at the cost of nothing. It prints what happens, and when, and cleans up.
//
// It needs root, containerd-shim-runc-v2 and runc, in the folder that
// ORCHESTRATE_BIN names or on PATH. The program is also the image, so a plain
// "go build" needs CGO_ENABLED=0.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	containerdlog "github.com/containerd/log"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/local"
	"github.com/orchestrate-go/orchestrate/runtime/image"
)

func main() {
	var err error
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		err = serve()
	} else {
		dir := flag.String("dir", "/var/lib/orchestrate-rollout", "folder of the fleet, removed at the end")
		flag.Parse()
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		err = demo(ctx, *dir)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "rollout:", err)
		os.Exit(1)
	}
}

// serve is what the containers run: a web server that is healthy, unless it is
// of the bad version.
func serve() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	server := &http.Server{Addr: ":8080", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if os.Getenv("VERSION") == "web:3" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		fmt.Fprintln(w, os.Getenv("VERSION"))
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return server.Shutdown(context.Background())
	}
}

// web is three replicas of a version, which a new one is tried beside: it is
// promoted once it has been healthy for three seconds more.
func web(version string) orchestrate.Service {
	return orchestrate.Service{
		Name:     "web",
		Replicas: 3,
		Template: orchestrate.Template{
			Containers: []orchestrate.Container{{
				Image:     version,
				Resources: orchestrate.Resources{CPU: 50, MemoryLimit: 64 * orchestrate.MiB},
				Readiness: &health.Check{HTTP: &health.HTTP{Port: 8080, Path: "/"}, Interval: 100 * time.Millisecond},
			}},
			Ports: []orchestrate.Port{{Port: 8080, Virtual: 80}},
		},
		Update: orchestrate.UpdatePolicy{
			Strategy:         orchestrate.CanaryUpdate,
			Canary:           orchestrate.Canary{Tasks: "1", Bake: 3 * time.Second},
			Monitor:          500 * time.Millisecond,
			ProgressDeadline: 5 * time.Second,
		},
	}
}

func demo(ctx context.Context, dir string) (err error) {
	if err := containerdlog.SetLevel("error"); err != nil { // the process's logger
		return err
	}
	begun := time.Now()
	say := func(format string, args ...any) {
		fmt.Printf("%6.1fs  %s\n", time.Since(begun).Seconds(), fmt.Sprintf(format, args...))
	}
	fleet, err := local.Open(dir)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, fleet.Destroy(context.WithoutCancel(ctx)))
		if err == nil {
			say("all is removed")
		}
	}()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, version := range []string{"web:1", "web:2", "web:3"} {
		img, err := image.FromBinary(version, self, image.Options{Command: []string{"serve"}, Env: []string{"VERSION=" + version}})
		if err != nil {
			return err
		}
		if _, err := fleet.Load(ctx, img); err != nil {
			return err
		}
	}

	following, stop := context.WithCancel(ctx)
	events, err := fleet.Watch(following)
	if err != nil {
		stop()
		return err
	}
	told := make(chan struct{})
	defer func() { stop(); <-told }()
	go func() {
		defer close(told)
		tell(events, say)
	}()

	for _, step := range []struct {
		version string
		want    orchestrate.Outcome
		back    bool // to the version before
	}{
		{"web:1", orchestrate.RolloutCompleted, false},
		{"web:2", orchestrate.RolloutCompleted, false},
		{"web:3", orchestrate.RolloutFailed, true},
	} {
		say("applying %s", step.version)
		if err := fleet.Apply(ctx, web(step.version)); err != nil {
			return err
		}
		r, err := fleet.Wait(ctx, "web")
		if err != nil {
			return err
		}
		if r.Outcome != step.want || step.back != (r.Rollback != nil && r.Rollback.Outcome == orchestrate.RolloutCompleted) {
			return fmt.Errorf("%v; want %s", r, step.want)
		}
		say("%s: %s, %d of %d tasks serve, %d of them of %s", step.version, r.Outcome, r.Ready, r.Desired, r.Updated, step.version)
	}
	return nil
}

// tell prints each phase of a rollout as it begins.
func tell(events <-chan orchestrate.Event, say func(string, ...any)) {
	var last string
	for e := range events {
		if e.Rollout == nil {
			continue
		}
		r := e.Rollout
		now := fmt.Sprintf("revision %d: %s", r.Revision, r.Phase)
		switch {
		case r.Outcome == orchestrate.RolloutFailed:
			now = fmt.Sprintf("revision %d has failed in phase %s: %s", r.Revision, r.Phase, r.Reason)
		case r.Outcome != "":
			now = fmt.Sprintf("revision %d has %s", r.Revision, r.Outcome)
		case r.Phase == orchestrate.PhaseBake:
			now += fmt.Sprintf(" of %d canary beside %d tasks", r.Updated, r.Desired)
		}
		if now != last {
			say("  %s", now)
			last = now
		}
	}
}
