//go:build unix

package etcd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	networkmemory "github.com/orchestrate-go/orchestrate/network/memory"
	"github.com/orchestrate-go/orchestrate/node"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/etcd"
	"github.com/orchestrate-go/orchestrate/store/etcd/internal/etcdtest"
	volumememory "github.com/orchestrate-go/orchestrate/volume/memory"
)

// loops runs what runs until the test ends.
type loops struct {
	ctx     context.Context
	wg      sync.WaitGroup
	closers []io.Closer // of what the loops use
}

func newLoops(t testing.TB) *loops {
	ctx, cancel := context.WithCancel(context.Background())
	l := &loops{ctx: ctx}
	t.Cleanup(func() {
		cancel()
		l.wg.Wait()
		var closing sync.WaitGroup
		for _, c := range l.closers {
			closing.Go(func() {
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		closing.Wait()
	})
	return l
}

// dial opens a store that is closed after the loops.
func (l *loops) dial(t testing.TB, endpoints []string) *etcd.Store {
	t.Helper()
	s, err := etcd.Open(etcd.Options{Endpoints: endpoints, Prefix: "/", Timeout: 3 * time.Second, Logger: etcdtest.Logger()})
	if err != nil {
		t.Fatal(err)
	}
	l.closers = append(l.closers, s)
	return s
}

func (l *loops) run(t testing.TB, what string, run func(context.Context) error) {
	l.wg.Go(func() {
		if err := run(l.ctx); err != nil && l.ctx.Err() == nil {
			t.Errorf("%s: Run returned %v", what, err)
		}
	})
}

// agents runs nodes whose containers are in memory.
func (l *loops) agents(t *testing.T, endpoints []string, n int) {
	t.Helper()
	for i := range n {
		rt, network := runtimememory.New(runtimememory.Options{}), networkmemory.New(networkmemory.Options{})
		agent, err := node.New(l.dial(t, endpoints), node.Options{
			Node:    scheduler.Node{ID: fmt.Sprint("n", i), Capacity: scheduler.Resources{CPU: 8000, Memory: 8 << 30}},
			Runtime: rt, Network: network, Namespaces: network, Balancer: network,
			Volumes: new(volumememory.Driver), Dir: t.TempDir(), LeaseTTL: 2 * time.Second, Logger: etcdtest.Logger(),
		})
		if err != nil {
			t.Fatal(err)
		}
		l.closers = append(l.closers, rt)
		l.run(t, fmt.Sprint("agent ", i), agent.Run)
	}
}

func (l *loops) fleet(t *testing.T, id string, s store.Store) *orchestrate.Fleet {
	t.Helper()
	f, err := orchestrate.New(s, orchestrate.WithID(id), orchestrate.WithLeaseTTL(2*time.Second), orchestrate.WithLogger(etcdtest.Logger()))
	if err != nil {
		t.Fatal(err)
	}
	l.run(t, id, f.Run)
	return f
}

func web(version int) orchestrate.Service {
	return orchestrate.Service{
		Name: "web", Replicas: 4,
		Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: fmt.Sprint("img:", version)}}},
		Update:   orchestrate.UpdatePolicy{Monitor: 100 * time.Millisecond, Parallelism: "4"},
	}
}

// rollOut applies a version by one fleet and waits for it by another, as users
// do: again, when etcd was away.
func rollOut(t *testing.T, by, seenBy *orchestrate.Fleet, version int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	for {
		err := by.Apply(ctx, web(version))
		if err == nil {
			break
		}
		if !errors.Is(err, etcd.ErrUnavailable) {
			t.Fatalf("Apply of version %d: %v", version, err)
		}
	}
	for {
		result, err := seenBy.Wait(ctx, "web")
		switch {
		case err == nil && result.Outcome != orchestrate.RolloutCompleted:
			t.Fatalf("version %d: %v", version, result)
		case err == nil:
			tasks, err := seenBy.Tasks(ctx, "web")
			if err != nil && !errors.Is(err, etcd.ErrUnavailable) {
				t.Fatal(err)
			}
			ready := 0
			for _, task := range tasks {
				if task.State == orchestrate.Ready {
					ready++
				}
			}
			if ready >= 4 {
				return
			}
		case !errors.Is(err, etcd.ErrUnavailable):
			t.Fatalf("Wait for version %d: %v", version, err)
		}
	}
}

// leader waits until one of the fleets leads, other than not.
func leader(t *testing.T, s store.Store, not string) store.Leader {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		if l, err := (store.Election{Store: s}).Leader(t.Context()); err == nil && l.ID != not {
			return l
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("nobody but %q leads after a minute", not)
	return store.Leader{}
}

// TestFleetOverMembersThatDie rolls out one version after the other, by three
// control planes on two nodes, while one member of etcd after the other is
// killed and comes back.
func TestFleetOverMembersThatDie(t *testing.T) {
	c := etcdtest.New(t, 3)
	l := newLoops(t)
	var fleets []*orchestrate.Fleet
	for _, id := range []string{"a", "b", "c"} {
		fleets = append(fleets, l.fleet(t, id, l.dial(t, c.Endpoints())))
	}
	l.agents(t, c.Endpoints(), 2)
	version := 1
	rollOut(t, fleets[0], fleets[1], version)
	for i := range c.Len() {
		c.Kill(i)
		version++
		rollOut(t, fleets[version%3], fleets[(version+1)%3], version)
		c.Start(i)
		version++
		rollOut(t, fleets[version%3], fleets[(version+1)%3], version)
	}
}

// TestLeaderThatIsCutOff cuts the leading control plane off from etcd. Another
// leads, and it goes on; what the first one sends late does not count.
func TestLeaderThatIsCutOff(t *testing.T) {
	c := etcdtest.New(t, 3)
	l := newLoops(t)
	proxies := c.Proxies()
	var endpoints []string
	for _, p := range proxies {
		endpoints = append(endpoints, p.URL())
	}
	look := dial(t, c.Endpoints())
	first := l.fleet(t, "first", l.dial(t, endpoints))
	before := leader(t, look, "")
	second := l.fleet(t, "second", l.dial(t, c.Endpoints()))
	l.agents(t, c.Endpoints(), 1)
	rollOut(t, first, second, 1)

	for _, p := range proxies {
		p.Cut("")
	}
	after := leader(t, look, "first")
	if after.Term <= before.Term {
		t.Errorf("term %d after %d, want it to grow", after.Term, before.Term)
	}
	rollOut(t, second, second, 2)
	if err := first.Apply(t.Context(), web(3)); !errors.Is(err, etcd.ErrUnavailable) {
		t.Errorf("Apply by the fleet that is cut off: %v, want ErrUnavailable", err)
	}
	for _, p := range proxies {
		p.Heal("")
	}
	_, err := look.Commit(t.Context(), store.Txn{
		If:     []store.Condition{{Key: "/leader", Revision: before.Term}},
		Writes: []store.Write{store.Put("/late", nil)},
	})
	if !errors.Is(err, store.ErrConflict) {
		t.Errorf("commit under the first leader's fence: %v, want ErrConflict", err)
	}
	rollOut(t, second, first, 4) // both serve again
}

// leaderEnv has the endpoints for the test's program when it is to lead.
const leaderEnv = "ORCHESTRATE_TEST_ETCD_LEADER"

// lead campaigns, says "leading", waits for a line, and then commits under its
// fence at once and says what came of it, as a planner would that was paused
// between deciding and writing.
func lead(endpoints string) error {
	s, err := etcd.Open(etcd.Options{Endpoints: strings.Split(endpoints, ","), Prefix: "/"})
	if err != nil {
		return err
	}
	l, err := store.Election{Store: s, ID: "paused", TTL: 2 * time.Second}.Campaign(context.Background())
	if err != nil {
		return err
	}
	fmt.Println("leading")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	for {
		_, err = s.Commit(context.Background(), store.Txn{
			If:     []store.Condition{l.Fence()},
			Writes: []store.Write{store.Put("/late", []byte("paused"))},
		})
		if !errors.Is(err, etcd.ErrUnavailable) { // its connection may have died of the pause
			break
		}
	}
	fmt.Println("conflict", errors.Is(err, store.ErrConflict))
	<-l.Done()
	fmt.Println("deposed", errors.Is(l.Err(), store.ErrDeposed))
	return nil
}

// TestLeaderThatIsStopped stops a leading process with SIGSTOP for longer than
// its lease.
func TestLeaderThatIsStopped(t *testing.T) {
	c := etcdtest.New(t, 1)
	process := exec.Command(os.Args[0], "-test.run=^$")
	process.Env = append(os.Environ(), leaderEnv+"="+strings.Join(c.Endpoints(), ","))
	process.Stderr = os.Stderr
	in, err := process.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = process.Process.Kill()
		_ = process.Wait()
	}()
	lines := bufio.NewScanner(out)
	expect := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("the leader says %q (%v), want %q", lines.Text(), lines.Err(), want)
		}
	}
	expect("leading")
	if err := process.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// It has stopped once its last thread has, and not when the signal is sent.
	var stopped syscall.WaitStatus
	if _, err := syscall.Wait4(process.Process.Pid, &stopped, syscall.WUNTRACED, nil); err != nil || !stopped.Stopped() {
		t.Fatalf("the leader is %v, %v, want it stopped", stopped, err)
	}
	if _, err := io.WriteString(in, "commit\n"); err != nil {
		t.Fatal(err)
	}
	s := dial(t, c.Endpoints())
	second, err := store.Election{Store: s, ID: "second", TTL: 2 * time.Second}.Campaign(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	expect("conflict true")
	expect("deposed true")
	if _, found, err := s.Get(t.Context(), "/late"); found || err != nil {
		t.Errorf("the write of the stopped leader: found %v, %v; want it refused", found, err)
	}
	if err := second.Resign(t.Context()); err != nil {
		t.Error(err)
	}
}
