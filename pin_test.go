package orchestrate_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/node"
	"github.com/orchestrate-go/orchestrate/runtime"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
	storememory "github.com/orchestrate-go/orchestrate/store/memory"
)

// world is a fleet with several nodes, each with a runtime of its own, and one
// registry for all of them and for the fleet's resolver.
type world struct {
	*orchestrate.Fleet
	t        *testing.T
	store    store.Store
	registry *runtimememory.Runtime // nothing runs there
	nodes    []*runtimememory.Runtime

	mu     sync.Mutex // guards what follows
	isDown bool       // the registry does not answer
	count  int        // how often what tags mean was asked
}

var errDown = errors.New("no route to host")

// Resolve implements runtime.Resolver.
func (w *world) Resolve(ctx context.Context, ref string, opts runtime.PullOptions) (string, error) {
	w.mu.Lock()
	w.count++
	down := w.isDown
	w.mu.Unlock()
	if down {
		return "", errDown
	}
	return w.registry.Resolve(ctx, ref, opts)
}

func (w *world) down(is bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isDown = is
}

func (w *world) asked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count
}

// push has a tag mean content from now on, and returns its digest. Contents of
// the same words are the same.
func (w *world) push(ref, content string, p runtimememory.Program) string {
	digest := contentDigest(content)
	image := runtimememory.Image{Config: runtime.Image{Digest: digest}, Program: p}
	for _, rt := range append(w.nodes, w.registry) {
		rt.SetImage(ref, image)
	}
	return digest
}

func contentDigest(content string) string {
	return "sha256:" + fmt.Sprintf("%x", content) + strings.Repeat("0", 64-2*len(content))
}

// newWorld must be called inside a synctest bubble.
func newWorld(t *testing.T, nodes int, opts ...orchestrate.Option) *world {
	t.Helper()
	w := &world{t: t, store: storememory.New(storememory.Options{}), registry: runtimememory.New(runtimememory.Options{Strict: true})}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	access := map[string]orchestrate.Access{}
	for i := range nodes {
		rt := runtimememory.New(runtimememory.Options{Strict: true})
		id := fmt.Sprintf("n%d", i+1)
		agent, err := node.New(w.store, node.Options{
			Node:    scheduler.Node{ID: id, Capacity: scheduler.Resources{CPU: 8000, Memory: 8 << 30}},
			Runtime: rt, Dir: t.TempDir(),
		})
		if err != nil {
			t.Fatal(err)
		}
		access[id] = agent
		w.nodes = append(w.nodes, rt)
		wg.Go(func() {
			if err := agent.Run(ctx); err != nil {
				t.Errorf("the agent's Run returned %v", err)
			}
		})
	}
	f, err := orchestrate.New(w.store, append([]orchestrate.Option{
		orchestrate.WithResolver(w),
		orchestrate.WithAccess(func(id string) (orchestrate.Access, error) { return access[id], nil }),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	w.Fleet = f
	wg.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Errorf("the fleet's Run returned %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		f.Close()
		for _, rt := range append(w.nodes, w.registry) {
			rt.Close()
		}
		w.store.Close()
	})
	synctest.Wait() // the nodes have joined
	return w
}

// running returns the digests that the running containers were started by.
func (w *world) running() []string {
	w.t.Helper()
	var digests []string
	for _, rt := range w.nodes {
		list, err := rt.List(w.t.Context(), nil)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, c := range list {
			if c.State == runtime.Running {
				_, d := runtime.CutDigest(c.Image)
				digests = append(digests, d)
			}
		}
	}
	return digests
}

func (w *world) runs(what string, n int, digest string) {
	w.t.Helper()
	want := slices.Repeat([]string{digest}, n)
	if got := w.running(); !slices.Equal(got, want) {
		w.t.Errorf("%s: the containers run %q, want %d times %q", what, got, n, digest)
	}
}

// app is a service of three tasks on a tag.
func app(change ...func(*orchestrate.Service)) orchestrate.Service {
	s := orchestrate.Service{
		Name: "web", Replicas: 3,
		Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: "reg.example/app:1"}}},
		Update:   orchestrate.UpdatePolicy{Monitor: time.Second, ProgressDeadline: time.Minute},
	}
	for _, c := range change {
		c(&s)
	}
	return s
}

const appTag = "reg.example/app:1"

func env(value string) func(*orchestrate.Service) {
	return func(s *orchestrate.Service) { s.Containers[0].Env = map[string]string{"V": value} }
}

func pull(p runtime.PullPolicy) func(*orchestrate.Service) {
	return func(s *orchestrate.Service) { s.Containers[0].Pull = p }
}

// A revision's tasks run what its tag meant when it was made, on every node,
// whatever becomes of the tag meanwhile.
func TestDigestsArePinned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		one := w.push(appTag, "one", runtimememory.Program{})
		mustApply(t, w.Fleet, app())
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		w.runs("at first", 3, one)

		two := w.push(appTag, "two", runtimememory.Program{})
		if err := w.Scale(t.Context(), "web", 6); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		w.runs("scaled after the tag moved", 6, one)

		mustApply(t, w.Fleet, app(env("x")))
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		w.runs("another revision with the same reference", 3, one)

		st, err := w.Get(t.Context(), "web")
		if err != nil || st.Containers[0].Image != appTag || st.Digests[appTag] != one {
			t.Errorf("Get has image %s and digests %v, %v; want the tag as it was applied and what it means", st.Containers[0].Image, st.Digests, err)
		}
		// Another reference is another question.
		other := w.push("reg.example/app:2", "three", runtimememory.Program{})
		mustApply(t, w.Fleet, app(func(s *orchestrate.Service) { s.Containers[0].Image = "reg.example/app:2" }))
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		w.runs("another tag", 3, other)
		// Back at the first: nobody names it any more, so it is asked anew.
		mustApply(t, w.Fleet, app())
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		w.runs("the first tag again", 3, two)
	})
}

// Whether a tag that has moved is looked up by an Apply is the policy's matter.
func TestApplyAndPullPolicies(t *testing.T) {
	for policy, follows := range map[runtime.PullPolicy]bool{runtime.PullMissing: false, runtime.PullAlways: true, runtime.PullNever: true} {
		t.Run(string(policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 2)
				load := func(content string) string {
					d := w.push(appTag, content, runtimememory.Program{})
					if policy == runtime.PullNever { // then it is on the nodes, and known to whom is asked
						for _, rt := range append(w.nodes, w.registry) {
							if _, err := rt.Pull(t.Context(), appTag, runtime.PullOptions{}); err != nil {
								t.Fatal(err)
							}
						}
					}
					return d
				}
				one := load("one")
				mustApply(t, w.Fleet, app(pull(policy)))
				mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
				w.runs("at first", 3, one)
				mustApply(t, w.Fleet, app(pull(policy)))
				if st, _ := w.Get(t.Context(), "web"); st.Revision != 1 {
					t.Errorf("applied again without a move it is revision %d, want 1", st.Revision)
				}
				two := load("two")
				mustApply(t, w.Fleet, app(pull(policy)))
				mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
				want := one
				if follows {
					want = two
				}
				w.runs("applied again after the move", 3, want)
				// Without an answer, what is known stays.
				w.down(true)
				mustApply(t, w.Fleet, app(pull(policy), env("x")))
				mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
				w.runs("applied while nobody answers", 3, want)
				asked := w.asked()
				if err := w.Scale(t.Context(), "web", 4); err != nil {
					t.Fatal(err)
				}
				if w.asked() != asked {
					t.Error("Scale asked what the tag means")
				}
			})
		})
	}
}

// History shows digests, and a rollback goes back to one.
func TestRollbackToADigest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		one := w.push(appTag, "one", runtimememory.Program{})
		mustApply(t, w.Fleet, app(pull(runtime.PullAlways)))
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		two := w.push(appTag, "two", runtimememory.Program{})
		mustApply(t, w.Fleet, app(pull(runtime.PullAlways)))
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		w.runs("updated", 3, two)
		if err := w.Rollback(t.Context(), "web", 0); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		w.runs("rolled back", 3, one)
		revisions, err := w.History(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range revisions {
			got = append(got, fmt.Sprint(r.Number, " ", r.Template.Containers[0].Image, " ", r.Digests[appTag] == one, " ", r.Completed, " ", r.Origin))
		}
		want := []string{"1 " + appTag + " true true ", "2 " + appTag + " false true ", "3 " + appTag + " true true rollback"}
		if !slices.Equal(got, want) {
			t.Errorf("the history is %q, want %q", got, want)
		}
		if revisions[0].Hash != revisions[2].Hash || revisions[0].Hash == revisions[1].Hash {
			t.Errorf("the hashes are %s, %s, %s: want the first and the last the same", revisions[0].Hash, revisions[1].Hash, revisions[2].Hash)
		}
		diff := revisions[0].Diff(revisions[1])
		if len(diff) != 1 || !strings.Contains(diff[0].New, two) {
			t.Errorf("the first two differ in %v, want the digest", diff)
		}
	})
}

// While nobody says what a tag means, nothing is started that might be
// something else.
func TestUnresolvedImage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		one := w.push(appTag, "one", runtimememory.Program{})
		w.down(true)
		mustApply(t, w.Fleet, app())
		time.Sleep(20 * time.Second)
		w.runs("while the registry is away", 0, "")
		st, err := w.Get(t.Context(), "web")
		if err != nil || st.Rollout == nil || !strings.Contains(st.Rollout.Unplaced, errDown.Error()) {
			t.Errorf("its rollout is %+v, %v; want it to say why nothing starts", st.Rollout, err)
		}
		w.down(false)
		r := mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		w.runs("when it is back", 3, one)
		if r.Revision != 1 {
			t.Errorf("it became revision %d, want 1: nothing had been started", r.Revision)
		}

		// In an update, what runs goes on, and the result says why.
		w.down(true)
		mustApply(t, w.Fleet, app(func(s *orchestrate.Service) { s.Containers[0].Image = "reg.example/app:2" }))
		r = mustEnd(t, w.Fleet, "web", orchestrate.RolloutFailed)
		if r.Reason != orchestrate.ReasonImage || !strings.Contains(r.Message, "reg.example/app:2") || r.Rollback == nil || r.Rollback.Outcome != orchestrate.RolloutCompleted {
			t.Errorf("got %+v; want no-image, the reference, and a rollback that completed", r)
		}
		w.runs("after the deadline", 3, one)
	})
}

// An image that does not exist is the tasks' failure, as it is without a
// resolver.
func TestImageThatDoesNotExist(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		mustApply(t, w.Fleet, app())
		r := mustEnd(t, w.Fleet, "web", orchestrate.RolloutFailed)
		if r.Reason != orchestrate.ReasonFailures || r.Failure == nil || r.Failure.Kind != orchestrate.FailedImage {
			t.Errorf("got %+v; want a failure of kind image", r)
		}
		one := w.push(appTag, "one", runtimememory.Program{})
		mustApply(t, w.Fleet, app())
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		w.runs("once it exists", 3, one)
	})
}

// What runs unpinned, from before there was a resolver, is left alone by an
// Apply that changes nothing.
func TestUnpinnedIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.push(appTag, "one", runtimememory.Program{})
		plain, err := orchestrate.New(w.store)
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		mustApply(t, plain, app())
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		w.runs("applied without a resolver", 3, "")
		mustApply(t, w.Fleet, app())
		if err := w.Scale(t.Context(), "web", 2); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, w.Fleet, "web", orchestrate.RolloutCompleted)
		w.runs("applied with one", 2, "")
	})
}
