package orchestrate

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// What is something that might happen, for [Fleet.WhatIf].
type What func(context.Context, *supposition) error

// supposition is what is supposed to happen, as it would be written.
type supposition struct {
	fleet    *Fleet
	now      time.Time
	writes   []store.Write
	services []string // whose specs change
	crons    cronForesight
}

// WhatIf returns what would follow if all of what happened now, and changes
// nothing. Each is supposed where those before it are: to apply a service and then
// let its load grow is to have more of what is applied. It is found by playing it through on a copy of the fleet's state with
// the code that would deal with it. A node or a service that does not exist is a
// [*NameError]; other errors are those of [Fleet.Apply].
func (f *Fleet) WhatIf(ctx context.Context, what ...What) (*Forecast, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	s := &supposition{fleet: f, now: time.Now().UTC(), crons: cronForesight{runs: map[string]string{}, begun: map[string]bool{}}}
	for _, w := range what {
		if err := w(ctx, s); err != nil {
			return nil, err
		}
	}
	state, _, err := f.fork(ctx)
	if err != nil {
		return nil, err
	}
	s.services = append(s.services, s.crons.names()...)
	r := state.Rehearse(last(slices.Concat(s.writes, s.crons.writes)), s.now, control.RehearseOptions{Services: s.services})
	forecast := readForecast(&r, s.now)
	s.crons.mark(&forecast)
	return &forecast, nil
}

// last keeps of several writes to one key the last.
func last(writes []store.Write) []store.Write {
	seen := map[string]bool{}
	var out []store.Write
	for _, w := range slices.Backward(writes) {
		if !seen[w.Key] {
			seen[w.Key] = true
			out = append(out, w)
		}
	}
	slices.Reverse(out)
	return out
}

// item is what is at a key, if what is supposed so far is.
func (s *supposition) item(ctx context.Context, key string) (store.Item, bool, error) {
	for _, w := range slices.Backward(s.writes) {
		if w.Key == key {
			return store.Item{Key: key, Value: w.Value}, !w.Delete, nil
		}
	}
	return getKey(ctx, s.fleet.store, key)
}

// items are those under a prefix, if what is supposed so far is.
func (s *supposition) items(ctx context.Context, prefix string) ([]store.Item, error) {
	snapshot, err := s.fleet.store.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	items := slices.Clone(snapshot.Items)
	for _, w := range last(s.writes) {
		if !strings.HasPrefix(w.Key, prefix) {
			continue
		}
		items = slices.DeleteFunc(items, func(i store.Item) bool { return i.Key == w.Key })
		if !w.Delete {
			items = append(items, store.Item{Key: w.Key, Value: w.Value})
		}
	}
	slices.SortFunc(items, func(a, b store.Item) int { return strings.Compare(a.Key, b.Key) })
	return items, nil
}

// read decodes what is at a key into value, and leaves that alone when there is
// nothing.
func (s *supposition) read(ctx context.Context, key string, value any) (found bool, err error) {
	item, found, err := s.item(ctx, key)
	if err == nil && found {
		if err = json.Unmarshal(item.Value, value); err != nil {
			err = fmt.Errorf("read %s: %w", key, err)
		}
	}
	return found, err
}

func (s *supposition) put(key string, value any) error {
	data, err := json.Marshal(value)
	if err == nil {
		s.writes = append(s.writes, store.Put(key, data))
	}
	return err
}

// NodesDie supposes that nodes are heard of no more.
func NodesDie(ids ...string) What {
	return func(ctx context.Context, s *supposition) error {
		for _, id := range ids {
			if _, found, err := s.item(ctx, record.Key(record.Nodes, id)); err != nil || !found {
				return cmp.Or(err, error(&NameError{"node", id}))
			}
			s.writes = append(s.writes, store.Delete(record.Key(record.Alive, id)))
		}
		return nil
	}
}

// ZoneDies supposes that all nodes with a label of that value die, such as
// ZoneDies("zone", "eu-1"). That there are none is a [*NameError].
func ZoneDies(label, value string) What {
	return func(ctx context.Context, s *supposition) error {
		items, err := s.items(ctx, record.Nodes)
		if err != nil {
			return err
		}
		var ids []string
		for _, item := range items {
			var n record.Node
			if err := json.Unmarshal(item.Value, &n); err != nil {
				return fmt.Errorf("read %s: %w", item.Key, err)
			}
			var spec record.NodeSpec
			if _, err := s.read(ctx, record.Key(record.NodeSpecs, n.ID), &spec); err != nil {
				return err
			}
			has := n.Labels[label]
			if v, ok := spec.Labels[label]; ok {
				has = v
			}
			if has == value {
				ids = append(ids, n.ID)
			}
		}
		if ids == nil {
			return &NameError{"node with label", label + "=" + value}
		}
		return NodesDie(ids...)(ctx, s)
	}
}

// NodeJoins supposes that there is one node more: what fits then?
func NodeJoins(n scheduler.Node) What {
	return func(_ context.Context, s *supposition) error {
		n.Ready = true
		if err := n.Validate(); err != nil {
			return err
		}
		data, err := json.Marshal(record.Node{Node: n})
		if err != nil {
			return err
		}
		s.writes = append(s.writes, store.Put(record.Key(record.Nodes, n.ID), data), store.Put(record.Key(record.Alive, n.ID), nil))
		return nil
	}
}

// NodesDrain supposes that nodes are drained.
func NodesDrain(ids ...string) What {
	return func(ctx context.Context, s *supposition) error {
		for _, id := range ids {
			if _, found, err := s.item(ctx, record.Key(record.Nodes, id)); err != nil || !found {
				return cmp.Or(err, error(&NameError{"node", id}))
			}
			var spec record.NodeSpec
			if _, err := s.read(ctx, record.Key(record.NodeSpecs, id), &spec); err != nil {
				return err
			}
			spec.Drain = true
			if err := s.put(record.Key(record.NodeSpecs, id), spec); err != nil {
				return err
			}
		}
		return nil
	}
}

// LoadGrows supposes that services need factor times as many replicas, rounded
// up; all of the fleet that have any when none is named. Where an autoscaler
// decides, it is supposed to come to that, within its bounds.
func LoadGrows(factor float64, services ...string) What {
	return func(ctx context.Context, s *supposition) error {
		if !(factor >= 0) || math.IsInf(factor, 0) {
			return &ValidationError{Object: "supposition", Problems: []Problem{{Path: "factor", Value: fmt.Sprint(factor), Reason: "is no factor; use such as 2 for twice the load"}}}
		}
		var items []store.Item
		for _, name := range services {
			ns, base := splitName(name)
			item, found, err := s.item(ctx, record.Key(record.Services, ns, base))
			if err != nil || !found {
				return cmp.Or(err, error(&NameError{KindService, name}))
			}
			items = append(items, item)
		}
		if services == nil {
			var err error
			if items, err = s.items(ctx, record.Services); err != nil {
				return err
			}
		}
		for _, item := range items {
			if err := s.scale(ctx, item, factor); err != nil {
				return fmt.Errorf("read %s: %w", item.Key, err)
			}
		}
		return nil
	}
}

func (s *supposition) scale(ctx context.Context, item store.Item, factor float64) error {
	var spec Service
	rec, err := serviceSpec(item.Value, &spec)
	if err != nil {
		return err
	}
	name := strings.TrimPrefix(item.Key, record.Services)
	if spec.Autoscale != nil {
		// Its autoscaler would come to the same, within its bounds.
		var by record.Scale
		found, err := s.read(ctx, record.Scales+name, &by)
		if err != nil {
			return err
		}
		if found {
			by.Replicas = int(min(math.Ceil(float64(by.Replicas)*factor), MaxReplicas))
			s.services = append(s.services, name)
			return s.put(record.Scales+name, by)
		}
	}
	if spec.Replicas <= 0 {
		return nil
	}
	spec.Replicas = int(min(math.Ceil(float64(spec.Replicas)*factor), MaxReplicas))
	if spec.Replicas == 0 {
		spec.Replicas = None
	}
	if rec.Spec, err = json.Marshal(spec); err != nil {
		return err
	}
	s.services = append(s.services, name)
	return s.put(item.Key, rec)
}

// Applied supposes that objects are applied. [Fleet.Plan] does that alone, and
// its plan can be carried out.
func Applied(objects ...Object) What {
	return func(ctx context.Context, s *supposition) error {
		if err := validate(objects); err != nil {
			return err
		}
		b := &batch{snapshot: map[string]store.Snapshot{}, guarded: map[string]bool{}}
		if err := s.fleet.stageAll(ctx, b, objects); err != nil {
			return err
		}
		s.writes = append(s.writes, b.Writes...)
		for _, w := range b.Writes {
			if parts := record.Split(w.Key, record.Crons, 2); parts != nil {
				if err := s.fleet.foreseeCron(ctx, &s.crons, w, parts[0], parts[1], s.now, false); err != nil {
					return err
				}
			}
			for _, prefix := range []string{record.Services, record.Jobs} {
				if name, ok := strings.CutPrefix(w.Key, prefix); ok {
					s.services = append(s.services, name)
				}
			}
		}
		return nil
	}
}
