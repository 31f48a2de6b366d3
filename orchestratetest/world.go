package orchestratetest

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cron"
	"github.com/orchestrate-go/orchestrate/internal/moment"
	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
	storememory "github.com/orchestrate-go/orchestrate/store/memory"
	volumememory "github.com/orchestrate-go/orchestrate/volume/memory"
)

// world is a simulated fleet and all around it. It lives in a bubble of
// testing/synctest, on whose first goroutine the driver runs: it alone decides
// what happens next, and looks only when everything else is parked.
type world struct {
	scenario Scenario
	began    time.Time
	bell     chan struct{} // rung by who comes to the gate
	running  sync.WaitGroup
	self     *actor // whoever does what no component does, such as the end of a lease

	// mu guards what follows. The driver has it while it acts; others while they
	// come to the gate, and no longer.
	mu       sync.Mutex
	arrived  []*op
	active   [classes][]*actor
	agenda   agenda
	dues     int // made so far
	admitted int
	broken   []error // why processes ended by themselves

	store    store.Store
	shared   *shared
	recent   []store.Batch // the last commits
	fabric   *fabric
	machines []*machine
	byID     map[string]*machine
	planes   []*plane
	app      *process
	apps     *orchestrate.Fleet // that of the application

	weather weather
	history *history
	view    *View
	slots   map[string]map[string]began // of stateful services: where each task was started
	bounds  map[*Eventual]*due
	checks  map[int]func(*View) error // of invariants that remember
	reached map[string]bool           // of AtLeast, by name
	failure *Violation
	steps   int
	faults  int
	ended   bool
}

// After how many steps at one moment, and how many more for each machine, it is
// taken for granted that they have no end.
const restless, restlessEach = 50_000, 1_000

// recentCommits is how many commits a watch can be behind when it begins.
const recentCommits = 4096

func newWorld(s Scenario) (*world, error) {
	w := &world{
		scenario: s, began: time.Now(), bell: make(chan struct{}, 1),
		byID: map[string]*machine{}, history: newHistory(s.Keep), bounds: map[*Eventual]*due{}, reached: map[string]bool{}, slots: map[string]map[string]began{},
	}
	w.self = &actor{world: w, id: "world", order: -1}
	w.store = storememory.New(storememory.Options{History: 1})
	w.shared = newShared(w, w.store)
	w.fabric = &fabric{world: w, pools: map[string][]*network.Pool{}}
	w.view = newView(w)
	w.weather = newWeather()
	order := 0
	newActor := func(id string) *actor {
		order++
		return &actor{world: w, id: id, order: order}
	}
	w.app = &process{actor: newActor("application")}
	for i := range s.ControlPlanes {
		w.planes = append(w.planes, &plane{process: process{actor: newActor(fmt.Sprintf("control%d", i+1))}})
	}
	for g := range s.Nodes {
		group := &s.Nodes[g]
		for i := range group.Count {
			id := fmt.Sprintf("%s%d", group.Name, i+1)
			labels := maps.Clone(group.Labels)
			if len(group.Zones) > 0 {
				if labels == nil {
					labels = map[string]string{}
				}
				labels["zone"] = group.Zones[i%len(group.Zones)]
			}
			m := &machine{
				process: process{actor: newActor(id)}, group: group, volumes: new(volumememory.Driver),
				node: scheduler.Node{ID: id, Hostname: id, Labels: labels, Capacity: scheduler.Resources{CPU: group.CPU, Memory: group.Memory},
					Platform: scheduler.Platform{OS: "linux", Arch: "amd64"}},
			}
			if w.byID[id] != nil {
				return nil, fmt.Errorf("orchestratetest: two nodes are named %q; give each NodeGroup a Name of its own", id)
			}
			w.byID[id] = m
			w.machines = append(w.machines, m)
		}
	}
	if err := w.mistake(); err != nil {
		return nil, err
	}
	fleet, err := orchestrate.New(client{w.shared, w.app.actor}, append([]orchestrate.Option{orchestrate.WithID("application")}, w.options()...)...)
	if err != nil {
		return nil, err
	}
	w.apps = fleet
	return w, nil
}

// options are those of the scenario, and before them what all fleets have.
func (w *world) options() []orchestrate.Option {
	opts := []orchestrate.Option{orchestrate.WithSchedules(cron.Parse)}
	if w.scenario.Options != nil {
		opts = append(opts, w.scenario.Options()...)
	}
	return opts
}

// since is the virtual time since the begin.
func (w *world) since() time.Duration { return time.Since(w.began) }

// run simulates until the scenario's end, or the first violation.
func (w *world) run() error {
	w.mu.Lock()
	for _, p := range w.planes {
		if err := p.boot(); err != nil {
			w.mu.Unlock()
			return err
		}
	}
	for _, m := range w.machines {
		if err := m.boot(); err != nil {
			w.mu.Unlock()
			return err
		}
	}
	if len(w.scenario.Objects) > 0 {
		w.act("apply", func(ctx context.Context, f *orchestrate.Fleet) error {
			err := Apply{Objects: w.scenario.Objects}.call(ctx, f)
			if err != nil {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.failed("the objects are applied", err)
			}
			return err
		})
	}
	w.plan()
	w.mu.Unlock()

	end := w.began.Add(w.scenario.For)
	timer := time.NewTimer(0)
	defer timer.Stop()
	busy, moment := 0, time.Now()
	for {
		synctest.Wait()
		if w.admit() {
			if now := time.Now(); now.After(moment) {
				busy, moment = 0, now
			}
			if busy++; busy > restless+restlessEach*len(w.machines) {
				w.mu.Lock()
				w.violated("the fleet comes to rest", fmt.Errorf("%d steps at one moment, and no end", busy))
				w.mu.Unlock()
			}
			w.check()
			if w.failure != nil {
				return nil
			}
			continue
		}
		w.mu.Lock()
		next, now := end, time.Now()
		if len(w.agenda) > 0 && !w.agenda[0].at.After(now) {
			// Calls that have taken their time are let in together.
			d := heap.Pop(&w.agenda).(*due)
			d.do()
			for d.order >= 0 && len(w.agenda) > 0 && w.agenda[0].order >= 0 && !w.agenda[0].at.After(now) {
				d = heap.Pop(&w.agenda).(*due)
				d.do()
			}
			w.mu.Unlock()
			w.check()
			if w.failure != nil {
				return nil
			}
			continue
		}
		for _, err := range w.broken {
			w.violated("process", err)
		}
		if len(w.agenda) > 0 && w.agenda[0].at.Before(next) {
			next = w.agenda[0].at
		}
		w.mu.Unlock()
		if w.failure == nil && !now.Before(end) {
			w.checkEnd()
			return nil
		}
		if w.failure != nil {
			return nil
		}
		timer.Reset(time.Until(next))
		select {
		case <-w.bell:
		case <-timer.C:
		}
	}
}

// close ends every process and waits for their goroutines.
func (w *world) close() {
	w.mu.Lock()
	w.ended = true
	for _, p := range w.planes {
		p.kill()
	}
	for _, m := range w.machines {
		m.kill()
		if !m.off {
			rt := m.runtime.Runtime
			w.running.Go(func() { rt.Close() })
		}
	}
	w.app.dead = true
	w.drop(w.app.actor)
	w.mu.Unlock()
	w.apps.Close()
	w.running.Wait()
	w.store.Close()
}

// act has the application do something, on a goroutine of its own. mu is held.
func (w *world) act(name string, do func(ctx context.Context, f *orchestrate.Fleet) error) {
	w.running.Go(func() {
		ctx := moment.In(context.Background(), w.app.actor)
		err := do(ctx, w.apps)
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.ended {
			return
		}
		detail := "done"
		if err != nil {
			detail = err.Error()
		}
		if wrong := new(orchestrate.ValidationError); errors.As(err, &wrong) {
			w.failed("what is applied is valid", err) // whatever was to be tested by it was not
		}
		w.note(Event{Kind: Acted, Subject: name, Detail: detail})
	})
}

// failed ends the run, for who is not the driver, which alone may do that. mu is held.
func (w *world) failed(name string, err error) {
	w.after(0, -1, "failed", func() { w.violated(name, err) })
	w.ring()
}

// note adds an event to the history. mu is held.
func (w *world) note(e Event) {
	e.At = w.since()
	w.history.add(e)
}

// committed is told of each commit. mu is held.
func (w *world) committed(a *actor, b store.Batch) {
	if len(w.recent) >= 2*recentCommits {
		w.recent = slices.Clone(w.recent[recentCommits:])
	}
	w.recent = append(w.recent, b)
	w.history.commit(w.since(), a.id, b)
	w.view.apply(b)
}

// latency is how long a call into the store takes, and whether that is closed.
func (w *world) latency(a *actor, c class) (d time.Duration, closed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d = w.weather.storeSlow
	if c == committing {
		d += w.scenario.Delays.Store
	}
	return d, a.closed
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
