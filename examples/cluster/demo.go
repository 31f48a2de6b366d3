//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cluster"
	"github.com/orchestrate-go/orchestrate/cluster/clustertest"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/identity"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/store"
)

const (
	operator = "operator" // this program, as the fleet knows it
	port     = 18080      // published on every node
)

var (
	controls = []string{"a", "b", "c"}
	nodes    = []string{"n1", "n2", "n3"}
)

// demonstration is a fleet and what is said of it.
type demonstration struct {
	machines *clustertest.Cluster
	fleet    *cluster.Client
	shared   string
	image    string
	began    time.Time
}

func (d *demonstration) say(format string, args ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

func demo(ctx context.Context, verbose bool) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	d := &demonstration{began: time.Now()}
	d.say("making six machines on this one: control planes %v and nodes %v", controls, nodes)
	d.machines, err = clustertest.New(clustertest.Options{Names: slices.Concat(controls, nodes)})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && verbose {
			for _, h := range d.machines.Hosts() {
				if p := h.Process("machine"); p != nil {
					fmt.Fprintf(os.Stderr, "%s says:\n%s", h.Name, p.Output(4000))
				}
			}
		}
		err = errors.Join(err, d.machines.Close())
		if err == nil {
			d.say("everything held, and everything is removed")
		}
	}()
	if err := d.begin(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.fleet.Close()) }()
	for _, step := range []func(context.Context) error{d.deploy, d.killLeader, d.cutNode} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// begin starts the machines' programs and dials the fleet.
func (d *demonstration) begin(ctx context.Context) error {
	d.shared = filepath.Join(d.machines.Dir(), "shared")
	if err := os.Mkdir(d.shared, 0o700); err != nil {
		return err
	}
	authority, err := identity.NewAuthority("example", 24*time.Hour)
	if err != nil {
		return err
	}
	cert, key, err := authority.Marshal()
	if err != nil {
		return err
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(d.shared, "authority.pem"), cert, 0o600),
		os.WriteFile(filepath.Join(d.shared, "authority-key.pem"), key, 0o600))
	if err != nil {
		return err
	}
	img, err := webImage()
	if err != nil {
		return err
	}
	d.image = runtime.Pinned(img.Ref(), img.Digest())
	for _, name := range slices.Concat(controls, nodes) {
		if err := d.start(name); err != nil {
			return err
		}
	}
	for _, name := range slices.Concat(controls, nodes) {
		if err := d.ready(ctx, name); err != nil {
			return err
		}
	}
	d.say("the control planes are one etcd, and the nodes have joined by tokens")
	token, err := handed(ctx, filepath.Join(d.shared, operator))
	if err != nil {
		return err
	}
	var members []netip.Addr
	for _, name := range controls {
		members = append(members, d.machines.Host(name).IPv4)
	}
	d.fleet, err = cluster.Dial(ctx, filepath.Join(d.machines.Dir(), operator), cluster.ClientOptions{
		Name: operator, Control: members, Token: token,
	})
	return err
}

// start runs a machine's program, which is this one.
func (d *demonstration) start(name string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	h := d.machines.Host(name)
	c := config{
		Name: name, Address: h.IPv4, Dir: filepath.Join(h.Dir, "state"), Shared: d.shared,
		Members: map[string]netip.Addr{}, Nodes: nodes,
	}
	for _, name := range controls {
		c.Members[name] = d.machines.Host(name).IPv4
	}
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	role := "agent"
	if slices.Contains(controls, name) {
		role = "control"
	}
	_, err = h.Start(clustertest.Program{Name: "machine", Path: self, Args: []string{role, string(text)}})
	return err
}

// ready waits until a machine takes part.
func (d *demonstration) ready(ctx context.Context, name string) error {
	p := d.machines.Host(name).Process("machine")
	return d.until(ctx, time.Minute, name+" is ready", func() (bool, error) {
		if !p.Running() {
			return false, fmt.Errorf("%s ended: %w\n%s", name, p.Wait(), p.Output(4000))
		}
		return strings.Contains(p.Output(1<<20), "ready\n"), nil
	})
}

// until waits for what must come to be within a time.
func (d *demonstration) until(ctx context.Context, within time.Duration, what string, is func() (bool, error)) error {
	for deadline := time.Now().Add(within); ; {
		ok, err := is()
		if ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s within %v: %w", what, within, errNotHeld)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// web is the service: a task on each node, and its port published on all.
func (d *demonstration) web(version string) orchestrate.Service {
	return orchestrate.Service{
		Name: "web", Replicas: 3,
		Template: orchestrate.Template{
			Containers: []orchestrate.Container{{
				Image: d.image, Env: map[string]string{"VERSION": version},
				Resources: orchestrate.Resources{CPU: 50, MemoryLimit: 64 * orchestrate.MiB},
				Readiness: &health.Check{HTTP: &health.HTTP{Port: 8080}, Interval: 200 * time.Millisecond},
			}},
			Ports: []orchestrate.Port{{Port: 8080, Published: port}},
		},
		Update: orchestrate.UpdatePolicy{Monitor: -1, ProgressDeadline: time.Minute},
	}
}

// leader is who leads; nobody when it cannot be told.
func (d *demonstration) leader(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	l, err := (store.Election{Store: d.fleet.Store()}).Leader(ctx)
	if err != nil {
		return ""
	}
	return l.ID
}

// serving are the nodes of the service's ready tasks.
func (d *demonstration) serving(ctx context.Context) (on []string, all int) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	tasks, err := d.fleet.Tasks(ctx, "web")
	if err != nil {
		return nil, -1
	}
	for _, t := range tasks {
		if t.State == orchestrate.Ready && t.Stopping == "" {
			on = append(on, t.Node)
		}
	}
	slices.Sort(on)
	return on, len(tasks)
}
