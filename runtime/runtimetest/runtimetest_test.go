package runtimetest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/runtime/runtimetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const image = "orchestrate.test/program:1"

// inMemory is a machine whose one image runs the suite's program.
func inMemory(ctx context.Context) (*memory.Runtime, error) {
	rt := memory.New(memory.Options{Strict: true})
	rt.SetImage(image, memory.Image{
		Config: runtime.Image{Entrypoint: []string{"/program"}},
		Program: memory.Program{Run: func(ctx context.Context, p *memory.Process) int {
			return runtimetest.Program{
				Args: p.Args[1:], Env: p.Env, Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr, Signals: p.Signals,
			}.Run(ctx)
		}},
	})
	_, err := rt.Pull(ctx, image, runtime.PullOptions{})
	return rt, err
}

func harness(wrap func(*memory.Runtime) runtime.Runtime) runtimetest.Harness {
	return runtimetest.Harness{
		Image: image, Missing: "orchestrate.test/none:1",
		Open: func(ctx context.Context) (runtime.Runtime, func() error, error) {
			rt, err := inMemory(ctx)
			return wrap(rt), rt.Close, err
		},
		// In memory the machine is the runtime: it outlives a program.
		Restart: func(_ context.Context, rt runtime.Runtime) (runtime.Runtime, func() error, error) {
			return rt, rt.(interface{ Close() error }).Close, nil
		},
		Timeout: 2 * time.Second,
	}
}

func TestMemory(t *testing.T) {
	runtimetest.Test(t, harness(func(rt *memory.Runtime) runtime.Runtime { return rt }))
}

// Each of these has one mistake, and the suite must name the case that is
// about it.
type (
	exitsZero        struct{ *memory.Runtime }
	waitsBlind       struct{ *memory.Runtime }
	killsHard        struct{ *memory.Runtime }
	killFails        struct{ *memory.Runtime }
	removeFails      struct{ *memory.Runtime }
	keepsRemoved     struct{ *memory.Runtime }
	restartsRunning  struct{ *memory.Runtime }
	startsAnything   struct{ *memory.Runtime }
	listsAll         struct{ *memory.Runtime }
	listsBackwards   struct{ *memory.Runtime }
	dropsLabels      struct{ *memory.Runtime }
	losesLastLine    struct{ *memory.Runtime }
	mixesStreams     struct{ *memory.Runtime }
	forgetsLogs      struct{ *memory.Runtime }
	execSucceeds     struct{ *memory.Runtime }
	execDropsStdin   struct{ *memory.Runtime }
	ignoresContext   struct{ *memory.Runtime }
	pullsMissing     struct{ *memory.Runtime }
	restartsAdopted  struct{ *memory.Runtime }
	wrongMemoryLimit struct{ *memory.Runtime }
	holdsForEver     struct{ *memory.Runtime }

	pullsTheTag      struct{ *memory.Runtime }
	forgetsThePinned struct{ *memory.Runtime }
	resolvesAnything struct{ *memory.Runtime }
	listsOneName     struct{ *memory.Runtime }
	updatesNothing   struct{ *memory.Runtime }
	updatesByRestart struct{ *memory.Runtime }
	updatesTheDead   struct{ *memory.Runtime }
	updatesHalf      struct{ *memory.Runtime }
)

func (r pullsTheTag) Pull(ctx context.Context, ref string, o runtime.PullOptions) (runtime.Image, error) {
	name, _ := runtime.CutDigest(ref)
	img, err := r.Runtime.Pull(ctx, name, o)
	img.Ref = ref
	return img, err
}

func (r forgetsThePinned) RemoveImage(ctx context.Context, ref string) error {
	images, _ := r.Runtime.Images(ctx)
	for _, i := range images {
		r.Runtime.RemoveImage(ctx, i.Ref)
	}
	return nil
}

func (r resolvesAnything) Resolve(ctx context.Context, ref string, o runtime.PullOptions) (string, error) {
	digest, _ := r.Runtime.Resolve(ctx, ref, o)
	return digest, nil
}

func (r listsOneName) Images(ctx context.Context) ([]runtime.Image, error) {
	images, err := r.Runtime.Images(ctx)
	return images[:min(len(images), 1)], err
}

func (r updatesNothing) Update(ctx context.Context, id string, want runtime.Resources) error {
	err := r.Runtime.Update(ctx, id, r.Runtime.Resources(id))
	return errors.Join(err, want.Validate())
}

func (r updatesByRestart) Update(ctx context.Context, id string, want runtime.Resources) error {
	if err := r.Runtime.Update(ctx, id, want); err != nil {
		return err
	}
	r.Runtime.Remove(ctx, id)
	return r.Runtime.Start(ctx, runtime.Spec{ID: id, Image: image, Args: []string{"ignore"}, Resources: want})
}

func (r updatesTheDead) Update(ctx context.Context, id string, want runtime.Resources) error {
	if err := r.Runtime.Update(ctx, id, want); !errors.Is(err, runtime.ErrNotFound) {
		return err
	}
	return nil
}

func (r updatesHalf) Update(ctx context.Context, id string, want runtime.Resources) error {
	half := want
	if half.Memory < 6<<20 {
		half.Memory = 0
	}
	return errors.Join(r.Runtime.Update(ctx, id, half), want.Validate())
}

func (r exitsZero) Wait(ctx context.Context, id string) (runtime.Exit, error) {
	e, err := r.Runtime.Wait(ctx, id)
	e.Code = 0
	return e, err
}

func (r waitsBlind) Wait(ctx context.Context, id string) (runtime.Exit, error) {
	e, err := r.Runtime.Wait(ctx, id)
	if errors.Is(err, runtime.ErrNotFound) {
		err = nil
	}
	return e, err
}

func (r killsHard) Kill(ctx context.Context, id string, _ runtime.Signal) error {
	return r.Runtime.Kill(ctx, id, runtime.SIGKILL)
}

func (r killFails) Kill(ctx context.Context, id string, s runtime.Signal) error {
	if list, _ := r.List(ctx, nil); len(list) == 0 || list[0].State != runtime.Running {
		return runtime.ErrNotFound
	}
	return r.Runtime.Kill(ctx, id, s)
}

func (r removeFails) Remove(ctx context.Context, id string) error {
	if list, _ := r.List(ctx, nil); len(list) == 0 {
		return runtime.ErrNotFound
	}
	return r.Runtime.Remove(ctx, id)
}

func (r keepsRemoved) Remove(ctx context.Context, id string) error {
	return r.Runtime.Kill(ctx, id, runtime.SIGKILL)
}

func (r restartsRunning) Start(ctx context.Context, s runtime.Spec) error {
	if s.Validate() == nil && ctx.Err() == nil {
		r.Runtime.Remove(ctx, s.ID)
	}
	return r.Runtime.Start(ctx, s)
}

func (r startsAnything) Start(ctx context.Context, s runtime.Spec) error {
	s.Sysctls, s.Mounts = nil, nil
	return r.Runtime.Start(ctx, s)
}

func (r listsAll) List(ctx context.Context, _ map[string]string) ([]runtime.Container, error) {
	return r.Runtime.List(ctx, nil)
}

func (r listsBackwards) List(ctx context.Context, labels map[string]string) ([]runtime.Container, error) {
	list, err := r.Runtime.List(ctx, labels)
	for i, j := 0, len(list)-1; i < j; i, j = i+1, j-1 {
		list[i], list[j] = list[j], list[i]
	}
	return list, err
}

func (r dropsLabels) Start(ctx context.Context, s runtime.Spec) error {
	s.Labels = nil
	return r.Runtime.Start(ctx, s)
}

func (r losesLastLine) Logs(ctx context.Context, id string, o runtime.LogOptions, each func(runtime.LogLine) error) error {
	var last *runtime.LogLine
	return r.Runtime.Logs(ctx, id, o, func(l runtime.LogLine) error {
		before := last
		last = &l
		if before == nil {
			return nil
		}
		return each(*before)
	})
}

func (r mixesStreams) Logs(ctx context.Context, id string, o runtime.LogOptions, each func(runtime.LogLine) error) error {
	return r.Runtime.Logs(ctx, id, o, func(l runtime.LogLine) error {
		l.Stream = "stdout"
		return each(l)
	})
}

func (r forgetsLogs) Remove(ctx context.Context, id string) error {
	err := r.Runtime.Remove(ctx, id)
	r.Runtime.RemoveLogs(ctx, id)
	return err
}

func (r execSucceeds) Exec(ctx context.Context, id string, e runtime.Exec) (int, error) {
	_, err := r.Runtime.Exec(ctx, id, e)
	return 0, err
}

func (r execDropsStdin) Exec(ctx context.Context, id string, e runtime.Exec) (int, error) {
	e.Stdin = nil
	return r.Runtime.Exec(ctx, id, e)
}

func (r ignoresContext) Start(ctx context.Context, s runtime.Spec) error {
	return r.Runtime.Start(context.WithoutCancel(ctx), s)
}

func (r pullsMissing) Pull(ctx context.Context, ref string, o runtime.PullOptions) (runtime.Image, error) {
	img, err := r.Runtime.Pull(ctx, ref, o)
	if err != nil {
		return runtime.Image{Ref: ref}, nil
	}
	return img, err
}

func (r restartsAdopted) restart(ctx context.Context) {
	list, _ := r.List(ctx, nil)
	for _, c := range list {
		r.Runtime.Remove(ctx, c.ID)
		r.Runtime.Start(ctx, runtime.Spec{ID: c.ID, Image: c.Image, Labels: c.Labels, Args: []string{"ignore"}})
	}
}

func (r holdsForEver) Hold(ctx context.Context, _ time.Duration) error {
	return r.Runtime.Hold(ctx, time.Hour)
}

func (r wrongMemoryLimit) Stats(ctx context.Context, id string) (runtime.Stats, error) {
	s, err := r.Runtime.Stats(ctx, id)
	s.MemoryLimit = 0
	return s, err
}

func TestSuiteCatches(t *testing.T) {
	for _, test := range []struct {
		name string // of the case that must fail
		wrap func(*memory.Runtime) runtime.Runtime
	}{
		{"exit code", func(m *memory.Runtime) runtime.Runtime { return exitsZero{m} }},
		{"unknown container", func(m *memory.Runtime) runtime.Runtime { return waitsBlind{m} }},
		{"signal", func(m *memory.Runtime) runtime.Runtime { return killsHard{m} }},
		{"unknown container", func(m *memory.Runtime) runtime.Runtime { return killFails{m} }},
		{"unknown container", func(m *memory.Runtime) runtime.Runtime { return removeFails{m} }},
		{"remove", func(m *memory.Runtime) runtime.Runtime { return keepsRemoved{m} }},
		{"start of what runs", func(m *memory.Runtime) runtime.Runtime { return restartsRunning{m} }},
		{"bad spec", func(m *memory.Runtime) runtime.Runtime { return startsAnything{m} }},
		{"list", func(m *memory.Runtime) runtime.Runtime { return listsAll{m} }},
		{"list", func(m *memory.Runtime) runtime.Runtime { return listsBackwards{m} }},
		{"list", func(m *memory.Runtime) runtime.Runtime { return dropsLabels{m} }},
		{"logs in parts", func(m *memory.Runtime) runtime.Runtime { return losesLastLine{m} }},
		{"logs of both streams", func(m *memory.Runtime) runtime.Runtime { return mixesStreams{m} }},
		{"logs are kept until they are removed", func(m *memory.Runtime) runtime.Runtime { return forgetsLogs{m} }},
		{"exec", func(m *memory.Runtime) runtime.Runtime { return execSucceeds{m} }},
		{"exec", func(m *memory.Runtime) runtime.Runtime { return execDropsStdin{m} }},
		{"ended context", func(m *memory.Runtime) runtime.Runtime { return ignoresContext{m} }},
		{"missing image", func(m *memory.Runtime) runtime.Runtime { return pullsMissing{m} }},
		{"restart of the program", func(m *memory.Runtime) runtime.Runtime { return restartsAdopted{m} }},
		{"stats", func(m *memory.Runtime) runtime.Runtime { return wrongMemoryLimit{m} }},
		{"hold", func(m *memory.Runtime) runtime.Runtime { return holdsForEver{m} }},
		{"image by digest", func(m *memory.Runtime) runtime.Runtime { return pullsTheTag{m} }},
		{"image by digest", func(m *memory.Runtime) runtime.Runtime { return forgetsThePinned{m} }},
		{"resolve", func(m *memory.Runtime) runtime.Runtime { return resolvesAnything{m} }},
		{"images", func(m *memory.Runtime) runtime.Runtime { return listsOneName{m} }},
		{"update", func(m *memory.Runtime) runtime.Runtime { return updatesNothing{m} }},
		{"update", func(m *memory.Runtime) runtime.Runtime { return updatesByRestart{m} }},
		{"update that cannot be", func(m *memory.Runtime) runtime.Runtime { return updatesTheDead{m} }},
		{"update that cannot be", func(m *memory.Runtime) runtime.Runtime { return updatesHalf{m} }},
		{"pull of what is present", func(m *memory.Runtime) runtime.Runtime { return namesTheDigestAlone{m} }},
		{"start of what has exited", func(m *memory.Runtime) runtime.Runtime { return startsOnce{m} }},
		{"arguments and environment", func(m *memory.Runtime) runtime.Runtime { return losesEnvironment{m} }},
		{"logs of long lines", func(m *memory.Runtime) runtime.Runtime { return cutsLongLines{m} }},
		{"following ends with its context", func(m *memory.Runtime) runtime.Runtime { return followsWithoutEnd{m} }},
		{"exec that cannot be", func(m *memory.Runtime) runtime.Runtime { return execsAnywhere{m} }},
		{"exec that cannot be", func(m *memory.Runtime) runtime.Runtime { return execsWithoutEnd{m} }},
		{"update over a restart of the program", func(m *memory.Runtime) runtime.Runtime { return forgetsUpdates{m} }},
		{"many at once", func(m *memory.Runtime) runtime.Runtime { return takesFourIDs{m, newKnown()} }},
		{"removes of one ID at once", func(m *memory.Runtime) runtime.Runtime { return removesOnce{m, newKnown()} }},
		{"starts of one ID at once", func(m *memory.Runtime) runtime.Runtime { return startsEach{m, newKnown()} }},
	} {
		t.Run(fmt.Sprintf("%T", test.wrap(nil)), func(t *testing.T) {
			t.Parallel()
			h := harness(test.wrap)
			h.Restart = func(ctx context.Context, rt runtime.Runtime) (runtime.Runtime, func() error, error) {
				if r, ok := rt.(interface{ restart(context.Context) }); ok {
					r.restart(ctx)
				}
				return rt, rt.(interface{ Close() error }).Close, nil
			}
			failed := runtimetest.Check(t.Context(), h)
			if failed[test.name] == nil {
				t.Errorf("%T passes the case %q: it must not; it fails %v", test.wrap(nil), test.name, failed)
			}
		})
	}
}
