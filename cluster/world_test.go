//go:build linux

package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cluster"
	"github.com/orchestrate-go/orchestrate/cluster/clustertest"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/identity"
	"github.com/orchestrate-go/orchestrate/internal/leak"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/image"
	"github.com/orchestrate-go/orchestrate/store/etcd"
	"github.com/orchestrate-go/orchestrate/store/etcd/embed"
	"github.com/orchestrate-go/orchestrate/volume"
)

// machineEnv has, as JSON, what machine of a fleet the test's program is to be.
const machineEnv = "ORCHESTRATE_TEST_CLUSTER_MACHINE"

// program is the containers', made by TestMain, and folders is where clusters
// are.
var program, folders string

func TestMain(m *testing.M) {
	if text := os.Getenv(machineEnv); text != "" {
		if err := beMachine(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "package cluster:", err)
		return 1
	}
	if os.Geteuid() != 0 {
		return fail(errors.New("its tests need root"))
	}
	// Clusters that other packages test with are not there meanwhile.
	turn, err := os.Open("clustertest")
	if err == nil {
		defer turn.Close()
		err = syscall.Flock(int(turn.Fd()), syscall.LOCK_EX)
	}
	if err == nil {
		_, err = clustertest.Clean()
	}
	if err != nil {
		return fail(err)
	}
	if folders, err = os.MkdirTemp("", "orchestrate-cluster-"); err != nil {
		return fail(err)
	}
	defer os.RemoveAll(folders)
	program = filepath.Join(folders, "program")
	cmd := exec.Command("go", "build", "-o", program, "./testdata/program")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fail(fmt.Errorf("build the containers' program: %w\n%s", err, out))
	}
	code := m.Run()
	// Connections between members of etcd may take their five seconds to end.
	for end := time.Now().Add(15 * time.Second); code == 0; {
		if err = goleak.Find(); err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		return fail(err)
	}
	return code
}

const testImage = "orchestrate.test/program:1"

// world is a fleet of machines.
type world struct {
	testing.TB
	*clustertest.Cluster
	fleet    *cluster.Client
	control  *cluster.Control // control plane a, if it is of this process
	image    string           // with its digest
	controls []string
	nodes    []string
	opts     worldOptions
	pristine map[string]leak.Machine // of nodes before their agents began, with opts.here
}

type worldOptions struct {
	controls, nodes int
	v6              bool // the machines talk by IPv6
	encrypt         bool
	here            bool // control plane a is of the test's own process, for its calls
	cluster         clustertest.Options

	leaderTTL, nodeTTL, lostAfter, fenceGrace time.Duration
}

// newWorld makes a fleet of control planes a, b, … and nodes n1, n2, …, and
// looks at the end whether anything is left of it.
func newWorld(t testing.TB, opts worldOptions) *world {
	t.Helper()
	before, err := leak.Look()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{TB: t, opts: opts}
	for i := range opts.controls {
		w.controls = append(w.controls, string(rune('a'+i)))
	}
	for i := range opts.nodes {
		w.nodes = append(w.nodes, fmt.Sprintf("n%d", i+1))
	}
	hosts := slices.Concat(w.controls, w.nodes)
	if opts.here {
		hosts = hosts[1:]
	}
	opts.cluster.Names, opts.cluster.Dir = hosts, folders
	if w.Cluster, err = clustertest.New(opts.cluster); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			w.printLogs()
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		after, err := leak.Look(w.Dir())
		if err != nil {
			t.Error(err)
		}
		for _, left := range after.Since(before) {
			if strings.Contains(left, w.Dir()) || strings.Contains(left, "clustertest") || strings.HasPrefix(left, "interface: oct") {
				t.Errorf("left on this machine: %s", left)
			}
		}
	})
	if err := os.MkdirAll(w.shared("witness"), 0o777); err != nil {
		t.Fatal(err)
	}
	authority, err := identity.NewAuthority("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := authority.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{fileCert: cert, fileKey: key} {
		if err := os.WriteFile(w.shared(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	img, err := image.FromBinary(testImage, program, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w.image = runtime.Pinned(testImage, img.Digest())
	if opts.here {
		w.pristine = map[string]leak.Machine{}
		for _, node := range w.nodes {
			w.pristine[node] = w.look(node)
		}
	}
	for _, name := range hosts {
		w.start(name)
	}
	if opts.here {
		w.openControl(filepath.Join(w.Dir(), "a"), w.controlOptions())
	}
	w.ready(hosts...)
	token, err := os.ReadFile(w.shared(fileToken + operator))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	w.fleet, err = cluster.Dial(ctx, filepath.Join(w.Dir(), operator), cluster.ClientOptions{
		Name: operator, Control: w.addresses(w.controls), Token: string(token),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.fleet.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// openControl opens control plane a in this process.
func (w *world) openControl(dir string, opts cluster.ControlOptions) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
	defer cancel()
	c, err := cluster.OpenControl(ctx, dir, opts)
	if err != nil {
		w.Fatal(err)
	}
	w.control = c
	w.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.Error(err)
		}
	})
	if err := handTokens(ctx, c, w.shared(""), w.nodes); err != nil {
		w.Fatal(err)
	}
}

// controlOptions are those of control plane a in this process.
func (w *world) controlOptions() cluster.ControlOptions {
	w.Helper()
	cert, err1 := os.ReadFile(w.shared(fileCert))
	key, err2 := os.ReadFile(w.shared(fileKey))
	authority, err3 := identity.ParseAuthority(cert, key)
	if err := errors.Join(err1, err2, err3); err != nil {
		w.Fatal(err)
	}
	return cluster.ControlOptions{
		Name: "a", Members: w.members(), Authority: authority, Fleet: fleetOptions(w.opts.leaderTTL, w.opts.lostAfter),
	}
}

func (w *world) members() map[string]netip.Addr {
	all := map[string]netip.Addr{}
	for _, c := range w.controls {
		all[c] = w.address(c)
	}
	return all
}

func (w *world) shared(name string) string { return filepath.Join(w.Dir(), "shared", name) }

func (w *world) address(name string) netip.Addr {
	if w.opts.here && name == w.controls[0] {
		return w.IPv4
	}
	if w.opts.v6 {
		return w.Host(name).IPv6
	}
	return w.Host(name).IPv4
}

func (w *world) addresses(names []string) (all []netip.Addr) {
	for _, n := range names {
		all = append(all, w.address(n))
	}
	return all
}

// start starts a machine's program, for the first time or again.
func (w *world) start(name string) *clustertest.Process { return w.startJoining(name, nil) }

// startJoining starts it as what was invited, if it was.
func (w *world) startJoining(name string, join *embed.Invitation) *clustertest.Process {
	w.Helper()
	self, err := os.Executable()
	if err != nil {
		w.Fatal(err)
	}
	h := w.Host(name)
	m := machine{
		Role: "control", Name: name, Dir: filepath.Join(h.Dir, "state"), Program: program, Shared: w.shared(""),
		Members: w.members(), Nodes: w.nodes, Join: join,
		Encrypt: w.opts.encrypt, Stay: w.opts.here, LeaderTTL: w.opts.leaderTTL, NodeTTL: w.opts.nodeTTL, LostAfter: w.opts.lostAfter, FenceGrace: w.opts.fenceGrace,
		Level: slog.LevelWarn,
	}
	if slices.Contains(w.nodes, name) {
		m.Role = "agent"
	}
	text, err := json.Marshal(m)
	if err != nil {
		w.Fatal(err)
	}
	p, err := h.Start(clustertest.Program{Name: "machine", Path: self, Env: []string{machineEnv + "=" + string(text)}})
	if err != nil {
		w.Fatal(err)
	}
	return p
}

// process is a machine's.
func (w *world) process(name string) *clustertest.Process { return w.Host(name).Process("machine") }

// ready waits until machines have said that they take part.
func (w *world) ready(names ...string) {
	w.Helper()
	for _, name := range names {
		p := w.process(name)
		w.until(time.Minute, name+" is ready", func() bool {
			if !p.Running() {
				w.Fatalf("%s: %v\n%s", name, p.Wait(), p.Output(10000))
			}
			return strings.Contains(p.Output(1<<20), "ready\n")
		})
	}
}

// said is how often a machine's programs have said a line.
func (w *world) said(name, line string) int {
	return strings.Count(w.process(name).Output(1<<20), line)
}

// until waits for what must come to be.
func (w *world) until(patience time.Duration, what string, is func() bool) {
	w.Helper()
	deadline := time.Now().Add(patience)
	for !is() {
		if time.Now().After(deadline) {
			w.Fatalf("not after %v: %s", patience, what)
		}
		select {
		case <-w.Context().Done():
			w.Fatal(w.Context().Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (w *world) printLogs() {
	for _, h := range w.Hosts() {
		if p := h.Process("machine"); p != nil {
			w.Logf("%s says:\n%s", h.Name, p.Output(8000))
		}
	}
}

// web is a service that answers on every node.
func (w *world) web(replicas int, port uint16) orchestrate.Service {
	return orchestrate.Service{
		Name: "web", Replicas: replicas,
		Template: orchestrate.Template{
			Containers: []orchestrate.Container{{
				Image: w.image, Command: []string{"web"},
				Readiness: &health.Check{HTTP: &health.HTTP{Port: 8080}, Interval: 200 * time.Millisecond},
			}},
			Ports: []orchestrate.Port{{Port: 8080, Published: port}}, DrainDelay: -1, StopGrace: 2 * time.Second,
			// A storm may kill one container many times.
			Restart: orchestrate.RestartPolicy{Attempts: -1, MaxBackoff: time.Second},
		},
		Update: orchestrate.UpdatePolicy{Monitor: -1, ProgressDeadline: time.Minute, Parallelism: "100%"},
	}
}

// ledger is a stateful service that keeps lines.
func (w *world) ledger(replicas int, port uint16) orchestrate.Service {
	s := w.web(replicas, port)
	s.Name, s.Stateful = "ledger", &orchestrate.Stateful{Order: orchestrate.ParallelSlots}
	s.Containers[0].Command = []string{"ledger"}
	s.Containers[0].Mounts = []orchestrate.Mount{{Target: "/data", Volume: "data"}, {Target: "/witness", Bind: w.shared("witness")}}
	s.SlotVolumes = []volume.Volume{{Name: "data"}}
	return s
}

// up applies a service and waits until it is as it should be.
func (w *world) up(s orchestrate.Service) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
	defer cancel()
	// A write that etcd lost as it changed its leader may have happened, so the store
	// does not repeat it, and says so after seconds. The same spec again is no change.
	err := w.fleet.Apply(ctx, s)
	for errors.Is(err, etcd.ErrUnavailable) {
		w.Logf("apply %s again: %v", s.Name, err)
		err = w.fleet.Apply(ctx, s)
	}
	if err != nil {
		w.Fatal(err)
	}
	if r, err := w.fleet.Wait(ctx, s.Name); err != nil || r.Outcome != orchestrate.RolloutCompleted {
		w.Fatalf("%s: %+v, %v; want it completed", s.Name, r, err)
	}
}

// tasks are those of a service, or nothing while the store cannot be reached.
func (w *world) tasks(service string) []orchestrate.Task {
	ctx, cancel := context.WithTimeout(w.Context(), 5*time.Second)
	defer cancel()
	tasks, err := w.fleet.Tasks(ctx, service)
	if err != nil {
		return nil
	}
	return tasks
}

// client has a connection of its own for each request, so that each is balanced.
// A dial to a node that is cut off ends in time, too, although nobody waits for it.
var client = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
	DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: time.Second}).DialContext,
}}

// get asks a node.
func (w *world) get(node string, port uint16, path string) (string, error) {
	return w.getAt(w.address(node), port, path)
}

// getAt asks an address.
func (w *world) getAt(at netip.Addr, port uint16, path string) (string, error) {
	resp, err := client.Get("http://" + netip.AddrPortFrom(at, port).String() + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return strings.TrimSpace(string(body)), err
}
