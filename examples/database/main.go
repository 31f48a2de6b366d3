// Database runs a real database server, Debian's Redis, as a stateful service on
// real containers, and shows that it loses nothing: two slots with a volume each
// are written to without a pause while a server is killed, its node is drained,
// the service is updated and scaled, and a node is lost.
//
// It needs root, containerd-shim-runc-v2 and runc, and the folder that
// scripts/database.sh packs; scripts/setup.sh gets them all. The image is built
// from the folder, on this machine. One machine stands for two nodes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	containerdlog "github.com/containerd/log"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/local"
	"github.com/orchestrate-go/orchestrate/runtime/image"
	"github.com/orchestrate-go/orchestrate/volume"
)

func main() {
	dir := flag.String("dir", "/var/lib/orchestrate-database", "folder of the fleet, removed at the end")
	root := flag.String("redis", ".cache/redis", "folder that the image is built from; scripts/database.sh makes it")
	verbose := flag.Bool("v", false, "log what the fleet does")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := demo(ctx, *dir, *root, *verbose)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "database:", err)
		os.Exit(1)
	}
}

// db is the service: slots db-0, db-1, … with a volume each.
func db(replicas int, maxClients string, whenScaled orchestrate.VolumePolicy) orchestrate.Service {
	return orchestrate.Service{
		Name:     "db",
		Replicas: replicas,
		Stateful: &orchestrate.Stateful{WhenScaled: whenScaled},
		Template: orchestrate.Template{
			Containers: []orchestrate.Container{{
				Image: "redis:local",
				User:  "redis:redis", Dir: "/data",
				// What was acknowledged is on the disk.
				Command: []string{
					"--dir", "/data", "--appendonly", "yes", "--appendfsync", "always", "--save", "",
					"--protected-mode", "no", "--maxclients", maxClients,
				},
				Resources: orchestrate.Resources{CPU: 50, MemoryLimit: 128 * orchestrate.MiB},
				Mounts:    []orchestrate.Mount{{Target: "/data", Volume: "data"}},
				Readiness: &health.Check{Exec: &health.Exec{Command: []string{"/usr/bin/redis-cli", "-e", "ping"}}, Interval: 250 * time.Millisecond},
			}},
			SlotVolumes: []volume.Volume{{Name: "data", Options: map[string]string{"uid": "999", "gid": "999"}}},
			Ports:       []orchestrate.Port{{Name: "redis", Port: 6379}},
			DrainDelay:  -1,
		},
		Update: orchestrate.UpdatePolicy{Monitor: 500 * time.Millisecond, ProgressDeadline: 2 * time.Minute},
	}
}

func demo(ctx context.Context, dir, root string, verbose bool) (err error) {
	level := slog.LevelError
	if verbose {
		level = slog.LevelDebug
	}
	// containerd's packages log by a logger of the process, which is the
	// program's to set, not the library's.
	if err := containerdlog.SetLevel("error"); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	img, err := image.FromDir("redis:local", root, image.Options{
		Entrypoint: []string{"/usr/bin/redis-server"}, Volumes: []string{"/data"},
	})
	if err != nil {
		return fmt.Errorf("%w; make the folder by scripts/database.sh", err)
	}
	began := time.Now()
	d := &demonstration{say: func(format string, args ...any) {
		fmt.Printf("%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}}
	d.say("opening a fleet of two nodes, east and west, in %s", dir)
	d.fleet, err = local.Open(dir, local.WithLogger(log), local.WithNode("east", nil), local.WithNodes("west"),
		// So that no more than the node's own promise is waited for.
		local.WithFleetOptions(orchestrate.WithLostAfter(time.Second)))
	if err != nil {
		return err
	}
	defer func() {
		d.stopWriting()
		// What a demonstration made must not stay on the machine.
		if undo := d.fleet.Destroy(context.WithoutCancel(ctx)); !errors.Is(undo, orchestrate.ErrClosed) {
			err = errors.Join(err, undo)
		}
		if err == nil {
			d.say("everything is removed")
		}
	}()
	d.say("building an image of %s from %s: %.1f MB", img.Ref(), root, float64(img.Size())/1e6)
	if _, err := d.fleet.Load(ctx, img); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{d.start, d.kill, d.move, d.update, d.scale, d.lose, d.shrink} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}
