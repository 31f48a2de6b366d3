package orchestrate_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate"
	networkmemory "github.com/orchestrate-go/orchestrate/network/memory"
	"github.com/orchestrate-go/orchestrate/node"
	"github.com/orchestrate-go/orchestrate/runtime"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
	storememory "github.com/orchestrate-go/orchestrate/store/memory"
	volumememory "github.com/orchestrate-go/orchestrate/volume/memory"
)

// TestMain draws the random cases of the short mode from one seed, so that the
// same tree has the same verdict each time; the long mode, and whoever gives a
// seed, draws others.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("rapid.seed"); f.Value.String() == f.DefValue && os.Getenv("ORCHESTRATE_LONG") == "" {
		if err := f.Value.Set("1"); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// open returns a fleet over a store in memory that runs, with one node. It
// must be called inside a synctest bubble.
func open(t *testing.T) (*orchestrate.Fleet, *runtimememory.Runtime, store.Store) {
	t.Helper()
	s := storememory.New(storememory.Options{})
	f, rt := openFleet(t, s)
	return f, rt, s
}

// openOver is open with a store and options of the test's own.
func openOver(t *testing.T, s store.Store, opts ...orchestrate.Option) *orchestrate.Fleet {
	t.Helper()
	f, _ := openFleet(t, s, opts...)
	return f
}

func openFleet(t *testing.T, s store.Store, opts ...orchestrate.Option) (*orchestrate.Fleet, *runtimememory.Runtime) {
	t.Helper()
	return openFleetOn(t, s, networkmemory.New(networkmemory.Options{}), opts...)
}

// openFleetOn is openFleet with a network of the test's own.
func openFleetOn(t *testing.T, s store.Store, network *networkmemory.Node, opts ...orchestrate.Option) (*orchestrate.Fleet, *runtimememory.Runtime) {
	t.Helper()
	rt := runtimememory.New(runtimememory.Options{})
	agent, err := node.New(s, node.Options{
		Node:    scheduler.Node{ID: "n1", Capacity: scheduler.Resources{CPU: 8000, Memory: 8 << 30}},
		Runtime: rt, Network: network, Namespaces: network, Balancer: network,
		Volumes: new(volumememory.Driver), Dir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := orchestrate.New(s, append(opts, orchestrate.WithAccess(func(string) (orchestrate.Access, error) { return agent, nil }))...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := agent.Run(ctx); err != nil {
			t.Errorf("the agent's Run returned %v", err)
		}
	})
	wg.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Errorf("the fleet's Run returned %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		f.Close()
		rt.Close()
		s.Close()
	})
	return f, rt
}

func service(name string, published uint16) orchestrate.Service {
	s := orchestrate.Service{
		Name:     name,
		Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: "img:1"}}},
		Update:   orchestrate.UpdatePolicy{Monitor: time.Second},
	}
	if published != 0 {
		s.Ports = []orchestrate.Port{{Port: 8080, Published: published}}
	}
	return s
}

func mustApply(t *testing.T, f *orchestrate.Fleet, objects ...orchestrate.Object) {
	t.Helper()
	if err := f.Apply(t.Context(), objects...); err != nil {
		t.Fatal(err)
	}
}

func mustEnd(t *testing.T, f *orchestrate.Fleet, name string, want orchestrate.Outcome) orchestrate.Result {
	t.Helper()
	r, err := f.Wait(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if r.Outcome != want {
		t.Fatalf("%v; want %s", r, want)
	}
	return r
}

// records returns how many records are under prefix.
func records(t *testing.T, s store.Store, prefix string) int {
	t.Helper()
	snapshot, err := s.List(t.Context(), prefix)
	if err != nil {
		t.Fatal(err)
	}
	return len(snapshot.Items)
}

func TestApplyIsAllOrNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		mustApply(t, f, service("taken", 80))
		for name, tc := range map[string]struct {
			objects []orchestrate.Object
			is      error
			says    string
		}{
			"a bad spec": {
				objects: []orchestrate.Object{service("good", 0), service("Bad", 0)},
				is:      orchestrate.ErrInvalid, says: `"Bad"`,
			},
			"a port that another service has": {
				objects: []orchestrate.Object{service("good", 0), service("late", 80)},
				is:      orchestrate.ErrInUse, says: "80/tcp belongs to service default/taken",
			},
			"a port twice in one call": {
				objects: []orchestrate.Object{service("a", 81), service("b", 81)},
				is:      orchestrate.ErrInUse, says: "81/tcp",
			},
			"one service twice": {
				objects: []orchestrate.Object{service("a", 0), service("a", 0)},
				is:      orchestrate.ErrInvalid, says: "twice",
			},
			"a network that is not there": {
				objects: []orchestrate.Object{service("good", 0), func() orchestrate.Service {
					s := service("lost", 0)
					s.Networks = []string{"nowhere"}
					return s
				}()},
				is: orchestrate.ErrNotFound, says: `network "nowhere" does not exist`,
			},
			"a strategy that is not registered": {
				objects: []orchestrate.Object{service("good", 0), func() orchestrate.Service {
					s := service("odd", 0)
					s.Placement.Strategy = "coin"
					return s
				}()},
				is: orchestrate.ErrInvalid, says: "coin",
			},
		} {
			err := f.Apply(t.Context(), tc.objects...)
			if !errors.Is(err, tc.is) || !strings.Contains(fmt.Sprint(err), tc.says) {
				t.Errorf("%s: error %v, want %v that says %q", name, err, tc.is, tc.says)
			}
			if n := records(t, s, "/services/"); n != 1 {
				t.Errorf("%s: %d services are stored, want the one from before", name, n)
			}
		}
	})
}

func TestApplyAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, s := open(t)
		mustApply(t, f, service("web", 80))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		item := func() store.Item {
			item, _, err := store.Get(t.Context(), s, "/services/default/web")
			if err != nil {
				t.Fatal(err)
			}
			return item
		}
		before := item()
		mustApply(t, f, service("web", 80))
		if item().Revision != before.Revision {
			t.Error("applying the same again wrote the record")
		}

		// What is not of the template restarts nothing.
		labelled := service("web", 80)
		labelled.Labels = map[string]string{"team": "a"}
		labelled.Replicas = 2
		containers, err := rt.List(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		mustApply(t, f, labelled)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		st, err := f.Get(t.Context(), "web")
		if err != nil || st.Revision != 1 || st.Labels["team"] != "a" {
			t.Errorf("revision %d, labels %v, %v; want revision 1 with the label", st.Revision, st.Labels, err)
		}
		after, err := rt.List(t.Context(), nil)
		if err != nil || len(after) != 2 || !slices.ContainsFunc(after, func(c runtime.Container) bool { return c.ID == containers[0].ID }) {
			t.Errorf("containers %+v, %v; want the first and one more", after, err)
		}

		// A rollout that failed is tried again when it is applied again.
		rt.SetImage("img:2", runtimememory.Image{PullErr: runtime.ErrImageNotFound})
		labelled.Containers[0].Image = "img:2"
		mustApply(t, f, labelled)
		r := mustEnd(t, f, "web", orchestrate.RolloutFailed)
		if r.Failure == nil || r.Failure.Kind != orchestrate.FailedImage || r.Err() == nil {
			t.Errorf("result %v with failure %+v, want a missing image", r, r.Failure)
		}
		rt.SetImage("img:2", runtimememory.Image{})
		mustApply(t, f, labelled)
		if r := mustEnd(t, f, "web", orchestrate.RolloutCompleted); r.Revision != 2 {
			t.Errorf("revision %d, want 2: the template is the same as that which failed", r.Revision)
		}
	})
}

// Of services that publish one port and are applied at once, one gets it.
func TestApplyConcurrently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, s := open(t)
		const n = 20
		errs := make([]error, n)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { errs[i] = f.Apply(t.Context(), service(fmt.Sprintf("web-%d", i), 80)) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			switch {
			case err == nil:
				won++
			case !errors.Is(err, orchestrate.ErrInUse):
				t.Errorf("error %v, want that the port is in use", err)
			}
		}
		if won != 1 || records(t, s, "/services/") != 1 {
			t.Errorf("%d applies succeeded and %d services are stored, want one", won, records(t, s, "/services/"))
		}
	})
}

func TestWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		if _, err := f.Wait(t.Context(), "nobody"); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("waiting for a service that never was: %v, want not found", err)
		}
		rt.SetImage("img:1", runtimememory.Image{PullTime: time.Hour})
		mustApply(t, f, service("web", 0))
		results := make(chan orchestrate.Result, 1)
		go func() {
			r, err := f.Wait(t.Context(), "web")
			if err != nil {
				t.Error(err)
			}
			results <- r
		}()
		synctest.Wait()
		faster := service("web", 0)
		faster.Containers[0].Image = "img:2"
		mustApply(t, f, faster)
		if r := <-results; r.Outcome != orchestrate.RolloutSuperseded {
			t.Errorf("%v; want superseded", r)
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		slow := service("slow", 0)
		mustApply(t, f, slow)
		if _, err := f.Wait(ctx, "slow"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want that the context ended", err)
		}
		if err := f.Remove(t.Context(), "web", "slow"); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutRemoved)
		mustEnd(t, f, "slow", orchestrate.RolloutRemoved)
		if err := f.Remove(t.Context(), "web"); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("removing it again: %v, want not found", err)
		}
	})
}

func TestWatchTellsWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		ctx, cancel := context.WithCancel(t.Context())
		events, err := f.Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var story []string
		done := make(chan struct{})
		go func() {
			defer close(done)
			for e := range events {
				if e.Kind == orchestrate.RolloutChanged && e.Rollout.Outcome == "" {
					continue // how far it is
				}
				line := string(e.Kind)
				for _, part := range []string{string(e.State), e.Reason} {
					if part != "" {
						line += " " + part
					}
				}
				if e.Failure != nil && e.Kind == orchestrate.TaskChanged {
					line += " " + string(e.Failure.Kind)
				}
				if e.Rollout != nil {
					line += " " + string(e.Rollout.Outcome)
				}
				story = append(story, line)
			}
		}()
		mustApply(t, f, service("web", 0))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		containers, err := rt.List(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		rt.Crash(containers[0].ID, 3)
		time.Sleep(time.Second)
		if err := f.Remove(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutRemoved)
		synctest.Wait()
		cancel()
		<-done
		for _, want := range []string{
			"service-applied applied", "task-placed wanted", "task-changed ready", "rollout-changed completed",
			"task-changed ready exit", "service-removed removed", "task-stopping ready removed", "task-changed stopped exit", "task-gone stopped removed",
		} {
			if !slices.Contains(story, want) {
				t.Errorf("no event %q in %q", want, story)
			}
		}
	})
}

func TestScale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		mustApply(t, f, service("web", 0))
		for _, n := range []int{4, 0, 2} {
			if err := f.Scale(t.Context(), "web", n); err != nil {
				t.Fatal(err)
			}
			if r := mustEnd(t, f, "web", orchestrate.RolloutCompleted); r.Desired != n || r.Revision != 1 {
				t.Errorf("%v; want %d tasks of revision 1", r, n)
			}
			if cs, err := rt.List(t.Context(), nil); err != nil || len(cs) != n {
				t.Errorf("%d containers, %v; want %d", len(cs), err, n)
			}
		}
		if err := f.Scale(t.Context(), "web", -7); !errors.Is(err, orchestrate.ErrInvalid) {
			t.Errorf("scaling to -7: %v, want invalid", err)
		}
		if err := f.Scale(t.Context(), "nobody", 1); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("scaling what is not there: %v, want not found", err)
		}
	})
}

func TestNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, _ := open(t)
		s := service("web", 0)
		s.Networks = []string{"front", "back"}
		mustApply(t, f, s, orchestrate.Network{Name: "front"}, orchestrate.Network{Name: "back", Internal: true, Subnets: []string{"192.168.77.0/24"}})
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		tasks, err := f.Tasks(t.Context(), "web")
		if err != nil || len(tasks[0].Addresses["front"]) != 2 || len(tasks[0].Addresses["back"]) != 1 {
			t.Errorf("addresses %v, %v; want IPv4 and IPv6 in front and IPv4 in back", tasks[0].Addresses, err)
		}
		if err := f.Apply(t.Context(), orchestrate.Network{Name: "inside", Subnets: []string{"192.168.77.128/25"}}); !errors.Is(err, orchestrate.ErrInvalid) {
			t.Errorf("a subnet inside another network's: %v, want invalid", err)
		}
		err = f.RemoveNetwork(t.Context(), "front")
		var inUse *orchestrate.InUseError
		if !errors.As(err, &inUse) || !slices.Equal(inUse.Services, []string{"default/web"}) {
			t.Errorf("error %v, want that default/web uses it", err)
		}
		if err := f.Apply(t.Context(), orchestrate.Network{Name: "back", Subnets: []string{"192.168.78.0/24"}}); !errors.Is(err, orchestrate.ErrInvalid) {
			t.Errorf("changing the subnet: %v, want invalid", err)
		}
		if err := f.Remove(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutRemoved)
		if err := f.RemoveNetwork(t.Context(), "front"); err != nil {
			t.Errorf("removing an unused network: %v", err)
		}
		if networks, err := f.Networks(t.Context()); err != nil || len(networks) != 1 || networks[0].Name != "back" {
			t.Errorf("networks %+v, %v; want back alone", networks, err)
		}
	})
}

func TestCloseEndsCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		rt.SetImage("img:1", runtimememory.Image{PullTime: time.Hour})
		mustApply(t, f, service("web", 0))
		errs := make(chan error, 1)
		go func() {
			_, err := f.Wait(context.Background(), "web")
			errs <- err
		}()
		events, err := f.Watch(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for range 2 {
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-errs; !errors.Is(err, orchestrate.ErrClosed) {
			t.Errorf("Wait returned %v, want that the fleet is closed", err)
		}
		for range events {
		}
		if err := f.Apply(t.Context(), service("late", 0)); !errors.Is(err, orchestrate.ErrClosed) {
			t.Errorf("Apply after Close: %v, want that the fleet is closed", err)
		}
	})
}

func TestReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, s := open(t)
		rt.SetImage("img:1", runtimememory.Image{Program: runtimememory.Program{
			Output: []runtimememory.Output{{Text: "one"}, {Text: "two", Stream: "stderr"}},
			Exec: func(_ context.Context, exec runtime.Exec) (int, error) {
				fmt.Fprint(exec.Stdout, exec.Args[0])
				return 5, nil
			},
		}})
		mustApply(t, f, service("web", 0))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		var lines []string
		if err := f.Logs(t.Context(), "web", "main", runtime.LogOptions{}, func(l orchestrate.LogLine) error {
			lines = append(lines, l.Stream+" "+string(l.Text))
			return nil
		}); err != nil || !slices.Equal(lines, []string{"stdout one", "stderr two"}) {
			t.Errorf("lines %q, %v; want both", lines, err)
		}
		var out strings.Builder
		code, err := f.Exec(t.Context(), "web", "", runtime.Exec{Args: []string{"hello"}, Stdout: &out})
		if err != nil || code != 5 || out.String() != "hello" {
			t.Errorf("exec: code %d, output %q, %v; want 5 and hello", code, &out, err)
		}
		if _, err := f.Stats(t.Context(), "web", ""); err != nil {
			t.Errorf("stats: %v", err)
		}
		if _, err := f.Exec(t.Context(), "web", "nobody", runtime.Exec{Args: []string{"x"}}); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("exec in a container that is not there: %v, want not found", err)
		}
		if err := f.Logs(t.Context(), "web", "nobody", runtime.LogOptions{}, nil); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("logs of a container that no task has: %v, want not found", err)
		}
		if err := f.Logs(t.Context(), "nobody", "", runtime.LogOptions{}, nil); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("logs of a service that is not there: %v, want not found", err)
		}
		deaf, err := orchestrate.New(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := deaf.Stats(t.Context(), "web", ""); !errors.Is(err, orchestrate.ErrNoAccess) {
			t.Errorf("stats without access: %v, want no access", err)
		}
	})
}
