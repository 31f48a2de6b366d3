// Quickstart runs a small web service on this machine with real containers and
// shows what a fleet does with it: it spreads requests, replaces what dies,
// scales, rolls out a new image, survives its own restart and cleans up.
//
// It needs root, containerd-shim-runc-v2 and runc; "make demo" gets them and
// runs it. The program is also the image: it carries the web server that its
// containers run, so a plain "go build" needs CGO_ENABLED=0. Started by itself
// it finds the two programs in the folder that ORCHESTRATE_BIN names, or on PATH.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
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
	switch {
	case len(os.Args) > 1 && os.Args[1] == "serve":
		err = serve()
	case len(os.Args) > 1 && os.Args[1] == "load":
		err = load(os.Args[2], os.Args[3:])
	default:
		dir := flag.String("dir", "/var/lib/orchestrate-quickstart", "folder of the fleet, removed at the end")
		port := flag.Int("port", 18080, "port to publish")
		verbose := flag.Bool("v", false, "log what the fleet does")
		flag.Parse()
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		err = demo(ctx, *dir, uint16(*port), *verbose)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// web is the service: three replicas behind one address and one port.
func web(image string, port uint16) orchestrate.Service {
	return orchestrate.Service{
		Name:     "web",
		Replicas: 3,
		Template: orchestrate.Template{
			Containers: []orchestrate.Container{{
				Image:     image,
				Resources: orchestrate.Resources{CPU: 50, MemoryLimit: 64 * orchestrate.MiB},
				Readiness: &health.Check{HTTP: &health.HTTP{Port: 8080, Path: "/healthy"}, Interval: 100 * time.Millisecond},
			}},
			Ports: []orchestrate.Port{{Port: 8080, Virtual: 80, Published: port}},
		},
		Update: orchestrate.UpdatePolicy{Monitor: 500 * time.Millisecond, ProgressDeadline: 30 * time.Second, Parallelism: "2"},
	}
}

func demo(ctx context.Context, dir string, port uint16, verbose bool) error {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelDebug
	}
	// containerd's packages log by a logger of the process, which is the
	// program's to set, not the library's.
	if err := containerdlog.SetLevel("error"); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	say := narrator()
	again := os.Getenv(restarted) != ""
	if !again {
		// Before the fleet is opened: one that a crash left behind publishes
		// the port as soon as it is open.
		if err := portFree(ctx, port); err != nil {
			return err
		}
		say("opening a fleet in %s", dir)
	}
	fleet, err := local.Open(dir, local.WithLogger(log))
	if err != nil {
		return errors.Join(err, endLoad(dir))
	}
	if again {
		err = afterRestart(ctx, fleet, dir, port, say)
	} else {
		err = beforeRestart(ctx, fleet, dir, port, say)
	}
	if err != nil {
		// What a failed demonstration made must not stay on the machine.
		err = errors.Join(err, endLoad(dir))
		if undo := fleet.Destroy(context.WithoutCancel(ctx)); !errors.Is(undo, orchestrate.ErrClosed) {
			err = errors.Join(err, undo)
		}
		return err
	}
	return nil
}

// portFree tells early, and by the name of the flag, that another program has
// the port.
func portFree(ctx context.Context, port uint16) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return fmt.Errorf("port %d cannot be published, choose another with -port: %w", port, err)
	}
	return l.Close()
}

func beforeRestart(ctx context.Context, fleet *local.Fleet, dir string, port uint16, say narrate) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	say("building images web:1 and web:2 from %s", filepath.Base(self))
	for _, ref := range []string{"web:1", "web:2"} {
		img, err := image.FromBinary(ref, self, image.Options{Command: []string{"serve"}, Env: []string{"VERSION=" + ref}})
		if err != nil {
			return err
		}
		if _, err := fleet.Load(ctx, img); err != nil {
			return err
		}
	}

	say("applying service web: 3 replicas of web:1, published on port %d", port)
	if err := fleet.Apply(ctx, web("web:1", port)); err != nil {
		return err
	}
	if err := completed(ctx, fleet, say); err != nil {
		return err
	}
	addresses, err := addresses(ctx, fleet, port)
	if err != nil {
		return err
	}
	if err := spread(ctx, addresses, 3, say); err != nil {
		return err
	}
	if err := startLoad(dir, addresses); err != nil {
		return err
	}
	say("load runs against %v until the end", addresses)

	if err := killOne(ctx, fleet, say); err != nil {
		return err
	}

	say("scaling to 5 replicas")
	if err := fleet.Scale(ctx, "web", 5); err != nil {
		return err
	}
	if err := completed(ctx, fleet, say); err != nil {
		return err
	}
	if err := spread(ctx, addresses, 5, say); err != nil {
		return err
	}

	say("rolling out web:2")
	second := web("web:2", port)
	second.Replicas = 5
	if err := fleet.Apply(ctx, second); err != nil {
		return err
	}
	if err := completed(ctx, fleet, say); err != nil {
		return err
	}
	if err := onlyVersion(ctx, addresses, "web:2", say); err != nil {
		return err
	}
	return restart(ctx, fleet, say)
}

func afterRestart(ctx context.Context, fleet *local.Fleet, dir string, port uint16, say narrate) error {
	if err := adopted(ctx, fleet, say); err != nil {
		return err
	}
	addresses, err := addresses(ctx, fleet, port)
	if err != nil {
		return err
	}
	if err := spread(ctx, addresses, 5, say); err != nil {
		return err
	}
	if err := stopLoad(dir, say); err != nil {
		return err
	}
	words, err := marks(ctx, fleet, dir)
	if err != nil {
		return err
	}
	say("removing everything")
	if err := fleet.Destroy(ctx); err != nil {
		return err
	}
	return nothingLeft(words, dir, say)
}
