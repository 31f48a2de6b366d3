package orchestrate

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// WithResolver has images pinned: what a tag means is asked when a service
// first names it, stored with the revision, and run by all of its tasks,
// whatever the tag comes to mean meanwhile. Without it, each node runs what the
// tag means there. Package local uses its own runtime; package runtime/registry
// has one that asks registries.
//
// A reference keeps its digest for as long as the service names it. One with
// [runtime.PullAlways] is looked up anew by each [Fleet.Apply], at its
// registry, and one with [runtime.PullNever] among the images that are here,
// so that what was loaded last is rolled out; where the answer does not come,
// it keeps its digest. [Service.Track] follows a tag without an Apply,
// [Fleet.Refresh] once. A reference that has a digest of its own means that.
//
// Of a [Job] it is settled when a run of it begins, for all tasks of the run. Of
// a [CronJob] it is when it is applied, so that its schedule does not depend on
// who answers at its times; with [runtime.PullAlways] and [runtime.PullNever] each
// run looks anew, and runs what the last Apply found where the answer does not
// come.
//
// A new reference that does not exist is stored without a digest, and its tasks
// fail for it. While it cannot be asked for, nothing of the revision starts; the
// fleet that leads goes on asking until the rollout's deadline, and then it has
// failed with [ReasonImage]; a job until its Deadline.
func WithResolver(r runtime.Resolver) Option { return func(o *options) { o.resolver = r } }

// resolveTimeout bounds how long one Apply waits for what tags mean.
const resolveTimeout = 10 * time.Second

// pins are what the images of a service's references mean.
type pins struct {
	digests map[string]string // by reference
	// unresolved says, by reference, why one has no digest yet.
	unresolved map[string]string
	// seen is what tags meant when they were last followed.
	seen map[string]string
}

// imageWish is how a change means the images of a service.
type imageWish struct {
	digests map[string]string // by reference, whatever the tags mean
	moved   bool              // digests are what the tags mean now
	origin  string            // of the revision
	// keep has the references that the service names already left as they are.
	keep bool
	// going has the run of a job go on, of which nothing but images changes.
	going bool
}

// references returns the images of t that have no digest of their own, with
// the strictest policy of those that name them.
func references(t *Template) map[string]runtime.PullPolicy {
	rank := []runtime.PullPolicy{runtime.PullMissing, runtime.PullNever, runtime.PullAlways}
	refs := map[string]runtime.PullPolicy{}
	for _, c := range allContainers(t) {
		if _, digest := runtime.CutDigest(c.Image); digest != "" {
			continue
		}
		if old, ok := refs[c.Image]; !ok || slices.Index(rank, c.Pull) > slices.Index(rank, old) {
			refs[c.Image] = c.Pull
		}
	}
	return refs
}

// allContainers returns pointers into t.
func allContainers(t *Template) []*Container {
	var all []*Container
	for _, list := range [][]Container{t.Init, t.Sidecars, t.Containers} {
		for i := range list {
			all = append(all, &list[i])
		}
	}
	return all
}

// pinned returns what tasks of t run: t with the digests of its images. Its
// hash is the revision's.
func (t Template) pinned(digests map[string]string) Template {
	if len(digests) == 0 {
		return t
	}
	for _, list := range []*[]Container{&t.Init, &t.Sidecars, &t.Containers} {
		*list = slices.Clone(*list)
	}
	for _, c := range allContainers(&t) {
		if d := digests[c.Image]; d != "" {
			c.Image = runtime.Pinned(c.Image, d)
		}
	}
	return t
}

// pin settles what the images of s mean. last is the record of the service, as
// it was stored at revision at, and old the spec in it; all zero for a new one.
func (f *Fleet) pin(ctx context.Context, b *batch, s *Service, last *record.Service, at int64, old *Service) (pins, error) {
	wish := b.images[s.Namespace+"/"+s.Name]
	p := pins{}
	refs, before := references(&s.Template), references(&old.Template)
	var ask []string
	for ref, policy := range refs {
		known, missing := last.Digests[ref], last.Unresolved[ref]
		_, had := before[ref]
		switch given := wish.digests[ref]; {
		case given != "":
			setIn(&p.digests, ref, given)
			if wish.moved {
				setIn(&p.seen, ref, given)
			}
		case wish.origin == record.OriginRollback: // it had none then
		case (!b.resolve || wish.keep) && had, f.opts.resolver == nil, policy == runtime.PullMissing && known != "":
			if known != "" {
				setIn(&p.digests, ref, known)
			} else if missing != "" {
				setIn(&p.unresolved, ref, missing)
			}
		case policy == runtime.PullMissing && had && missing == "":
			// It was never pinned: applying it again must not restart what
			// runs.
			failed, err := f.rolloutFailed(ctx, s.Namespace, s.Name, at)
			if err != nil {
				return p, err
			}
			if failed {
				ask = append(ask, ref)
			}
		default:
			ask = append(ask, ref)
		}
		if seen := cmp.Or(last.Seen[ref], known); seen != "" && p.seen[ref] == "" {
			setIn(&p.seen, ref, seen)
		}
	}
	answers, err := b.answers.ask(ctx, f.opts.resolver, ask, refs)
	if err != nil {
		return p, err
	}
	for _, ref := range ask {
		a := answers[ref]
		if a.err == nil {
			setIn(&p.digests, ref, a.digest)
			setIn(&p.seen, ref, a.digest)
			continue
		}
		f.opts.logger.Warn("cannot tell what an image's tag means", "service", s.Namespace+"/"+s.Name, "image", ref, "error", a.err)
		if known := last.Digests[ref]; known != "" {
			setIn(&p.digests, ref, known)
		} else if !definite(a.err) {
			setIn(&p.unresolved, ref, a.err.Error())
		}
	}
	return p, nil
}

// definite reports whether asking again would get the same answer.
func definite(err error) bool {
	var bad *runtime.SpecError
	return errors.Is(err, runtime.ErrImageNotFound) || errors.Is(err, runtime.ErrUnauthorized) ||
		errors.Is(err, runtime.ErrPlatform) || errors.As(err, &bad)
}

// answers remembers what was resolved within one change, which may be staged
// more than once. Nil remembers nothing.
type answers map[string]answer

type answer struct {
	digest string
	err    error
}

// ask resolves references side by side. An error is the end of ctx.
func (a answers) ask(ctx context.Context, r runtime.Resolver, refs []string, policies map[string]runtime.PullPolicy) (answers, error) {
	if a == nil {
		a = answers{}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	limited, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	var unknown []string
	for _, ref := range refs {
		if _, known := a[ref]; !known {
			unknown = append(unknown, ref)
		}
	}
	for _, ref := range unknown {
		wg.Go(func() {
			digest, err := r.Resolve(limited, ref, runtime.PullOptions{Policy: policies[ref]})
			mu.Lock()
			defer mu.Unlock()
			a[ref] = answer{digest, err}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return a, nil
}

// unpinned says why nothing of a revision can start yet: "" when it can.
func unpinned(unresolved map[string]string) string {
	for _, ref := range slices.Sorted(maps.Keys(unresolved)) {
		return "what the image " + ref + " means is not known yet: " + unresolved[ref]
	}
	return ""
}

// pinnedLate reports whether a service's record differs from what it was in
// nothing but the digests that were missing.
func pinnedLate(old, new []byte) bool {
	var a, b record.Service
	if json.Unmarshal(old, &a) != nil || json.Unmarshal(new, &b) != nil {
		return false
	}
	return len(a.Unresolved) > 0 && a.Created.Equal(b.Created) && a.Revision == b.Revision &&
		bytes.Equal(a.Spec, b.Spec) && a.Updated.Equal(b.Updated)
}

// nextImages are the images that containers of t run, t being pinned, each once.
func nextImages(t *Template) []record.NextImage {
	var images []record.NextImage
	for _, c := range allContainers(t) {
		next := record.NextImage{Ref: c.Image, Pull: string(c.Pull)}
		if !slices.Contains(images, next) {
			images = append(images, next)
		}
	}
	return images
}

// shape identifies what of t cannot be changed while a task runs: all but the
// resources of its containers. t is pinned.
func (t Template) shape() string {
	t = clone(reflect.ValueOf(t)).Interface().(Template)
	for _, c := range allContainers(&t) {
		c.Resources = Resources{}
	}
	return t.Hash()
}
