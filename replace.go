package orchestrate

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/store"
)

// PlanReplaceImage plans that every service which runs one image is to run
// another, as when a hole was found in it; [Fleet.ApplyPlan] does it, in one
// commit, and [Fleet.PlanUndo] undoes it. Services that do not run it are not in
// the plan.
//
// What is replaced is named by a reference, as "web:1", whatever that means in
// each service, and whether it adds a digest; by a digest, "sha256:…", whatever it is called there; or by both,
// as "web@sha256:…", which is that digest of any tag of that name. What takes its
// place is a reference, or a digest alone: of the same name then, and the spec
// keeps its tag. A reference is asked for first; one that does not exist or
// cannot be asked for is the resolver's error. Other images of the services stay
// what they are.
func (f *Fleet) PlanReplaceImage(ctx context.Context, from, to string) (*Plan, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return f.planReplace(ctx, from, to, nil)
}

// planReplace plans for some services, or for all with nil.
func (f *Fleet) planReplace(ctx context.Context, from, to string, only []string) (*Plan, error) {
	was, err := parseImageName("from", from)
	if err != nil {
		return nil, err
	}
	is, err := parseImageName("to", to)
	if err != nil {
		return nil, err
	}
	meaning := is.digest
	if meaning == "" && f.opts.resolver != nil {
		if meaning, err = f.opts.resolver.Resolve(ctx, to, runtime.PullOptions{}); err != nil {
			return nil, fmt.Errorf("replace image %q: %w", from, err)
		}
	}
	snapshot, err := f.store.List(ctx, record.Services)
	if err != nil {
		return nil, err
	}
	var objects []Object
	images := map[string]imageWish{}
	for _, item := range snapshot.Items {
		st, err := readService(item)
		if err != nil {
			return nil, err
		}
		var rec record.Service
		if err := json.Unmarshal(item.Value, &rec); err != nil {
			return nil, fmt.Errorf("read %s: %w", item.Key, err)
		}
		name := st.Namespace + "/" + st.Name
		s := st.Service.WithDefaults()
		wish := imageWish{origin: record.OriginReplaced, keep: true, digests: map[string]string{}}
		if (only == nil || slices.Contains(only, name)) && replaceImage(&s, rec.Digests, was, is, meaning, wish.digests) {
			objects, images[name] = append(objects, s), wish
		}
	}
	if err := validate(objects); err != nil {
		return nil, err
	}
	return f.plan(ctx, objects, images)
}

// replaceImage has the containers of s that run was run is, whose digest is
// meaning, and reports whether there are any. What references come to mean is
// added to wish.
func replaceImage(s *Service, digests map[string]string, was, is imageName, meaning string, wish map[string]string) bool {
	changed := false
	for _, c := range allContainers(&s.Template) {
		own, digest := runtime.CutDigest(c.Image)
		pinned := digest != ""
		digest = cmp.Or(digest, digests[c.Image])
		if !was.names(own, digest) {
			continue
		}
		before := c.Image
		switch {
		case is.name != "":
			c.Image = is.ref
			if is.digest == "" && meaning != "" {
				wish[c.Image] = meaning
			}
		case pinned:
			c.Image = runtime.Pinned(own, is.digest)
		default:
			wish[c.Image] = is.digest
		}
		changed = changed || c.Image != before || wish[c.Image] != "" && wish[c.Image] != digest
	}
	return changed
}

// imageName is an image as a person names it: by name, by digest or by both.
type imageName struct {
	ref    string
	name   string // in full, with its tag, without a digest; may be empty
	digest string // may be empty
}

func parseImageName(field, s string) (imageName, error) {
	n := imageName{ref: s}
	mistake := ""
	if algorithm, _, _ := strings.Cut(s, ":"); slices.Contains([]string{"sha256", "sha384", "sha512"}, algorithm) {
		n.digest, mistake = s, digestMistake(s)
	} else if mistake = imageMistake(s); mistake == "" {
		name, digest := runtime.CutDigest(s)
		n.name, n.digest = fullName(name), digest
	}
	if mistake != "" {
		return n, &ValidationError{Object: "image", Problems: []Problem{{Path: field, Value: show(s), Reason: mistake}}}
	}
	return n, nil
}

// names reports whether n is what a container runs.
func (n imageName) names(ref, digest string) bool {
	if n.digest != "" && n.digest != digest {
		return false
	}
	if n.name == "" {
		return true
	}
	if n.digest != "" {
		return repository(n.name) == repository(fullName(ref))
	}
	return n.name == fullName(ref)
}

// fullName completes a name with what is meant by default: Docker Hub, its
// folder library, and the tag latest, as the distribution project's reference
// package does.
func fullName(name string) string {
	if first, _, ok := strings.Cut(name, "/"); !ok {
		name = "docker.io/library/" + name
	} else if first != "localhost" && !strings.ContainsAny(first, ".:[") {
		name = "docker.io/" + name
	} else if first == "index.docker.io" {
		name = "docker.io" + strings.TrimPrefix(name, first)
	}
	if strings.LastIndexByte(name, ':') <= strings.LastIndexByte(name, '/') {
		name += ":latest"
	}
	return name
}

// repository is a full name without its tag.
func repository(name string) string { return name[:strings.LastIndexByte(name, ':')] }

// ReplaceOptions say how [Fleet.ReplaceImage] goes about it.
type ReplaceOptions struct {
	// AtOnce is how many services are rolled out at a time: the next begin when
	// these have completed. 0 is all of them, in one commit.
	AtOnce int
}

// ReplaceImage does what [Fleet.PlanReplaceImage] plans, and returns it as it was
// done. With AtOnce it takes one commit for so many services, waits for their
// rollouts, and stops at the first that does not complete: the error is a
// [*HaltedError], the services after it are as they were, and calling it again
// goes on with them. Otherwise it returns once all is stored.
func (f *Fleet) ReplaceImage(ctx context.Context, from, to string, opts ReplaceOptions) ([]PlannedChange, error) {
	if opts.AtOnce < 0 {
		return nil, &ValidationError{Object: "image", Problems: []Problem{{Path: "atOnce", Value: show(opts.AtOnce), Reason: "is negative; give a number of services, or 0 for all"}}}
	}
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	all, err := f.planReplace(ctx, from, to, nil)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range all.Changes {
		if c.Kind == KindService {
			names = append(names, c.Name)
		}
	}
	var changed []PlannedChange
	for len(names) > 0 {
		batch := names
		if opts.AtOnce > 0 {
			batch = names[:min(opts.AtOnce, len(names))]
		}
		p, err := f.replaceIn(ctx, from, to, batch)
		if err != nil {
			return changed, err
		}
		names = names[len(batch):]
		changed = append(changed, p.Changes...)
		if opts.AtOnce == 0 {
			return changed, nil
		}
		halted := &HaltedError{Left: names}
		for _, name := range batch {
			r, err := f.Wait(ctx, name)
			if err != nil {
				return changed, err
			}
			if r.Outcome != RolloutCompleted {
				halted.Results = append(halted.Results, r)
			}
		}
		if len(halted.Results) > 0 {
			return changed, halted
		}
	}
	return changed, nil
}

// replaceIn plans for some services and applies that, again when the fleet has
// moved on meanwhile.
func (f *Fleet) replaceIn(ctx context.Context, from, to string, names []string) (*Plan, error) {
	for {
		p, err := f.planReplace(ctx, from, to, names)
		if err != nil {
			return nil, err
		}
		objects, err := p.objects()
		if err != nil {
			return nil, err
		}
		b := &batch{guarded: map[string]bool{}, images: p.wishes(false)}
		if err := f.stageAll(ctx, b, objects); err != nil {
			return nil, err
		}
		same := true
		for _, c := range b.If {
			if was, read := p.Basis[c.Key]; read && was != c.Revision {
				same = false
			}
		}
		if !same {
			continue
		}
		if len(b.Writes) == 0 {
			return p, nil
		}
		err = f.commit(ctx, b)
		if !errors.Is(err, store.ErrConflict) {
			return p, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// HaltedError is a change of many services that was stopped because the rollout
// of some did not complete.
type HaltedError struct {
	Results []Result
	Left    []string // NAMESPACE/NAME of those that were not begun with
}

func (e *HaltedError) Error() string {
	text := "stopped with " + fmt.Sprint(len(e.Left)) + " services left: "
	for i, r := range e.Results {
		if i > 0 {
			text += "; "
		}
		text += r.String()
	}
	return text
}
