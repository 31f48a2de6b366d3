package runtimetest_test

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/memory"
)

// Further mistakes, for the cases that those of runtimetest_test.go leave out.
type (
	namesTheDigestAlone struct{ *memory.Runtime }
	startsOnce          struct{ *memory.Runtime }
	losesEnvironment    struct{ *memory.Runtime }
	cutsLongLines       struct{ *memory.Runtime }
	followsWithoutEnd   struct{ *memory.Runtime }
	execsAnywhere       struct{ *memory.Runtime }
	execsWithoutEnd     struct{ *memory.Runtime }
	forgetsUpdates      struct{ *memory.Runtime }
	takesFourIDs        struct {
		*memory.Runtime
		*known
	}
	removesOnce struct {
		*memory.Runtime
		*known
	}
	startsEach struct {
		*memory.Runtime
		*known
	}
)

// known are IDs that a runtime has seen.
type known struct {
	mu  sync.Mutex
	ids map[string]bool
}

func newKnown() *known { return &known{ids: map[string]bool{}} }

func (r namesTheDigestAlone) Pull(ctx context.Context, ref string, o runtime.PullOptions) (runtime.Image, error) {
	img, err := r.Runtime.Pull(ctx, ref, o)
	img.Ref = img.Digest
	return img, err
}

func (r startsOnce) Start(ctx context.Context, s runtime.Spec) error {
	list, _ := r.List(ctx, nil)
	for _, c := range list {
		if c.ID == s.ID && s.Validate() == nil && ctx.Err() == nil {
			return nil // it was started
		}
	}
	return r.Runtime.Start(ctx, s)
}

func (r losesEnvironment) Start(ctx context.Context, s runtime.Spec) error {
	s.Env = nil
	return r.Runtime.Start(ctx, s)
}

func (r cutsLongLines) Logs(ctx context.Context, id string, o runtime.LogOptions, each func(runtime.LogLine) error) error {
	return r.Runtime.Logs(ctx, id, o, func(l runtime.LogLine) error {
		if len(l.Text) > 1000 {
			l.Text = l.Text[:1000]
		}
		return each(l)
	})
}

func (r followsWithoutEnd) Logs(ctx context.Context, id string, o runtime.LogOptions, each func(runtime.LogLine) error) error {
	err := r.Runtime.Logs(ctx, id, o, each)
	if o.Follow && ctx.Err() != nil {
		return nil // as if the container had ended
	}
	return err
}

func (r execsAnywhere) Exec(ctx context.Context, id string, e runtime.Exec) (int, error) {
	code, err := r.Runtime.Exec(ctx, id, e)
	if err != nil && strings.HasPrefix(id, "ended") {
		return 0, nil
	}
	return code, err
}

func (r execsWithoutEnd) Exec(ctx context.Context, id string, e runtime.Exec) (int, error) {
	code, err := r.Runtime.Exec(ctx, id, e)
	if ctx.Err() != nil {
		return 137, nil // it was killed, and nobody learns why
	}
	return code, err
}

func (r forgetsUpdates) restart(ctx context.Context) {
	list, _ := r.List(ctx, nil)
	for _, c := range list {
		r.Runtime.Update(ctx, c.ID, runtime.Resources{Memory: 64 << 20})
	}
}

func (r takesFourIDs) Start(ctx context.Context, s runtime.Spec) error {
	r.mu.Lock()
	r.ids[s.ID] = true
	n := len(r.ids)
	r.mu.Unlock()
	if n > 4 {
		return errors.New("too many containers")
	}
	return r.Runtime.Start(ctx, s)
}

func (r removesOnce) Remove(ctx context.Context, id string) error {
	r.mu.Lock()
	again := r.ids[id]
	r.ids[id] = true
	r.mu.Unlock()
	if again {
		return runtime.ErrNotFound
	}
	return r.Runtime.Remove(ctx, id)
}

// Start of startsEach starts a process for each of several calls at once, and waits
// for what it says first.
func (r startsEach) Start(ctx context.Context, s runtime.Spec) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.Validate() == nil && ctx.Err() == nil {
		r.Runtime.Remove(ctx, s.ID)
	}
	err := r.Runtime.Start(ctx, s)
	if err != nil || len(s.Args) == 0 || !strings.HasPrefix(s.Args[0], "print=once") {
		return err
	}
	said := errors.New("it has said something")
	if err := r.Logs(ctx, s.ID, runtime.LogOptions{Follow: true}, func(runtime.LogLine) error { return said }); !errors.Is(err, said) {
		return err
	}
	return nil
}
