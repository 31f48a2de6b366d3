package orchestrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/store"
)

// follower looks after the images of all services and jobs while this fleet
// leads: it finds out what could not be found out at Apply, and follows the tags
// of services. It writes specs as an application does, so its commits have the
// fence of the term.
type follower struct {
	fleet *Fleet
	fence store.Condition
	wake  chan struct{} // has one token when something has changed

	mu       sync.Mutex           // guards what follows
	services map[string]*followed // and jobs, by key
}

// followed is a service or a job that has something to follow.
type followed struct {
	item     store.Item
	track    TrackPolicy
	missing  bool // some reference has no digest yet
	attempts int  // to find those out
	due      time.Time
}

// follow runs until ctx ends.
func (f *Fleet) follow(ctx context.Context, fence store.Condition) {
	if f.opts.resolver == nil {
		return
	}
	ctx = WithActor(ctx, ActorTracker)
	w := &follower{fleet: f, fence: fence, wake: make(chan struct{}, 1), services: map[string]*followed{}}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, prefix := range []string{record.Services, record.Jobs} {
		wg.Go(func() {
			for ctx.Err() == nil {
				err := store.Follow(ctx, f.store, prefix, followedUnder{w, prefix})
				if ctx.Err() == nil {
					f.opts.logger.Warn("cannot follow images; trying again", "error", err)
					pause(ctx, time.Second)
				}
			}
		})
	}
	for ctx.Err() == nil {
		var timer <-chan time.Time
		due, next := w.due(time.Now())
		if len(due) == 0 && !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		if len(due) == 0 {
			select {
			case <-ctx.Done():
			case <-w.wake:
			case <-timer:
			}
			continue
		}
		w.look(ctx, due)
	}
}

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// followedUnder is what a follower has of one prefix. It is a [store.Follower].
type followedUnder struct {
	*follower
	prefix string
}

func (w followedUnder) Reset(snapshot store.Snapshot) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.services, func(key string, _ *followed) bool { return strings.HasPrefix(key, w.prefix) })
	for _, item := range snapshot.Items {
		w.set(item)
	}
	return nil
}

func (w followedUnder) Apply(batch store.Batch) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range batch.Changes {
		if c.Deleted {
			delete(w.services, c.Item.Key)
			continue
		}
		w.set(c.Item)
	}
	return nil
}

// set notes a record. w.mu is held.
func (w *follower) set(item store.Item) {
	if strings.HasPrefix(item.Key, record.Jobs) {
		w.setJob(item)
		return
	}
	var rec record.Service
	var s struct {
		Track TrackPolicy `json:"track"`
	}
	delete(w.services, item.Key)
	if json.Unmarshal(item.Value, &rec) != nil || json.Unmarshal(rec.Spec, &s) != nil {
		return
	}
	e := &followed{item: item, track: s.Track, missing: len(rec.Unresolved) > 0}
	now := time.Now()
	if e.due = s.Track.next(item.Key, now); e.missing {
		e.due = now.Add(retryAfter(0))
	}
	if e.due.IsZero() {
		return
	}
	w.services[item.Key] = e
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// setJob notes a job's record, which is looked at as long as some image of it has
// no meaning: at once when nobody has asked yet.
func (w *follower) setJob(item store.Item) {
	delete(w.services, item.Key)
	var rec record.Job
	if json.Unmarshal(item.Value, &rec) != nil || len(rec.Unresolved) == 0 {
		return
	}
	e := &followed{item: item, missing: true, due: time.Now()}
	if !slices.Contains(slices.Collect(maps.Values(rec.Unresolved)), "") {
		e.due = e.due.Add(retryAfter(0))
	}
	w.services[item.Key] = e
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// retryAfter is the pause before what cannot be found out is asked for again.
func retryAfter(attempts int) time.Duration {
	return min(time.Second<<min(attempts, 6), time.Minute)
}

// due returns what is to be looked at now, and sets when it will be again; or
// when the next is.
func (w *follower) due(now time.Time) (due []*followed, next time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, e := range w.services {
		if !e.due.After(now) {
			due = append(due, e)
			e.attempts++
			if e.due = e.track.next(key, now); e.missing {
				e.due = now.Add(retryAfter(e.attempts))
			}
		}
		if next.IsZero() || e.due.Before(next) {
			next = e.due
		}
	}
	return due, next
}

// maxLooks bounds how many services are looked at at once.
const maxLooks = 8

// look looks at services side by side.
func (w *follower) look(ctx context.Context, due []*followed) {
	var wg sync.WaitGroup
	turns := make(chan struct{}, maxLooks)
	for _, e := range due {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			err := w.lookAt(ctx, e)
			if err != nil && ctx.Err() == nil && !errors.Is(err, errMeanwhile) {
				w.fleet.opts.logger.Warn("cannot look after the images of a service or job", "key", e.item.Key, "error", err)
			}
		})
	}
	wg.Wait()
}

// errMeanwhile says that a record has changed since it was decided about.
var errMeanwhile = errors.New("the service has changed meanwhile")

func (w *follower) lookAt(ctx context.Context, e *followed) error {
	f := w.fleet
	if strings.HasPrefix(e.item.Key, record.Jobs) {
		return f.pinJobLate(ctx, e.item, w.fence)
	}
	st, err := readService(e.item)
	if err != nil {
		return err
	}
	var rec record.Service
	if err := json.Unmarshal(e.item.Value, &rec); err != nil {
		return err
	}
	state, err := f.rolloutState(ctx, st.Namespace, st.Name, e.item.Revision)
	if err != nil {
		return err
	}
	if e.missing {
		if state == record.RolloutFailed {
			return nil // it has been told; another Apply asks again
		}
		return f.pinLate(ctx, e.item, &st.Service, &rec, w.fence)
	}
	if state == record.Progressing {
		return nil
	}
	v, err := f.lookUp(ctx, &st.Service, &rec, false)
	if err != nil || len(v.moves) == 0 {
		return err
	}
	name := st.Namespace + "/" + st.Name
	if v.failed {
		f.opts.logger.Info("an image that has failed before is not tried again", "service", name, "moves", v.moves)
		return nil
	}
	f.opts.logger.Info("an image's tag has moved", "service", name, "moves", v.moves)
	return f.commitMoves(ctx, e.item, st.Service, v, &w.fence)
}

// lookUp asks what the tags of a service mean now. Those of which that cannot
// be told are left as they are; only if none can be told it is an error.
func (f *Fleet) lookUp(ctx context.Context, s *Service, rec *record.Service, asked bool) (verdict, error) {
	refs := tags(s)
	policies := map[string]runtime.PullPolicy{}
	for _, ref := range refs {
		policies[ref] = always.Policy
	}
	answers, err := answers{}.ask(ctx, f.opts.resolver, refs, policies)
	if err != nil {
		return verdict{}, err
	}
	found := map[string]string{}
	var errs []error
	for _, ref := range refs {
		if a := answers[ref]; a.err == nil {
			found[ref] = a.digest
		} else {
			errs = append(errs, a.err)
		}
	}
	if len(found) == 0 || asked {
		err = errors.Join(errs...)
	}
	return judgeTags(s, rec, found, asked), err
}

// commitMoves makes a revision of what tags mean now, unless the service has
// changed since item was read.
func (f *Fleet) commitMoves(ctx context.Context, item store.Item, s Service, v verdict, fence *store.Condition) error {
	return f.change(ctx, func(b *batch) error {
		if err := f.unchanged(ctx, b, item, fence); err != nil {
			return err
		}
		b.images = map[string]imageWish{s.Namespace + "/" + s.Name: {digests: v.digests, moved: true, origin: record.OriginMoved}}
		return s.stage(ctx, f, b)
	})
}

// unchanged has a batch committed only while item is as it was read, and, with
// a fence, while this fleet leads.
func (f *Fleet) unchanged(ctx context.Context, b *batch, item store.Item, fence *store.Condition) error {
	for _, want := range []*store.Condition{{Key: item.Key, Revision: item.Revision}, fence} {
		if want == nil {
			continue
		}
		now, _, err := store.Get(ctx, f.store, want.Key)
		if err != nil {
			return err
		}
		if now.Revision != want.Revision {
			return errMeanwhile
		}
		b.guard(now, want.Key)
	}
	return nil
}

// pinLate finds out what Apply could not. It is the same revision: nothing of
// it has been started.
func (f *Fleet) pinLate(ctx context.Context, item store.Item, s *Service, rec *record.Service, fence store.Condition) error {
	policies := references(&s.Template)
	var refs []string
	for ref := range rec.Unresolved {
		refs = append(refs, ref)
	}
	answers, err := answers{}.ask(ctx, f.opts.resolver, refs, policies)
	if err != nil {
		return err
	}
	for _, ref := range refs {
		a := answers[ref]
		switch {
		case a.err == nil:
			for _, m := range []*map[string]string{&rec.Digests, &rec.Seen} {
				if *m == nil {
					*m = map[string]string{}
				}
				(*m)[ref] = a.digest
			}
		case !definite(a.err):
			return a.err
		}
	}
	rec.Unresolved = nil
	rec.Hash = s.Template.pinned(rec.Digests).Hash()
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return f.change(ctx, func(b *batch) error {
		if err := f.unchanged(ctx, b, item, &fence); err != nil {
			return err
		}
		b.Writes = append(b.Writes, store.Put(item.Key, data))
		b.reason = reasonResolved
		b.tell(ctx, record.Event{Kind: record.ServiceApplied, Namespace: s.Namespace, Service: s.Name, Revision: rec.Revision})
		return nil
	})
}

// rolloutState is how far the rollout of a spec has come, its rollback
// included; Progressing before anybody has seen it.
func (f *Fleet) rolloutState(ctx context.Context, ns, name string, spec int64) (record.RolloutState, error) {
	item, found, err := store.Get(ctx, f.store, record.Key(record.Rollouts, ns, name))
	if err != nil || !found {
		return record.Progressing, err
	}
	var r record.Rollout
	if err := json.Unmarshal(item.Value, &r); err != nil {
		return "", fmt.Errorf("read %s: %w", item.Key, err)
	}
	switch {
	case r.Spec != spec, r.Rollback != nil && r.Rollback.State == record.Progressing:
		return record.Progressing, nil
	}
	return r.State, nil
}

// Refresh looks up once what the tags of a service's images mean now, at their
// registries, and makes a revision of what has moved, as [Service.Track] does
// at its times; a person who asks gets it even if it has failed before. It
// returns the moves, none when all is as it was, once they are stored. Without
// [WithResolver] it is [ErrNoResolver]; a service that does not exist is a
// [*NameError], and a tag that cannot be looked up an error, for which nothing
// is changed.
func (f *Fleet) Refresh(ctx context.Context, name string) ([]ImageMove, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if f.opts.resolver == nil {
		return nil, ErrNoResolver
	}
	for {
		ns, base := splitName(name)
		item, err := f.existing(ctx, "service", name, record.Key(record.Services, ns, base))
		if err != nil {
			return nil, err
		}
		st, err := readService(item)
		if err != nil {
			return nil, err
		}
		var rec record.Service
		if err := json.Unmarshal(item.Value, &rec); err != nil {
			return nil, fmt.Errorf("read %s: %w", item.Key, err)
		}
		v, err := f.lookUp(ctx, &st.Service, &rec, true)
		if err != nil || len(v.moves) == 0 {
			return nil, err
		}
		err = f.commitMoves(ctx, item, st.Service, v, nil)
		if !errors.Is(err, errMeanwhile) {
			return v.moves, err
		}
	}
}
