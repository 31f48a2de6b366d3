package orchestrate

import (
	"context"
	"encoding/json"
	"maps"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/store"
)

// What the images of a job mean is settled when a run of it begins, and holds for
// all tasks of that run: an Apply that begins none asks for nothing. A cron job
// settles it when it is applied, but for the images whose policy says that each
// run looks.

// pinJob settles what the images of t mean. last is what was known of those in
// old, and anew says that they are to be asked for.
func (f *Fleet) pinJob(ctx context.Context, b *batch, object string, wish imageWish, t, old *Template, last pins, anew bool) (pins, error) {
	p := pins{}
	refs, before := references(t), references(old)
	var ask []string
	for ref := range refs {
		_, had := before[ref]
		switch {
		case wish.digests[ref] != "":
			setIn(&p.digests, ref, wish.digests[ref])
		case wish.origin == record.OriginRollback: // it had none then
		case had && (!anew || wish.keep) || f.opts.resolver == nil:
			if d := last.digests[ref]; d != "" {
				setIn(&p.digests, ref, d)
			}
			if why, missing := last.unresolved[ref]; missing {
				setIn(&p.unresolved, ref, why)
			}
		default:
			ask = append(ask, ref)
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
			continue
		}
		f.opts.logger.Warn("cannot tell what an image's tag means", "object", object, "image", ref, "error", a.err)
		if known := last.digests[ref]; known != "" {
			setIn(&p.digests, ref, known)
		} else if !definite(a.err) {
			setIn(&p.unresolved, ref, a.err.Error())
		}
	}
	return p, nil
}

func setIn(m *map[string]string, key, value string) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[key] = value
}

// pinCron settles what the images of a cron job mean. Those that each run looks
// up have a digest for the case that nobody answers then.
func (f *Fleet) pinCron(ctx context.Context, b *batch, c *CronJob, last *record.Cron, old *CronJob) (map[string]string, error) {
	wish := b.images[cronImages(c.Namespace+"/"+c.Name)]
	wish.digests = maps.Clone(wish.digests)
	for ref, policy := range references(&c.Job.Template) {
		known := last.Digests[ref]
		if known != "" && policy == runtime.PullMissing && wish.digests[ref] == "" && wish.origin != record.OriginRollback {
			setIn(&wish.digests, ref, known)
		}
	}
	p, err := f.pinJob(ctx, b, c.object(), wish, &c.Job.Template, &old.Job.Template, pins{digests: last.Digests}, true)
	return p.digests, err
}

// cronImages is the key of a cron job in a batch's images: a service may have its
// name.
func cronImages(name string) string { return "cron " + name }

// cronRunPins are what the images of a new run mean, and those that are to be
// asked for: the schedule does not wait for the answers, the run does.
func (f *Fleet) cronRunPins(c *CronJob, rec *record.Cron) (p pins) {
	if f.opts.resolver == nil {
		return p
	}
	for ref, policy := range references(&c.Job.Template) {
		known := rec.Digests[ref]
		if known != "" {
			setIn(&p.digests, ref, known)
		}
		if known == "" || policy != runtime.PullMissing {
			setIn(&p.unresolved, ref, "")
		}
	}
	return p
}

// pinJobLate finds out what a job's images mean, of which that is not known:
// nothing of the run has been started.
func (f *Fleet) pinJobLate(ctx context.Context, item store.Item, fence store.Condition) error {
	j, rec, err := readJob(item)
	if err != nil {
		return err
	}
	if run, err := f.run(ctx, j.Namespace, j.Name); err != nil || run != nil && run.Number == rec.Run && run.Created.Equal(rec.Created) && run.State.Final() {
		return err // it has been told; another Apply asks again
	}
	policies := references(&j.Template)
	refs := keysOf(rec.Unresolved)
	answers, err := answers{}.ask(ctx, f.opts.resolver, refs, policies)
	if err != nil {
		return err
	}
	var left map[string]string
	news := false
	for _, ref := range refs {
		switch a := answers[ref]; {
		case a.err == nil:
			setIn(&rec.Digests, ref, a.digest)
			news = true
		case rec.Digests[ref] == "" && !definite(a.err):
			setIn(&left, ref, a.err.Error())
			news, err = news || rec.Unresolved[ref] == "", a.err
		default:
			news = true
		}
	}
	if !news {
		return err // why it waits has been written down
	}
	rec.Unresolved = left
	return f.putPins(ctx, item, &j, &rec, fence)
}

// putPins writes what is known of a job's images now.
func (f *Fleet) putPins(ctx context.Context, item store.Item, j *Job, rec *record.Job, fence store.Condition) error {
	rec.Hash = j.Template.pinned(rec.Digests).Hash()
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return f.change(ctx, func(b *batch) error {
		if err := f.unchanged(ctx, b, item, &fence); err != nil {
			return err
		}
		b.Writes = append(b.Writes, store.Put(item.Key, data))
		if rec.Unresolved == nil {
			b.reason = reasonResolved
			b.tell(ctx, record.Event{Kind: record.JobApplied, Namespace: j.Namespace, Service: j.Name, Revision: rec.Run})
		}
		return nil
	})
}
