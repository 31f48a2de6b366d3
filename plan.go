package orchestrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// Plan is what applying objects would do. It is plain data: print it for
// people, marshal it for programs, keep it for whoever is to approve it, and
// make it true with [Fleet.ApplyPlan].
type Plan struct {
	Made time.Time `json:"made"`
	// Changes are the specs that would be written, those that a first use makes
	// included. Empty when all is as it should be already.
	Changes []PlannedChange `json:"changes,omitempty"`
	// Forecast is what would follow.
	Forecast
	// Left is, in a plan to replace an image, what names the image and is not
	// changed, by kind and name.
	Left []LeftImage `json:"left,omitempty"`
	// Basis is what must not have changed when the plan is applied, whatever
	// follows from it: the store revisions of what was read for the change, by
	// key, 0 for what was not there.
	Basis map[string]int64 `json:"basis,omitempty"`
}

// PlannedChange is a spec that would be written or removed.
type PlannedChange struct {
	Kind string `json:"kind"` // KindService, KindJob, KindCronJob, KindNetwork
	Name string `json:"name"` // but of a network, NAMESPACE/NAME
	// Before and After are the spec as JSON with its defaults; nil where there
	// is none.
	Before json.RawMessage `json:"before,omitempty"`
	After  json.RawMessage `json:"after,omitempty"`
	// From and To are the revisions of a service; they are the same when its
	// template does not change, and then nothing of it is restarted. Of a job they
	// are the numbers of its runs, the same when it is not begun anew.
	From int64 `json:"from,omitempty"`
	To   int64 `json:"to,omitempty"`
	// Diff is what changes in a service or a job that stays, what a service's
	// images mean included; see [Diff].
	Diff []Change `json:"diff,omitempty"`
	// Digests are what the images of After mean, and DigestsBefore those of
	// Before, by reference; see [WithResolver]. A plan that is applied makes
	// them so, whatever tags have come to mean since.
	Digests       map[string]string `json:"digests,omitempty"`
	DigestsBefore map[string]string `json:"digestsBefore,omitempty"`
	// Origin is what the revision will be said to be made by.
	Origin Origin `json:"origin,omitempty"`
	// Implicit is set when no object asked for it: a network made on first use.
	Implicit bool `json:"implicit,omitempty"`
}

// Plan returns what applying objects would do, and changes nothing. It plays
// the change through with the code that would make it; see [Forecast] for what
// that assumes. The errors are those of [Fleet.Apply].
func (f *Fleet) Plan(ctx context.Context, objects ...Object) (*Plan, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := validate(objects); err != nil {
		return nil, err
	}
	return f.plan(ctx, objects, nil)
}

func (f *Fleet) plan(ctx context.Context, objects []Object, images map[string]imageWish) (*Plan, error) {
	for {
		p, _, err := f.rehearse(ctx, objects, images)
		if !errors.Is(err, errMoved) {
			return p, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// errMoved says that something was written between two reads.
var errMoved = errors.New("the store moved on")

// staged is a change on its way: what is to be committed, and under what
// conditions it is what was planned.
type stagedPlan struct {
	batch *batch
	// decided are the conditions under which the leader has decided nothing
	// since, and the nodes that get tasks are as they were.
	decided []store.Condition
}

// rehearse plans objects on the fleet as it is now.
func (f *Fleet) rehearse(ctx context.Context, objects []Object, images map[string]imageWish) (*Plan, *stagedPlan, error) {
	b := &batch{snapshot: map[string]store.Snapshot{}, guarded: map[string]bool{}, images: images}
	if err := f.stageAll(ctx, b, objects); err != nil {
		return nil, nil, err
	}
	state, leader, err := f.fork(ctx)
	if err != nil {
		return nil, nil, err
	}
	p := &Plan{Made: time.Now().UTC(), Basis: map[string]int64{}}
	// What was read for the change is what is played with. The state was taken
	// after that, so what is as it was now has been so then.
	was := map[string]store.Item{}
	for _, c := range b.If {
		item, found, err := store.Get(ctx, f.store, c.Key)
		if err != nil {
			return nil, nil, err
		}
		if !found {
			item = store.Item{}
		}
		if item.Revision != c.Revision || !state.Holds(c.Key, c.Revision) {
			return nil, nil, errMoved
		}
		was[c.Key], p.Basis[c.Key] = item, c.Revision
	}
	asked := map[string]bool{}
	for _, o := range objects {
		asked[o.object()] = true
		if r, ok := o.(Removal); ok && r.Kind == "" { // of whichever has the name
			for _, kind := range []string{KindJob, KindCronJob} {
				asked[Removal{Kind: kind, Name: r.Name}.object()] = true
			}
		}
	}
	var services []string
	for _, w := range b.Writes {
		c, ok, err := planned(was[w.Key], w)
		if err != nil {
			return nil, nil, err
		}
		if ok {
			c.Origin = Origin(images[c.imageKey()].origin)
			c.Implicit = !asked[Removal{Kind: c.Kind, Name: c.Name}.object()]
			p.Changes = append(p.Changes, c)
			if c.Kind == KindService || c.Kind == KindJob {
				services = append(services, c.Name)
			}
		}
	}
	crons, err := f.foresee(ctx, b.Writes, p.Made)
	if err != nil {
		return nil, nil, err
	}
	r := state.Rehearse(slices.Concat(b.Writes, crons.writes), p.Made, control.RehearseOptions{Services: append(services, crons.names()...)})
	p.Forecast = readForecast(&r, p.Made)
	crons.mark(&p.Forecast)
	return p, &stagedPlan{b, decided(state, leader, &p.Forecast)}, nil
}

// itemAt is the item of a snapshot at a key; the zero Item when there is none.
func itemAt(s store.Snapshot, key string) store.Item {
	i, found := slices.BinarySearchFunc(s.Items, key, func(i store.Item, key string) int { return strings.Compare(i.Key, key) })
	if !found {
		return store.Item{}
	}
	return s.Items[i]
}

// planned is what a write changes, if it writes a spec.
func planned(old store.Item, w store.Write) (c PlannedChange, ok bool, err error) {
	if name, ok := strings.CutPrefix(w.Key, record.Services); ok {
		c.Kind, c.Name = KindService, name
		var before, after Service
		var was, is record.Service
		if was, err = serviceSpec(old.Value, &before); err != nil {
			return c, false, fmt.Errorf("read %s: %w", w.Key, err)
		}
		if is, err = serviceSpec(w.Value, &after); err != nil {
			return c, false, err
		}
		c.Before, c.From, c.DigestsBefore = was.Spec, was.Revision, was.Digests
		c.After, c.To, c.Digests = is.Spec, is.Revision, is.Digests
		before.Template, after.Template = before.Template.pinned(was.Digests), after.Template.pinned(is.Digests)
		if c.Before != nil && c.After != nil {
			c.Diff = Diff(before, after)
		}
		return c, true, nil
	}
	if name, ok := strings.CutPrefix(w.Key, record.Networks); ok {
		c.Kind, c.Name = KindNetwork, name
		if c.Before, err = networkSpec(old.Value); err == nil {
			c.After, err = networkSpec(w.Value)
		}
		return c, true, err
	}
	if name, ok := strings.CutPrefix(w.Key, record.Jobs); ok {
		c.Kind, c.Name = KindJob, name
		var before, after Job
		var was, is record.Job
		if was, err = jobSpec(old.Value, &before); err != nil {
			return c, false, fmt.Errorf("read %s: %w", w.Key, err)
		}
		if is, err = jobSpec(w.Value, &after); err != nil {
			return c, false, err
		}
		c.Before, c.From, c.DigestsBefore = was.Spec, was.Run, was.Digests
		c.After, c.To, c.Digests = is.Spec, is.Run, is.Digests
		before.Template, after.Template = before.Template.pinned(was.Digests), after.Template.pinned(is.Digests)
		if c.Before != nil && c.After != nil {
			c.Diff = diffSpecs(before, after)
		}
		return c, true, nil
	}
	if name, ok := strings.CutPrefix(w.Key, record.Crons); ok {
		c.Kind, c.Name = KindCronJob, name
		var before, after CronJob
		var was, is record.Cron
		if was, err = cronSpec(old.Value, &before); err != nil {
			return c, false, fmt.Errorf("read %s: %w", w.Key, err)
		}
		if is, err = cronSpec(w.Value, &after); err != nil {
			return c, false, err
		}
		c.Before, c.DigestsBefore, c.After, c.Digests = was.Spec, was.Digests, is.Spec, is.Digests
		before.Job.Template, after.Job.Template = before.Job.Template.pinned(was.Digests), after.Job.Template.pinned(is.Digests)
		if c.Before != nil && c.After != nil {
			c.Diff = diffSpecs(before, after)
		}
		return c, true, nil
	}
	if strings.HasPrefix(w.Key, record.Directives) && w.Delete {
		return c, false, nil // what was told of a service goes with it
	}
	if !strings.HasPrefix(w.Key, guards) {
		return c, false, fmt.Errorf("a plan cannot say what writing %s does", w.Key) // and must not do it in silence
	}
	return c, false, nil
}

func jobSpec(value []byte, j *Job) (rec record.Job, err error) {
	if value == nil {
		return rec, nil
	}
	if err := json.Unmarshal(value, &rec); err != nil {
		return rec, err
	}
	return rec, json.Unmarshal(rec.Spec, j)
}

func cronSpec(value []byte, j *CronJob) (rec record.Cron, err error) {
	if value == nil {
		return rec, nil
	}
	if err := json.Unmarshal(value, &rec); err != nil {
		return rec, err
	}
	return rec, json.Unmarshal(rec.Spec, j)
}

func serviceSpec(value []byte, s *Service) (rec record.Service, err error) {
	if value == nil {
		return rec, nil
	}
	if err := json.Unmarshal(value, &rec); err != nil {
		return rec, err
	}
	return rec, json.Unmarshal(rec.Spec, s)
}

// imageKey is the key of c in a batch's images.
func (c *PlannedChange) imageKey() string {
	if c.Kind == KindCronJob {
		return cronImages(c.Name)
	}
	return c.Name
}

// wishes are what images mean in the services and jobs of p, before or after it.
func (p *Plan) wishes(before bool) map[string]imageWish {
	wishes := map[string]imageWish{}
	for _, c := range p.Changes {
		if c.Kind == KindNetwork {
			continue
		}
		w := imageWish{digests: c.Digests, origin: string(c.Origin)}
		if before {
			w = imageWish{digests: c.DigestsBefore, origin: record.OriginRollback}
		}
		w.going = c.Kind == KindJob && c.From == c.To && c.Before != nil && c.After != nil
		wishes[c.imageKey()] = w
	}
	return wishes
}

func networkSpec(value []byte) (json.RawMessage, error) {
	if value == nil {
		return nil, nil
	}
	var rec record.Network
	if err := json.Unmarshal(value, &rec); err != nil {
		return nil, err
	}
	return json.Marshal(readNetwork(rec))
}

// decided are the conditions under which nothing has been decided since a
// state was taken, and the nodes that a forecast gives tasks to are as they were.
// With very many nodes the first of them stand for the others.
func decided(state *control.State, leader store.Item, forecast *Forecast) []store.Condition {
	conditions := []store.Condition{{Key: record.Leader, Revision: leader.Revision}}
	if leader.Revision != 0 {
		conditions = append(conditions, store.Absent(record.LeaderEvents(leader.Revision, state.Decided(leader.Revision))))
	}
	nodes := map[string]bool{}
	for _, s := range forecast.Services {
		for _, t := range s.Tasks {
			if t.To != "" && len(nodes) < maxConditionNodes {
				nodes[t.To] = true
			}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(nodes)) {
		conditions = append(conditions, state.NodeConditions(n)...)
	}
	return conditions
}

// maxConditionNodes leaves room for other conditions in a transaction.
const maxConditionNodes = 24
