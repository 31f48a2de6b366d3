package orchestrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// StalePlanError is a plan that does not hold any more: the fleet is not as it
// was when the plan was made, and applying it would do something else. Nothing
// has been changed.
type StalePlanError struct {
	Made time.Time
	// Differences say what has changed, or what would be done otherwise.
	Differences []string
}

func (e *StalePlanError) Error() string {
	return fmt.Sprintf("the plan of %s is stale: %s; plan again", e.Made.Format(time.RFC3339), strings.Join(e.Differences, "; "))
}

// maxReplans bounds how often a plan is made again while the fleet does not
// stand still.
const maxReplans = 20

// ApplyPlan makes a plan true, if the state that it was made from still holds,
// and is a [*StalePlanError] otherwise, with nothing changed.
//
// What must hold is whatever the plan says depends on: the specs that it
// changes and read, to the revision; and then all that decides where its tasks
// go. To see that, the plan is made once more, and must come to the same tasks on
// the same nodes; it is committed under the condition that no leader has decided
// anything since, and that the nodes that get tasks are the same (the first 24 of
// them). So what happens elsewhere in the fleet does not make a plan stale
// unless it matters to it.
func (f *Fleet) ApplyPlan(ctx context.Context, p *Plan) error {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	objects, err := p.objects()
	if err != nil {
		return err
	}
	if err := validate(objects); err != nil {
		return err
	}
	for range maxReplans {
		if differences, err := f.basis(ctx, p); err != nil || differences != nil {
			if err == nil {
				err = &StalePlanError{p.Made, differences}
			}
			return err
		}
		now, staged, err := f.rehearse(ctx, objects, p.wishes(false))
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return err
		}
		if differences := p.differences(now); differences != nil {
			return &StalePlanError{p.Made, differences}
		}
		if len(staged.batch.Writes) == 0 {
			return nil
		}
		for _, c := range staged.decided {
			staged.batch.guard(store.Item{Revision: c.Revision}, c.Key)
		}
		if err := f.commit(ctx, staged.batch); !errors.Is(err, store.ErrConflict) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return &StalePlanError{p.Made, []string{"the fleet does not stand still: its leader decides something at every moment"}}
}

// basis says which of the records that p was made from have changed.
func (f *Fleet) basis(ctx context.Context, p *Plan) (differences []string, err error) {
	for _, key := range slices.Sorted(maps.Keys(p.Basis)) {
		item, found, err := getKey(ctx, f.store, key)
		if err != nil {
			return nil, err
		}
		if !found {
			item.Revision = 0
		}
		if item.Revision != p.Basis[key] {
			differences = append(differences, changedRecord(key, found))
		}
	}
	return differences, nil
}

// changedRecord says in words which record has changed.
func changedRecord(key string, found bool) string {
	what := "has been changed"
	if !found {
		what = "is gone"
	}
	switch {
	case key == guardPorts:
		return "the published ports of other services have been changed"
	case key == guardNetworks:
		return "the networks have been changed"
	case strings.HasPrefix(key, record.Services):
		return "service " + strings.TrimPrefix(key, record.Services) + " " + what
	case strings.HasPrefix(key, record.Jobs):
		return "job " + strings.TrimPrefix(key, record.Jobs) + " " + what
	case strings.HasPrefix(key, record.Crons):
		return "cron job " + strings.TrimPrefix(key, record.Crons) + " " + what
	case strings.HasPrefix(key, record.Networks):
		return "network " + strings.TrimPrefix(key, record.Networks) + " " + what
	}
	return strings.TrimPrefix(key, "/") + " " + what
}

// differences says how what now would be done differs from what p says.
func (p *Plan) differences(now *Plan) (differences []string) {
	type key struct {
		service string
		slot    int
		task    string
	}
	tasks := func(p *Plan) map[key]PlannedTask {
		all := map[key]PlannedTask{}
		for _, s := range p.Services {
			if !s.Asked {
				continue
			}
			for _, t := range s.Tasks {
				all[key{s.Service, t.Slot, t.Task}] = t
			}
		}
		return all
	}
	was, is := tasks(p), tasks(now)
	say := func(t PlannedTask) string {
		if t.Action == "" {
			return "nothing"
		}
		return t.what()
	}
	keys := slices.SortedFunc(maps.Keys(either(was, is)), func(a, b key) int {
		return cmp.Or(strings.Compare(a.service, b.service), cmp.Compare(a.slot, b.slot), strings.Compare(a.task, b.task))
	})
	for _, k := range keys {
		a, b := was[k], is[k]
		if a.Action != b.Action || a.From != b.From || a.To != b.To {
			if differences = append(differences, fmt.Sprintf("replica %d of %s: planned was %s, now it would be %s", k.slot, k.service, say(a), say(b))); len(differences) == maxDifferences {
				return append(differences, "and more")
			}
		}
	}
	short := func(p *Plan) map[string]int {
		all := map[string]int{}
		for _, s := range p.Services {
			if s.Asked && s.unplaced() > 0 {
				all[s.Service] = s.unplaced()
			}
		}
		return all
	}
	a, b := short(p), short(now)
	for _, name := range slices.Sorted(maps.Keys(either(a, b))) {
		if a[name] != b[name] {
			differences = append(differences, fmt.Sprintf("of %s %d replicas had no place, now %d have none", name, a[name], b[name]))
		}
	}
	return differences
}

// maxDifferences bounds what a StalePlanError lists.
const maxDifferences = 10

// either is what is in one of two maps or in both.
func either[K comparable, V any](a, b map[K]V) map[K]V {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}
