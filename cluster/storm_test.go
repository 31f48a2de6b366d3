//go:build linux

package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cluster/clustertest"
	"github.com/orchestrate-go/orchestrate/store"
)

// stormLength is how long faults go on: ORCHESTRATE_STORM, or a quarter of an hour
// in the long mode, or a moment.
func stormLength(t *testing.T) time.Duration {
	if text := os.Getenv("ORCHESTRATE_STORM"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("ORCHESTRATE_STORM: %v", err)
		}
		return d
	}
	if os.Getenv("ORCHESTRATE_LONG") != "" {
		return 15 * time.Minute
	}
	return 20 * time.Second
}

// TestStorm runs three services on six machines under load, two of them stateful,
// while machines' processes are killed and stopped, their links cut, and
// containers killed: first one fault at a time, then up to three. It holds the
// fleet to this:
//
//   - no Apply that was acknowledged is lost, and no line that a stateful service
//     has acknowledged;
//   - no slot is run twice, ever;
//   - no endpoint of a task that is dead, or cut off, is in the store for longer
//     than the node's lease and a second, counted from when etcd is in peace: an
//     election of its own begins the time of each lease anew (four times that, in
//     storms of less than ten minutes);
//   - half a minute after the last fault everything is as it should be (two minutes,
//     in storms of less than one);
//   - nothing is left, on a node or in the store, of what is gone.
//
// ORCHESTRATE_SEED repeats the choices of another run, if not their timing.
func TestStorm(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("ORCHESTRATE_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatal(err)
		}
	}
	opts := brisk
	opts.controls, opts.nodes = 3, 3
	var s *storm
	t.Cleanup(func() { // last of all, after what the machines say
		if s != nil && t.Failed() {
			others := func(line string) bool { return !strings.Contains(line, violated) }
			t.Logf("seed %d\n%s", seed, strings.Join(slices.DeleteFunc(s.told, others), "\n"))
		}
	})
	w := newWorld(t, opts)
	s = &storm{world: w, random: rand.New(rand.NewPCG(seed, 0)), active: map[string]bool{}, began: time.Now(), lines: map[string][]string{}}
	t.Cleanup(func() {
		if t.Failed() || os.Getenv("ORCHESTRATE_DEBUG") != "" {
			s.mu.Lock()
			defer s.mu.Unlock()
			t.Logf("seed %d\n%s", seed, strings.Join(s.told, "\n"))
		}
	})
	length := stormLength(t)
	// Shorter storms run beside other tests, on machines that are busy: they tell
	// the time, and hold to it that such an endpoint does go, and that the fleet does
	// come to rest.
	s.bound = s.opts.nodeTTL + time.Second
	rest := 30 * time.Second
	if length < 10*time.Minute {
		s.bound *= 4
	}
	if length < time.Minute {
		rest *= 4
	}
	w.up(w.web(3, webPort))
	w.up(w.ledger(2, ledgerPort))
	w.up(w.alone(2))

	ctx, cancel := context.WithCancel(t.Context())
	var loops sync.WaitGroup
	for _, loop := range []func(context.Context){s.apply, s.write, s.watch} {
		loops.Go(func() { loop(ctx) })
	}
	load := w.load(w.nodes, webPort, 100*time.Millisecond)
	s.blow(1, length/2)
	s.blow(3, length-length/2)
	calm := time.Now()
	s.tell("the last fault is over")
	s.converge(rest)
	t.Logf("everything was as it should be %v after the last fault", time.Since(calm).Round(100*time.Millisecond))
	load.stop()
	cancel()
	loops.Wait()

	s.checkLines()
	s.nothingMore()
	t.Logf("%d faults; %d Applies were acknowledged of %d; %d lines; %d requests, of which %d failed; the longest that an endpoint outlived its task was %v, in %d looks",
		s.faults, s.acknowledged, s.tried, s.written(), load.asked, len(load.failed), s.longest.Round(100*time.Millisecond), s.looks)
	s.empty()
}

const webPort, ledgerPort = 18080, 18081

// leaseExtension is what an etcd that was elected adds to the time of each lease,
// which it begins anew: its election timeout.
const leaseExtension = time.Second

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// alone is a stateful service without volumes: its slots go where there is a node,
// and must not be run twice nevertheless.
func (w *world) alone(replicas int) orchestrate.Service {
	s := w.ledger(replicas, 0)
	s.Name, s.SlotVolumes, s.Ports = "alone", nil, []orchestrate.Port{{Port: 8080}}
	s.Containers[0].Command = []string{"alone"}
	s.Containers[0].Mounts = s.Containers[0].Mounts[1:]
	return s
}

// storm is what happens to a world, and what is known of it.
type storm struct {
	*world
	random *rand.Rand    // of blow
	bound  time.Duration // for how long an endpoint may outlive its task
	began  time.Time

	mu           sync.Mutex // guards what follows
	told         []string
	active       map[string]bool // machines that a fault is under way on
	disturbed    time.Time       // when a control plane last had a fault
	cut          map[string]bool // nodes
	faults       int
	tried        int // Applies
	acknowledged int
	lines        map[string][]string // that were acknowledged, by slot
	looks        int
	longest      time.Duration
}

func (s *storm) tell(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = append(s.told, fmt.Sprintf("%6.1fs %s %s", time.Since(s.began).Seconds(), time.Now().UTC().Format("15:04:05.000"), fmt.Sprintf(format, args...)))
}

const violated = "VIOLATED: "

// violated tells what must not be, and lets the storm go on: the first of several
// is seldom the cause.
func (s *storm) violated(format string, args ...any) {
	s.Helper()
	s.tell(violated+format, args...)
	s.Errorf(format, args...)
}

// blow makes faults, so many at a time, for so long, and returns when all are
// over.
func (s *storm) blow(most int, length time.Duration) {
	s.tell("up to %d faults at a time", most)
	var wg sync.WaitGroup
	running := make(chan struct{}, most)
	machines := slices.Concat(s.controls, s.nodes)
	for end := time.Now().Add(length); time.Now().Before(end) && !s.Failed(); {
		running <- struct{}{}
		name, kind := machines[s.random.IntN(len(machines))], s.random.IntN(5)
		lasts := time.Duration(s.random.IntN(6000)) * time.Millisecond
		pause := time.Duration(200+s.random.IntN(1500)) * time.Millisecond
		share := 0.2 + 0.3*s.random.Float64()
		s.mu.Lock()
		busy := s.active[name]
		s.active[name] = true
		if !busy {
			s.faults++
		}
		s.mu.Unlock()
		if busy {
			<-running
			time.Sleep(50 * time.Millisecond)
			continue
		}
		wg.Go(func() {
			defer func() { <-running }()
			s.fault(name, kind, lasts, share)
			s.mu.Lock()
			delete(s.active, name)
			s.mu.Unlock()
		})
		time.Sleep(pause)
	}
	wg.Wait()
}

// fault makes one fault on a machine and undoes it.
func (s *storm) fault(name string, kind int, lasts time.Duration, share float64) {
	control := slices.Contains(s.controls, name)
	disturb := func() {
		if control {
			s.mu.Lock()
			s.disturbed = time.Now()
			s.mu.Unlock()
		}
	}
	disturb()
	defer disturb()
	must := func(err error) {
		if err != nil {
			s.Errorf("fault on %s: %v", name, err)
		}
	}
	h := s.Host(name)
	switch {
	case kind == 0:
		s.tell("%s: its process is killed, for %v", name, lasts)
		must(s.process(name).Kill())
		time.Sleep(lasts)
		s.start(name)
		s.tell("%s: it starts again", name)
	case kind == 1:
		s.tell("%s: its process is stopped, for %v", name, lasts)
		p := s.process(name)
		must(p.Stop())
		time.Sleep(lasts)
		must(p.Continue())
		s.tell("%s: it goes on", name)
	case kind == 2:
		s.tell("%s: its link is cut, for %v", name, lasts)
		s.setCut(name, true)
		must(h.Cut())
		time.Sleep(lasts)
		must(h.Heal())
		s.setCut(name, false)
		s.tell("%s: its link is healed", name)
	case kind == 3 && !control:
		pids := s.containers()[name]
		if len(pids) == 0 {
			return
		}
		i := int(share * 1000)
		all := slices.Sorted(maps.Keys(pids))
		task := all[i%len(all)]
		s.tell("%s: the process of %s is killed", name, task)
		if err := unix.Kill(pids[task], unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			must(err)
		}
	default:
		s.tell("%s: %.0f %% of what it sends is lost, for %v", name, 100*share, lasts)
		must(s.Lose(name, clustertest.Any, share))
		time.Sleep(lasts)
		must(s.Lose(name, clustertest.Any, 0))
		s.tell("%s: nothing is lost any more", name)
	}
}

func (s *storm) setCut(name string, cut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut == nil {
		s.cut = map[string]bool{}
	}
	s.cut[name] = cut
}

// apply applies web, over and over, with a label that counts, and now and then a
// new revision. What was acknowledged must be there, or something newer.
func (s *storm) apply(ctx context.Context) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	acknowledged := 0
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		service := s.web(3, webPort)
		service.Labels = map[string]string{"n": fmt.Sprint(n)}
		service.Containers[0].Env = map[string]string{"VERSION": fmt.Sprint(n / 40)}
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := s.fleet.Apply(call, service)
		if err == nil {
			acknowledged = n
		}
		s.mu.Lock()
		s.tried++
		if err == nil {
			s.acknowledged++
		}
		s.mu.Unlock()
		st, err := s.fleet.Get(call, "web")
		cancel()
		if err != nil {
			continue
		}
		var have int
		if _, err := fmt.Sscan(st.Labels["n"], &have); err != nil && acknowledged > 0 || have < acknowledged {
			s.violated("Apply %d was acknowledged, and the store has %q", acknowledged, st.Labels["n"])
		}
	}
}

// write has the ledger keep lines, through any node.
func (s *storm) write(ctx context.Context) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		line := fmt.Sprintf("line %d", n)
		slot, err := s.add(ctx, s.nodes[n%len(s.nodes)], line)
		if err != nil {
			continue // it may be there, or not
		}
		s.mu.Lock()
		s.lines[slot] = append(s.lines[slot], line)
		s.mu.Unlock()
	}
}

// watch looks at what must hold at each moment.
func (s *storm) watch(ctx context.Context) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	dead := map[string]time.Time{} // endpoints of tasks that are, and since when
	told := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if data, err := os.ReadFile(s.shared("witness/twice")); err == nil {
			s.violated("slots were run twice: %q", data)
			return
		}
		call, cancel := context.WithTimeout(ctx, 2*time.Second)
		snapshot, err := s.fleet.Store().List(call, "/endpoints/")
		cancel()
		if err != nil {
			continue
		}
		now := time.Now()
		s.mu.Lock()
		s.looks++
		disturbed := s.disturbed.Add(leaseExtension)
		for _, c := range s.controls {
			if s.active[c] {
				disturbed = now
			}
		}
		s.mu.Unlock()
		here, running := map[string]bool{}, s.containers()
		for _, item := range snapshot.Items {
			words := strings.Split(item.Key, "/") // /endpoints/NODE/NET/NS/SERVICE/TASK
			node, task := words[2], words[len(words)-1]
			s.mu.Lock()
			gone := s.cut[node]
			s.mu.Unlock()
			if _, runs := running[node][task]; runs && !gone {
				continue
			}
			if strings.Contains(string(item.Value), `"notReady":true`) {
				continue // a name, and no traffic
			}
			here[item.Key] = true
			since, known := dead[item.Key]
			if !known {
				s.tell("%s is the endpoint of a task that is dead or cut off (it runs: %v)", item.Key, running[node][task] != 0)
			}
			if !known || since.Before(disturbed) {
				since = later(now, disturbed)
				dead[item.Key] = since
			}
			s.mu.Lock()
			s.longest = max(s.longest, now.Sub(since))
			s.mu.Unlock()
			if now.Sub(since) > s.bound && !told[item.Key] {
				told[item.Key] = true
				s.violated("the endpoint %s has been there for %v since its task was dead or cut off", item.Key, now.Sub(since))
			}
		}
		for key := range dead {
			if !here[key] {
				delete(dead, key)
			}
		}
	}
}

// converge waits until everything is as it should be.
func (s *storm) converge(within time.Duration) {
	s.Helper()
	want := map[string]int{"web": 3, "ledger": 2, "alone": 2}
	why := ""
	deadline := time.Now().Add(within)
	for {
		before := why
		why = s.amiss(want)
		if why == "" {
			return
		}
		if why != before {
			s.tell("not at rest: %s", why)
		}
		if time.Now().After(deadline) {
			s.violated("%v after the last fault: %s", within, why)
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// amiss says what is not as it should be; empty when nothing is.
func (s *storm) amiss(want map[string]int) string {
	ctx, cancel := context.WithTimeout(s.Context(), 5*time.Second)
	defer cancel()
	if _, err := (store.Election{Store: s.fleet.Store()}).Leader(ctx); err != nil {
		return err.Error()
	}
	nodes, err := s.fleet.Nodes(ctx)
	if err != nil {
		return err.Error()
	}
	for _, n := range nodes {
		if !n.Alive {
			return n.ID + " is not alive"
		}
	}
	for service, n := range want {
		tasks, err := s.fleet.Tasks(ctx, service)
		if err != nil {
			return err.Error()
		}
		ready := 0
		for _, task := range tasks {
			if task.State == orchestrate.Ready && task.Stopping == "" {
				ready++
			}
		}
		if ready != n || len(tasks) != n {
			return fmt.Sprintf("%s has %d tasks of which %d are ready, want %d: %+v", service, len(tasks), ready, n, tasks)
		}
	}
	for _, node := range s.nodes {
		for _, port := range []uint16{webPort, ledgerPort} {
			if _, err := s.get(node, port, "/"); err != nil {
				return fmt.Sprintf("%s does not answer on %d: %v", node, port, err)
			}
		}
	}
	return ""
}

func (s *storm) written() (n int) {
	for _, lines := range s.lines {
		n += len(lines)
	}
	return n
}

// checkLines looks for every line that was acknowledged.
func (s *storm) checkLines() {
	s.Helper()
	for slot, want := range s.lines {
		var have map[string]bool
		s.until(20*time.Second, slot+" says what it has", func() bool {
			got, lines, err := s.read(s.nodes[0])
			if err != nil || got != slot {
				return false
			}
			have = map[string]bool{}
			for _, line := range lines {
				have[line] = true
			}
			return true
		})
		for _, line := range want {
			if !have[line] {
				s.violated("%s acknowledged %q and does not have it", slot, line)
				break
			}
		}
	}
	if len(s.lines) != 2 {
		s.violated("lines were acknowledged by %d slots, want 2", len(s.lines))
	}
}

// nothingMore compares what is on the nodes with what should be.
func (s *storm) nothingMore() {
	s.Helper()
	what := ""
	if !s.comes(20*time.Second, func() bool { what = s.tooMuch(); return what == "" }) {
		s.violated("nothing more than the tasks is there: %s", what)
	}
}

func (s *storm) comes(within time.Duration, is func() bool) bool {
	for deadline := time.Now().Add(within); ; time.Sleep(100 * time.Millisecond) {
		if is() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// tooMuch names what there is on nodes that no task accounts for, or is missing.
func (s *storm) tooMuch() string {
	tasks := map[string][]string{}
	for _, task := range s.tasks("") {
		tasks[task.Node] = append(tasks[task.Node], task.ID)
	}
	running := s.containers()
	for _, node := range s.nodes {
		want := slices.Sorted(slices.Values(tasks[node]))
		have := slices.Sorted(maps.Keys(running[node]))
		if !slices.Equal(have, want) {
			return fmt.Sprintf("%s runs containers of %v, its tasks are %v", node, have, want)
		}
		namespaces, err := s.namespacesOn(node)
		if err != nil {
			return err.Error()
		}
		if !slices.Equal(namespaces, want) {
			return fmt.Sprintf("%s has the namespaces %v, its tasks are %v", node, namespaces, want)
		}
	}
	for _, prefix := range []string{"/endpoints/", "/status/"} {
		snapshot, err := s.fleet.Store().List(s.Context(), prefix)
		if err != nil {
			return err.Error()
		}
		for _, item := range snapshot.Items {
			node, id := strings.Split(item.Key, "/")[2], item.Key[strings.LastIndex(item.Key, "/")+1:]
			if !slices.Contains(tasks[node], id) {
				return "the store has " + item.Key + ", of which there is no task"
			}
		}
	}
	return ""
}

// empty removes the services, and looks that they are gone.
func (s *storm) empty() {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
	defer cancel()
	if err := s.fleet.Remove(ctx, "web", "ledger", "alone"); err != nil {
		s.Error(err)
		return
	}
	for _, name := range []string{"web", "ledger", "alone"} {
		if r, err := s.fleet.Wait(ctx, name); err != nil && !errors.Is(err, orchestrate.ErrNotFound) {
			s.Errorf("remove %s: %+v, %v", name, r, err)
		}
	}
	s.nothingMore()
}
