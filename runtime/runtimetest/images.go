package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// imageCases are about what references mean.
func imageCases() []testCase {
	return []testCase{
		{"image by digest", func(e *env) error {
			img, err := e.rt.Pull(e.ctx, e.h.Image, runtime.PullOptions{Policy: runtime.PullNever})
			if err != nil {
				return err
			}
			pinned := runtime.Pinned(e.h.Image, img.Digest)
			for _, policy := range []runtime.PullPolicy{runtime.PullNever, runtime.PullMissing, runtime.PullAlways} {
				got, err := e.rt.Pull(e.ctx, pinned, runtime.PullOptions{Policy: policy})
				if err != nil || got.Digest != img.Digest || got.Ref != pinned {
					e.errorf("Pull(%s) with policy %q gave %s of digest %s, %v: want what is here under another name", pinned, policy, got.Ref, got.Digest, err)
				}
			}
			other := runtime.Pinned(e.h.Image, "sha256:"+strings.Repeat("0", 64))
			if _, err := e.rt.Pull(e.ctx, other, runtime.PullOptions{Policy: runtime.PullNever}); !errors.Is(err, runtime.ErrImageNotFound) {
				e.errorf("Pull(%s), which is not here, whatever its tag means: got %v, want ErrImageNotFound", other, err)
			}
			spec := e.spec("a", "exit=7")
			spec.Image = pinned
			if err := e.startSpec(spec); err != nil {
				return err
			}
			if c, _, _ := e.get("a"); c.Image != pinned {
				e.errorf("List says that its image is %s, want %s", c.Image, pinned)
			}
			if err := e.exits("a", 7); err != nil {
				return err
			}
			remover, ok := e.rt.(interface {
				RemoveImage(context.Context, string) error
			})
			if !ok {
				return nil
			}
			// The tag goes, or moves; what is pinned stays.
			if err := remover.RemoveImage(e.ctx, e.h.Image); err != nil {
				return fmt.Errorf("RemoveImage: %w", err)
			}
			if _, err := e.rt.Pull(e.ctx, pinned, runtime.PullOptions{Policy: runtime.PullNever}); err != nil {
				e.errorf("after its other reference was removed, Pull(%s): %v", pinned, err)
			}
			spec.ID = "b"
			if err := e.startSpec(spec); err != nil {
				return err
			}
			return e.exits("b", 7)
		}},
		{"resolve", func(e *env) error {
			resolver, ok := e.rt.(runtime.Resolver)
			if !ok {
				return errSkip
			}
			img, err := e.rt.Pull(e.ctx, e.h.Image, runtime.PullOptions{})
			if err != nil {
				return err
			}
			for _, policy := range []runtime.PullPolicy{runtime.PullNever, runtime.PullMissing} {
				if got, err := resolver.Resolve(e.ctx, e.h.Image, runtime.PullOptions{Policy: policy}); err != nil || got != img.Digest {
					e.errorf("Resolve with policy %q: got %s, %v; want the digest of what is present, %s", policy, got, err, img.Digest)
				}
			}
			other := "sha256:" + strings.Repeat("0", 64)
			if got, err := resolver.Resolve(e.ctx, runtime.Pinned(e.h.Image, other), runtime.PullOptions{}); err != nil || got != other {
				e.errorf("Resolve of a reference with a digest: got %s, %v; want that digest", got, err)
			}
			if e.h.Missing == "" {
				return nil
			}
			for _, policy := range []runtime.PullPolicy{runtime.PullNever, runtime.PullMissing, runtime.PullAlways} {
				if _, err := resolver.Resolve(e.ctx, e.h.Missing, runtime.PullOptions{Policy: policy}); !errors.Is(err, runtime.ErrImageNotFound) {
					e.errorf("Resolve of what is nowhere, with policy %q: got %v, want ErrImageNotFound", policy, err)
				}
			}
			return nil
		}},
		{"images", func(e *env) error {
			lister, ok := e.rt.(runtime.ImageLister)
			if !ok {
				return errSkip
			}
			img, err := e.rt.Pull(e.ctx, e.h.Image, runtime.PullOptions{})
			if err != nil {
				return err
			}
			pinned := runtime.Pinned(e.h.Image, img.Digest)
			if _, err := e.rt.Pull(e.ctx, pinned, runtime.PullOptions{}); err != nil {
				return err
			}
			images, err := lister.Images(e.ctx)
			if err != nil {
				return err
			}
			for _, ref := range []string{e.h.Image, pinned} {
				if !slices.ContainsFunc(images, func(i runtime.Image) bool { return i.Ref == ref && i.Digest == img.Digest }) {
					e.errorf("Images gave %+v: want %s of digest %s among them", images, ref, img.Digest)
				}
			}
			if !slices.IsSortedFunc(images, func(a, b runtime.Image) int { return strings.Compare(a.Ref, b.Ref) }) {
				e.errorf("Images gave %+v: want them in the order of their references", images)
			}
			return nil
		}},
	}
}
