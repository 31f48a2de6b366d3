package orchestrate

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// MaxHistory is how many revisions before the current one are kept of a
// service. Fewer are where their templates have more than 64 KiB as JSON; the
// last that completed is kept then, up to 1 MiB together with the spec.
const MaxHistory = record.MaxHistory

const (
	historyBytes = 64 << 10
	serviceBytes = 1 << 20 // leaves room for others in a transaction
)

// Revision is a template that a service has, or had.
type Revision struct {
	Number  int64
	Hash    string // of Template with Digests; see [Template.Hash]
	Created time.Time
	// Template is as it was applied; Digests are what its images meant that
	// have no digest of their own, by reference. Tasks of the revision run
	// these. See [WithResolver].
	Template Template
	Digests  map[string]string
	// Origin is what made the revision.
	Origin Origin
	// Completed says that a rollout of it has completed, with at least one
	// task.
	Completed bool
	// Failed says that its rollout has failed because of it, and was then
	// superseded.
	Failed bool
	// Current is the one that the service's spec has. It is not what runs
	// while its rollout goes on, or when that has failed.
	Current bool
}

// Origin is what made a revision.
type Origin string

// The origins.
const (
	OriginApplied  Origin = ""                    // [Fleet.Apply]
	OriginRollback Origin = record.OriginRollback // [Fleet.Rollback]
	// OriginMoved: a tag came to mean another image, and was tracked or
	// refreshed; see [Service.Track].
	OriginMoved    Origin = record.OriginMoved
	OriginReplaced Origin = record.OriginReplaced // [Fleet.ReplaceImage]
)

// Diff returns what changes from r to another revision, the digests of images
// included; see [Diff].
func (r Revision) Diff(to Revision) []Change {
	return Diff(Service{Template: r.Template.pinned(r.Digests)}, Service{Template: to.Template.pinned(to.Digests)})
}

// RevisionError is a revision that a service cannot go back to. It matches
// [ErrNotFound].
type RevisionError struct {
	Service  string  // NAMESPACE/NAME
	Revision int64   // 0: the last that completed before the current one
	Have     []int64 // those there are
}

func (e *RevisionError) Error() string {
	if e.Revision == 0 {
		return fmt.Sprintf("service %s: no other revision before the current one has completed; there are %v", e.Service, e.Have)
	}
	return fmt.Sprintf("service %s has no revision %d; there are %v", e.Service, e.Revision, e.Have)
}

// Is reports whether target is [ErrNotFound].
func (e *RevisionError) Is(target error) bool { return target == ErrNotFound }

// History returns the revisions of a service, the oldest first and the current
// one last: at most [MaxHistory] and that. A service that does not exist is a
// [*NameError].
func (f *Fleet) History(ctx context.Context, name string) ([]Revision, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	_, _, revisions, err := f.history(ctx, name)
	return revisions, err
}

// Rollback applies the template of an earlier revision again: of the last that
// completed before the current one and differs from it when to is 0. It
// becomes a new revision, so numbers only grow, and what replicas, labels and
// update policy are now stays. Tasks that still run that template are kept.
// Like [Fleet.Apply] it returns once that is stored, and with the same errors;
// besides, a revision that is not in the history is a [*RevisionError], and a
// service that does not exist a [*NameError].
func (f *Fleet) Rollback(ctx context.Context, name string, to int64) error {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	return f.change(ctx, func(b *batch) error {
		item, s, revisions, err := f.history(ctx, name)
		if err != nil {
			return err
		}
		current := revisions[len(revisions)-1]
		at := -1
		for i, r := range revisions {
			if r.Number == to || to == 0 && r.Completed && r.Hash != current.Hash {
				at = i
			}
		}
		if at < 0 {
			e := &RevisionError{Service: s.Namespace + "/" + s.Name, Revision: to}
			for _, r := range revisions {
				e.Have = append(e.Have, r.Number)
			}
			return e
		}
		s.Template = revisions[at].Template
		b.images = map[string]imageWish{s.Namespace + "/" + s.Name: {digests: revisions[at].Digests, origin: record.OriginRollback}}
		// A later version of this library may know better than the one that
		// took it.
		if err := s.Validate(); err != nil {
			return err
		}
		b.guard(item, item.Key) // what was read here, not what stage will read
		b.reason = reasonRollback
		if err := s.stage(ctx, f, b); err != nil {
			return err
		}
		return f.checkPorts(ctx, b)
	})
}

// history reads a service and its revisions.
func (f *Fleet) history(ctx context.Context, name string) (store.Item, Service, []Revision, error) {
	ns, base := splitName(name)
	item, err := f.existing(ctx, "service", name, record.Key(record.Services, ns, base))
	if err != nil {
		return item, Service{}, nil, err
	}
	var rec record.Service
	if err := json.Unmarshal(item.Value, &rec); err != nil {
		return item, Service{}, nil, fmt.Errorf("read %s: %w", item.Key, err)
	}
	st, err := readService(item)
	if err != nil {
		return item, Service{}, nil, err
	}
	completed, err := f.completed(ctx, ns, base, rec.Created)
	if err != nil {
		return item, Service{}, nil, err
	}
	var revisions []Revision
	for _, h := range rec.History {
		r := Revision{Number: h.Revision, Hash: h.Hash, Created: h.Created, Digests: h.Digests, Origin: Origin(h.Origin), Failed: h.Failed}
		if err := json.Unmarshal(h.Template, &r.Template); err != nil {
			return item, Service{}, nil, fmt.Errorf("read revision %d of %s: %w", h.Revision, item.Key, err)
		}
		revisions = append(revisions, r)
	}
	revisions = append(revisions, Revision{
		Number: rec.Revision, Hash: rec.Hash, Created: rec.Revised, Template: st.Template, Current: true,
		Digests: rec.Digests, Origin: Origin(rec.Origin),
	})
	for i := range revisions {
		revisions[i].Completed = slices.Contains(completed, record.Mark{Revision: revisions[i].Number, Hash: revisions[i].Hash})
	}
	return item, st.Service, revisions, nil
}

// completed reads which revisions of a service have completed. One of the same
// name that was removed before is another service.
func (f *Fleet) completed(ctx context.Context, ns, name string, created time.Time) ([]record.Mark, error) {
	item, found, err := store.Get(ctx, f.store, record.Key(record.Rollouts, ns, name))
	if err != nil || !found {
		return nil, err
	}
	var r record.Rollout
	if err := json.Unmarshal(item.Value, &r); err != nil {
		return nil, fmt.Errorf("read %s: %w", item.Key, err)
	}
	if !r.Created.Equal(created) {
		return nil, nil
	}
	return r.Completed, nil
}

// archive returns the history of a service whose record was last, at a store
// revision, with the template that it had, and has it forget what is too much.
func (f *Fleet) archive(ctx context.Context, s *Service, last *record.Service, old *Service, at int64, spec int) ([]record.Revision, error) {
	template, err := json.Marshal(old.Template)
	if err != nil {
		return nil, err
	}
	failed, err := f.revisionFailed(ctx, s.Namespace, s.Name, at)
	if err != nil {
		return nil, err
	}
	history := append(slices.Clone(last.History), record.Revision{
		Revision: last.Revision, Hash: last.Hash, Created: last.Revised, Template: template,
		Digests: last.Digests, Origin: last.Origin, Failed: failed,
	})
	if fits(history) {
		return history, nil
	}
	completed, err := f.completed(ctx, s.Namespace, s.Name, last.Created)
	if err != nil {
		return nil, err
	}
	return trim(history, completed, spec), nil
}

// revisionFailed reports whether the rollout of a spec has failed because of
// its template.
func (f *Fleet) revisionFailed(ctx context.Context, ns, name string, spec int64) (bool, error) {
	item, found, err := store.Get(ctx, f.store, record.Key(record.Rollouts, ns, name))
	if err != nil || !found {
		return false, err
	}
	var r record.Rollout
	if err := json.Unmarshal(item.Value, &r); err != nil {
		return false, fmt.Errorf("read %s: %w", item.Key, err)
	}
	return r.Spec == spec && r.State == record.RolloutFailed && (r.Reason == record.WhyFailures || r.Reason == record.WhyDeadline), nil
}

func fits(history []record.Revision) bool {
	size := 0
	for i := range history {
		size += len(history[i].Template)
	}
	return len(history) <= MaxHistory && size <= historyBytes
}

// trim forgets the oldest revisions until the rest fits, and last of all the
// one that completed last: a rollout that fails goes back to it. spec is the
// size of the record's other large part.
func trim(history []record.Revision, completed []record.Mark, spec int) []record.Revision {
	keep := func(r record.Revision) bool {
		return len(completed) > 0 && completed[len(completed)-1] == record.Mark{Revision: r.Revision, Hash: r.Hash}
	}
	for !fits(history) {
		oldest := 0
		if keep(history[0]) {
			oldest = 1
		}
		if oldest == len(history) { // it alone is left
			if len(history[0].Template)+spec <= serviceBytes {
				return history
			}
			oldest = 0
		}
		history = slices.Delete(history, oldest, oldest+1)
	}
	return history
}
