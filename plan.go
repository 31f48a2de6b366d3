package orchestrate

import (
	"cmp"
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
	snapshot, err := f.store.List(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	p := &Plan{Made: time.Now().UTC(), Basis: map[string]int64{}}
	for _, c := range b.If {
		if itemAt(snapshot, c.Key).Revision != c.Revision {
			return nil, nil, errMoved
		}
		p.Basis[c.Key] = c.Revision
	}
	asked := map[string]bool{}
	for _, o := range objects {
		asked[o.object()] = true
	}
	var services []string
	for _, w := range b.Writes {
		c, ok, err := planned(itemAt(snapshot, w.Key), w)
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
	state := control.NewState(f.plannerConfig(true))
	state.Load(snapshot, p.Made)
	r := state.Rehearse(b.Writes, p.Made, control.RehearseOptions{Services: services})
	p.Forecast = readForecast(&r, p.Made)
	return p, &stagedPlan{b, decided(snapshot, &p.Forecast)}, nil
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
// snapshot, and the nodes that a forecast gives tasks to are as they were. With
// very many nodes the first of them stand for the others.
func decided(snapshot store.Snapshot, forecast *Forecast) []store.Condition {
	leader := itemAt(snapshot, record.Leader)
	conditions := []store.Condition{{Key: record.Leader, Revision: leader.Revision}}
	if leader.Revision != 0 {
		conditions = append(conditions, store.Absent(record.LeaderEvents(leader.Revision, decisions(snapshot, leader.Revision))))
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
		for _, prefix := range []string{record.Nodes, record.NodeSpecs, record.Alive} {
			key := record.Key(prefix, n)
			conditions = append(conditions, store.Condition{Key: key, Revision: itemAt(snapshot, key).Revision})
		}
	}
	return conditions
}

// decisions is how many commits a leader has made decisions in: each is a record
// of events that is numbered in its term, of which the last is always kept.
func decisions(snapshot store.Snapshot, term int64) int {
	end, _ := slices.BinarySearchFunc(snapshot.Items, record.LeaderEvents(term+1, 0), func(i store.Item, key string) int {
		return strings.Compare(i.Key, key)
	})
	if end == 0 {
		return 0
	}
	return record.LeaderEventsNumber(snapshot.Items[end-1].Key, term) + 1
}

// maxConditionNodes leaves room for other conditions in a transaction.
const maxConditionNodes = 24

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

// objects are what applying p applies.
func (p *Plan) objects() ([]Object, error) {
	var objects []Object
	for _, c := range p.Changes {
		if c.Implicit {
			continue
		}
		o, err := c.object(c.After)
		if err != nil {
			return nil, fmt.Errorf("the plan's %s %s: %w", c.Kind, c.Name, err)
		}
		objects = append(objects, o)
	}
	return objects, nil
}

// object is what makes a spec what it is in c; nil removes it.
func (c *PlannedChange) object(spec json.RawMessage) (Object, error) {
	if spec == nil {
		return Removal{Kind: c.Kind, Name: c.Name}, nil
	}
	return decodeObject(c.Kind, spec)
}

// undoable reports whether there is something to undo: what is only tried again
// stays as it is.
func (c *PlannedChange) undoable() bool {
	return !c.Implicit && (string(c.Before) != string(c.After) || !maps.Equal(c.Digests, c.DigestsBefore) || c.From != c.To && c.Kind != KindJob)
}

// Inverse returns the objects that undo p when they are applied after it: specs
// as they were, and the removal of those that were not there. Networks made on
// first use stay, and what a job has done is done: one whose template goes back
// is begun anew, but for a run that the plan let go on, see
// [Fleet.ReplaceImage]. [Fleet.PlanUndo] plans that, and makes sure that nothing else
// is undone with it.
func (p *Plan) Inverse() ([]Object, error) {
	var objects []Object
	for _, c := range p.Changes {
		if !c.undoable() {
			continue
		}
		o, err := c.object(c.Before)
		if err != nil {
			return nil, fmt.Errorf("the plan's %s %s: %w", c.Kind, c.Name, err)
		}
		objects = append(objects, o)
	}
	return objects, nil
}

// PlanUndo plans the inverse of a plan that has been applied. Specs that are not
// as that plan made them are a [*StalePlanError]: undoing it would undo what came
// later too.
func (f *Fleet) PlanUndo(ctx context.Context, p *Plan) (*Plan, error) {
	objects, err := p.Inverse()
	if err != nil {
		return nil, err
	}
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := validate(objects); err != nil {
		return nil, err
	}
	undo, err := f.plan(ctx, objects, p.wishes(true))
	if gone := (*NameError)(nil); errors.As(err, &gone) {
		return nil, &StalePlanError{p.Made, []string{gone.Error()}}
	}
	if err != nil {
		return nil, err
	}
	made := map[string]json.RawMessage{}
	var later []string
	for _, c := range undo.Changes {
		made[c.Kind+"/"+c.Name] = c.Before
	}
	for _, c := range p.Changes {
		before, changes := made[c.Kind+"/"+c.Name]
		if c.undoable() && (!changes || string(before) != string(c.After)) {
			later = append(later, c.Kind+" "+c.Name+" is not what the plan made it")
		}
	}
	if later != nil {
		return nil, &StalePlanError{p.Made, later}
	}
	return undo, nil
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
