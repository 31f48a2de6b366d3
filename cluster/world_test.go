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
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	containerdlog "github.com/containerd/log"
	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cluster"
	"github.com/orchestrate-go/orchestrate/cluster/clustertest"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/identity"
	"github.com/orchestrate-go/orchestrate/internal/leak"
	"github.com/orchestrate-go/orchestrate/network/overlay"
	"github.com/orchestrate-go/orchestrate/network/overlay/wireguard"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/image"
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
	if code == 0 {
		if err := goleak.Find(); err != nil {
			return fail(err)
		}
	}
	return code
}

// machine is one of a fleet.
type machine struct {
	Role    string // "control" or "agent"
	Name    string
	Dir     string
	Program string
	Shared  string // a folder of the test's, for what machines hand to each other

	Members map[string]netip.Addr // control planes
	Nodes   []string              // names, of agents

	Encrypt bool // what goes between nodes

	LeaderTTL, NodeTTL, LostAfter, FenceGrace time.Duration
	Level                                     slog.Level
}

// Files of the shared folder.
const (
	fileCert, fileKey = "authority.pem", "authority-key.pem"
	fileToken         = "token." // and the name of who joins
	operator          = "operator"
)

// beMachine runs a machine until SIGTERM.
func beMachine(text string) error {
	var m machine
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := containerdlog.SetLevel("error"); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: m.Level}))
	if m.Role == "control" {
		return m.control(ctx, log)
	}
	return m.agent(ctx, log)
}

func (m *machine) shared(name string) string { return filepath.Join(m.Shared, name) }

func (m *machine) control(ctx context.Context, log *slog.Logger) error {
	cert, err1 := os.ReadFile(m.shared(fileCert))
	key, err2 := os.ReadFile(m.shared(fileKey))
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	authority, err := identity.ParseAuthority(cert, key)
	if err != nil {
		return err
	}
	c, err := cluster.OpenControl(ctx, m.Dir, cluster.ControlOptions{
		Name: m.Name, Members: m.Members, Authority: authority, Logger: log,
		Fleet: []orchestrate.Option{
			orchestrate.WithLeaseTTL(m.LeaderTTL), orchestrate.WithLostAfter(m.LostAfter), orchestrate.WithLossLimit("1000"),
		},
	})
	if err != nil {
		return err
	}
	if m.Name == "a" {
		for _, name := range append([]string{operator}, m.Nodes...) {
			if _, err := os.Stat(m.shared(fileToken + name)); err == nil {
				continue
			}
			newToken := c.NewToken
			if name == operator {
				newToken = c.NewClientToken
			}
			token, err := newToken(ctx, name)
			if err == nil {
				err = os.WriteFile(m.shared(fileToken+name+".new"), []byte(token), 0o600)
			}
			if err == nil {
				err = os.Rename(m.shared(fileToken+name+".new"), m.shared(fileToken+name))
			}
			if err != nil {
				return errors.Join(err, c.Close())
			}
		}
	}
	fmt.Println("ready")
	select {
	case <-ctx.Done():
	case <-c.Done():
	}
	return c.Close()
}

// waitFile reads a file that another machine makes.
func waitFile(ctx context.Context, path string) (string, error) {
	for {
		data, err := os.ReadFile(path)
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return string(data), err
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("wait for %s: %w", path, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (m *machine) agent(ctx context.Context, log *slog.Logger) error {
	token, err := waitFile(ctx, m.shared(fileToken+m.Name))
	if err != nil {
		return err
	}
	var control []netip.Addr
	for _, a := range m.Members {
		control = append(control, a)
	}
	var encryption overlay.Encryption
	if m.Encrypt {
		encryption = wireguard.New(wireguard.Options{})
	}
	a, err := cluster.OpenAgent(ctx, m.Dir, cluster.AgentOptions{
		Name: m.Name, Address: ownAddress(control[0]), Control: control, Token: token,
		LeaseTTL: m.NodeTTL, FenceGrace: m.FenceGrace, BindRoots: []string{m.Shared}, Logger: log,
		Encryption: encryption,
	})
	if err != nil {
		return err
	}
	if img, err := image.FromBinary(testImage, m.Program, image.Options{}); err != nil {
		return errors.Join(err, a.Close())
	} else if _, err := a.Load(ctx, img); err != nil {
		return errors.Join(err, a.Close())
	}
	fmt.Println("ready")
	select {
	case <-ctx.Done():
	case <-a.Done():
	}
	return a.Close()
}

// ownAddress is this machine's on the way to another: nothing is sent.
func ownAddress(to netip.Addr) netip.Addr {
	c, err := net.Dial("udp", netip.AddrPortFrom(to, 9).String())
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
}

const testImage = "orchestrate.test/program:1"

// world is a fleet of machines.
type world struct {
	testing.TB
	*clustertest.Cluster
	fleet    *cluster.Client
	image    string // with its digest
	controls []string
	nodes    []string
	opts     worldOptions
}

type worldOptions struct {
	controls, nodes int
	v6              bool // the machines talk by IPv6
	encrypt         bool
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
	opts.cluster.Names, opts.cluster.Dir = slices.Concat(w.controls, w.nodes), folders
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
	for _, name := range slices.Concat(w.controls, w.nodes) {
		w.start(name)
	}
	w.ready(slices.Concat(w.controls, w.nodes)...)
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

func (w *world) shared(name string) string { return filepath.Join(w.Dir(), "shared", name) }

func (w *world) address(name string) netip.Addr {
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
func (w *world) start(name string) *clustertest.Process {
	w.Helper()
	self, err := os.Executable()
	if err != nil {
		w.Fatal(err)
	}
	h := w.Host(name)
	m := machine{
		Role: "control", Name: name, Dir: filepath.Join(h.Dir, "state"), Program: program, Shared: w.shared(""),
		Members: map[string]netip.Addr{}, Nodes: w.nodes,
		Encrypt: w.opts.encrypt, LeaderTTL: w.opts.leaderTTL, NodeTTL: w.opts.nodeTTL, LostAfter: w.opts.lostAfter, FenceGrace: w.opts.fenceGrace,
		Level: slog.LevelWarn,
	}
	if slices.Contains(w.nodes, name) {
		m.Role = "agent"
	}
	for _, c := range w.controls {
		m.Members[c] = w.address(c)
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
	if err := w.fleet.Apply(ctx, s); err != nil {
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
	resp, err := client.Get("http://" + netip.AddrPortFrom(w.address(node), port).String() + path)
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
