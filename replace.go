package orchestrate

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/store"
)

// PlanReplaceImage plans that every service, job and cron job which runs one image
// is to run another, as when a hole was found in it; [Fleet.ApplyPlan] does it, in
// one commit, and [Fleet.PlanUndo] undoes it. What does not run it is not in the
// plan.
//
// What is replaced is named by a reference, as "web:1", whatever that means in
// each service, and whether it adds a digest; by a digest, "sha256:…", whatever it
// is called there; or by both, as "web@sha256:…", which is that digest of any tag
// of that name. What takes its place is a reference, or a digest alone: of the same
// name then, and the spec keeps its tag. A reference is asked for first; one that
// does not exist or cannot be asked for is the resolver's error. Other images stay
// what they are.
//
// A service gets a revision of it, and a cron job's next runs run it. The run of a
// job goes on: what has completed stays so, and the tasks that run the image are
// stopped, and started again with the other. What cannot be changed is in
// [Plan.Left], with why.
func (f *Fleet) PlanReplaceImage(ctx context.Context, from, to string) (*Plan, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return f.planReplace(ctx, from, to, nil)
}

// LeftImage is an object that names an image which is replaced elsewhere, and goes
// on naming it.
type LeftImage struct {
	Kind   string     `json:"kind"` // KindJob or KindCronJob
	Name   string     `json:"name"` // NAMESPACE/NAME
	Images []string   `json:"images"`
	Why    LeftReason `json:"why"`
}

// LeftReason is why an object goes on naming an image.
type LeftReason string

// The reasons.
const (
	// LeftEnded is a job that has ended: nothing of it runs. An Apply that begins
	// it anew runs what that names.
	LeftEnded LeftReason = "ended"
	// LeftRun is a run of a cron job that goes on, with what its image meant when
	// it was made: it is the leader's. It ends by itself, or by [Fleet.Remove].
	LeftRun LeftReason = "cron-run"
	// LeftFollows is a cron job whose runs look up each what the tag means, since
	// it has [runtime.PullAlways] or [runtime.PullNever]: a digest of it would hold
	// for none. Have the tag mean another image, or name another.
	LeftFollows LeftReason = "follows-tag"
)

// String is l in a line.
func (l LeftImage) String() string {
	return fmt.Sprintf("%s %s goes on naming %s: %s", l.Kind, l.Name, strings.Join(l.Images, ", "), l.Why)
}

// planReplace plans for some objects, as [PlannedChange.imageKey] names them, or
// for all with nil.
func (f *Fleet) planReplace(ctx context.Context, from, to string, only []string) (*Plan, error) {
	was, err := parseImageName("from", from)
	if err != nil {
		return nil, err
	}
	is, err := parseImageName("to", to)
	if err != nil {
		return nil, err
	}
	r := replacement{was: was, is: is, meaning: is.digest, only: only, images: map[string]imageWish{}}
	if r.meaning == "" && f.opts.resolver != nil {
		if r.meaning, err = f.opts.resolver.Resolve(ctx, to, runtime.PullOptions{}); err != nil {
			return nil, fmt.Errorf("replace image %q: %w", from, err)
		}
	}
	for _, each := range []struct {
		prefix string
		read   func(store.Item) error
	}{
		{record.Services, r.service},
		{record.Jobs, func(item store.Item) error { return r.job(ctx, f, item) }},
		{record.Crons, r.cron},
	} {
		snapshot, err := f.store.List(ctx, each.prefix)
		if err != nil {
			return nil, err
		}
		for _, item := range snapshot.Items {
			if err := each.read(item); err != nil {
				return nil, err
			}
		}
	}
	if err := validate(r.objects); err != nil {
		return nil, err
	}
	p, err := f.plan(ctx, r.objects, r.images)
	if err != nil {
		return nil, err
	}
	p.Left = r.left
	return p, nil
}

// replacement is what comes of replacing an image.
type replacement struct {
	was, is imageName
	meaning string   // digest of is
	only    []string // what may be changed; nil is all

	objects []Object
	images  map[string]imageWish
	left    []LeftImage
}

// add has an object changed, if it names the image.
func (r *replacement) add(key string, t *Template, digests map[string]string, going bool, object func() Object) {
	if r.only != nil && !slices.Contains(r.only, key) {
		return
	}
	wish := imageWish{origin: record.OriginReplaced, keep: true, going: going, digests: map[string]string{}}
	if replaceImage(t, digests, r.was, r.is, r.meaning, wish.digests) {
		r.objects, r.images[key] = append(r.objects, object()), wish
	}
}

// leave has an object reported, if it names the image and would have another.
func (r *replacement) leave(kind, name string, t Template, digests map[string]string, why LeftReason) {
	t = clone(reflect.ValueOf(t)).Interface().(Template)
	named := namedImages(&t, digests, r.was)
	if replaceImage(&t, digests, r.was, r.is, r.meaning, map[string]string{}) {
		r.left = append(r.left, LeftImage{Kind: kind, Name: name, Images: named, Why: why})
	}
}

func (r *replacement) service(item store.Item) error {
	st, err := readService(item)
	if err != nil {
		return err
	}
	var rec record.Service
	if err := json.Unmarshal(item.Value, &rec); err != nil {
		return fmt.Errorf("read %s: %w", item.Key, err)
	}
	s := st.Service.WithDefaults()
	r.add(s.Namespace+"/"+s.Name, &s.Template, rec.Digests, false, func() Object { return s })
	return nil
}

func (r *replacement) job(ctx context.Context, f *Fleet, item store.Item) error {
	j, rec, err := readJob(item)
	if err != nil {
		return err
	}
	j = j.WithDefaults()
	run, err := f.run(ctx, j.Namespace, j.Name)
	if err != nil {
		return err
	}
	name := j.Namespace + "/" + j.Name
	ended := run != nil && run.Number == rec.Run && run.Created.Equal(rec.Created) && run.State.Final()
	switch {
	case ended && rec.Cron == nil:
		r.leave(KindJob, name, j.Template, rec.Digests, LeftEnded)
	case ended: // kept for its result alone
	case rec.Cron != nil:
		r.leave(KindJob, name, j.Template, rec.Digests, LeftRun)
	default:
		r.add(name, &j.Template, rec.Digests, true, func() Object { return j })
	}
	return nil
}

func (r *replacement) cron(item store.Item) error {
	c, rec, err := readCron(item)
	if err != nil {
		return err
	}
	c = c.WithDefaults()
	name := c.Namespace + "/" + c.Name
	if r.is.name == "" && followsTag(&c.Job.Template, rec.Digests, r.was) {
		r.leave(KindCronJob, name, c.Job.Template, rec.Digests, LeftFollows)
		return nil
	}
	r.add(cronImages(name), &c.Job.Template, rec.Digests, false, func() Object { return c })
	return nil
}

// namedImages are the references of t that was names, each once.
func namedImages(t *Template, digests map[string]string, was imageName) (refs []string) {
	for _, c := range allContainers(t) {
		own, digest := runtime.CutDigest(c.Image)
		if was.names(own, cmp.Or(digest, digests[c.Image])) && !slices.Contains(refs, c.Image) {
			refs = append(refs, c.Image)
		}
	}
	return refs
}

// followsTag reports whether t names the image by a tag that is looked up anew
// each time.
func followsTag(t *Template, digests map[string]string, was imageName) bool {
	policies := references(t)
	return slices.ContainsFunc(namedImages(t, digests, was), func(ref string) bool {
		policy, tag := policies[ref]
		return tag && policy != runtime.PullMissing
	})
}

// replaceImage has the containers of t that run was run is, whose digest is
// meaning, and reports whether there are any. What references come to mean is
// added to wish.
func replaceImage(t *Template, digests map[string]string, was, is imageName, meaning string, wish map[string]string) bool {
	changed := false
	for _, c := range allContainers(t) {
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
	// these have completed, and jobs and cron jobs follow when all have. 0 is
	// all of them, in one commit.
	AtOnce int
}

// Replacement is what [Fleet.ReplaceImage] has done.
type Replacement struct {
	Changes []PlannedChange // that were made
	Left    []LeftImage     // what names the image still, and why
}

// ReplaceImage does what [Fleet.PlanReplaceImage] plans, and returns it as it was
// done. With AtOnce it takes one commit for so many services, waits for their
// rollouts, and stops at the first that does not complete: the error is a
// [*HaltedError], what comes after it is as it was, and calling it again goes on
// with that. Otherwise it returns once all is stored.
func (f *Fleet) ReplaceImage(ctx context.Context, from, to string, opts ReplaceOptions) (Replacement, error) {
	var out Replacement
	if opts.AtOnce < 0 {
		return out, &ValidationError{Object: "image", Problems: []Problem{{Path: "atOnce", Value: show(opts.AtOnce), Reason: "is negative; give a number of services, or 0 for all"}}}
	}
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return out, err
	}
	defer done()
	all, err := f.planReplace(ctx, from, to, nil)
	if err != nil {
		return out, err
	}
	out.Left = all.Left
	var services, others []PlannedChange
	for _, c := range all.Changes {
		switch c.Kind {
		case KindService:
			services = append(services, c)
		case KindJob, KindCronJob:
			others = append(others, c)
		}
	}
	for left := slices.Concat(services, others); len(left) > 0; {
		batch := left // one commit, or what is left once the services are done
		if opts.AtOnce > 0 && len(left) > len(others) {
			batch = left[:min(opts.AtOnce, len(left)-len(others))]
		}
		var keys []string
		for _, c := range batch {
			keys = append(keys, c.imageKey())
		}
		p, err := f.replaceIn(ctx, from, to, keys)
		if err != nil {
			return out, err
		}
		left = left[len(batch):]
		out.Changes = append(out.Changes, p.Changes...)
		if opts.AtOnce == 0 {
			break
		}
		halted := &HaltedError{}
		for _, c := range left {
			halted.Left = append(halted.Left, c.imageKey())
		}
		for _, c := range batch {
			if c.Kind != KindService {
				continue
			}
			r, err := f.Wait(ctx, c.Name)
			if err != nil {
				return out, err
			}
			if r.Outcome != RolloutCompleted {
				halted.Results = append(halted.Results, r)
			}
		}
		if len(halted.Results) > 0 {
			return out, halted
		}
	}
	return out, nil
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
	Left    []string // NAMESPACE/NAME of those that were not begun with, of a cron job "cron NAMESPACE/NAME"
}

func (e *HaltedError) Error() string {
	text := "stopped with " + fmt.Sprint(len(e.Left)) + " left: "
	for i, r := range e.Results {
		if i > 0 {
			text += "; "
		}
		text += r.String()
	}
	return text
}
