package orchestrate

import (
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
	snapshot store.Snapshot
	writes   []store.Write
	services []string // whose specs change
}

// WhatIf returns what would follow if all of what happened now, and changes
// nothing. It is found by playing it through on a copy of the fleet's state with
// the code that would deal with it. A node or a service that does not exist is a
// [*NameError]; other errors are those of [Fleet.Apply].
func (f *Fleet) WhatIf(ctx context.Context, what ...What) (*Forecast, error) {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	snapshot, err := f.store.List(ctx, "")
	if err != nil {
		return nil, err
	}
	s := &supposition{fleet: f, snapshot: snapshot}
	for _, w := range what {
		if err := w(ctx, s); err != nil {
			return nil, err
		}
	}
	now := time.Now().UTC()
	state := control.NewState(f.plannerConfig(false))
	state.Load(snapshot, now)
	r := state.Rehearse(last(s.writes), now, control.RehearseOptions{Services: s.services})
	forecast := readForecast(&r, now)
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

// nodes lists the nodes of the snapshot, with what is wanted of them.
func (s *supposition) nodes() ([]record.Node, error) {
	var nodes []record.Node
	for _, item := range s.snapshot.Items {
		if !strings.HasPrefix(item.Key, record.Nodes) {
			continue
		}
		var n record.Node
		if err := json.Unmarshal(item.Value, &n); err != nil {
			return nil, fmt.Errorf("read %s: %w", item.Key, err)
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// NodesDie supposes that nodes are heard of no more.
func NodesDie(ids ...string) What {
	return func(_ context.Context, s *supposition) error {
		for _, id := range ids {
			if itemAt(s.snapshot, record.Key(record.Nodes, id)).Revision == 0 {
				return &NameError{"node", id}
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
		nodes, err := s.nodes()
		if err != nil {
			return err
		}
		var ids []string
		for _, n := range nodes {
			var spec record.NodeSpec
			if item := itemAt(s.snapshot, record.Key(record.NodeSpecs, n.ID)); item.Revision != 0 {
				if err := json.Unmarshal(item.Value, &spec); err != nil {
					return fmt.Errorf("read %s: %w", item.Key, err)
				}
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
	return func(_ context.Context, s *supposition) error {
		for _, id := range ids {
			if itemAt(s.snapshot, record.Key(record.Nodes, id)).Revision == 0 {
				return &NameError{"node", id}
			}
			key := record.Key(record.NodeSpecs, id)
			var spec record.NodeSpec
			if item := itemAt(s.snapshot, key); item.Revision != 0 {
				if err := json.Unmarshal(item.Value, &spec); err != nil {
					return fmt.Errorf("read %s: %w", key, err)
				}
			}
			spec.Drain = true
			data, err := json.Marshal(spec)
			if err != nil {
				return err
			}
			s.writes = append(s.writes, store.Put(key, data))
		}
		return nil
	}
}

// LoadGrows supposes that services need factor times as many replicas, rounded
// up; all of the fleet that have any when none is named. Where an autoscaler
// decides, it is supposed to come to that, within its bounds.
func LoadGrows(factor float64, services ...string) What {
	return func(_ context.Context, s *supposition) error {
		if !(factor >= 0) || math.IsInf(factor, 0) {
			return &ValidationError{Object: "supposition", Problems: []Problem{{Path: "factor", Value: fmt.Sprint(factor), Reason: "is no factor; use such as 2 for twice the load"}}}
		}
		keys := map[string]bool{}
		for _, name := range services {
			ns, base := splitName(name)
			key := record.Key(record.Services, ns, base)
			if itemAt(s.snapshot, key).Revision == 0 {
				return &NameError{KindService, name}
			}
			keys[key] = true
		}
		for _, item := range s.snapshot.Items {
			if !strings.HasPrefix(item.Key, record.Services) || services != nil && !keys[item.Key] {
				continue
			}
			if err := s.scale(item, factor); err != nil {
				return fmt.Errorf("read %s: %w", item.Key, err)
			}
		}
		return nil
	}
}

func (s *supposition) scale(item store.Item, factor float64) error {
	var rec record.Service
	if err := json.Unmarshal(item.Value, &rec); err != nil {
		return err
	}
	var spec Service
	if err := json.Unmarshal(rec.Spec, &spec); err != nil {
		return err
	}
	name := strings.TrimPrefix(item.Key, record.Services)
	if scale := itemAt(s.snapshot, record.Scales+name); scale.Revision != 0 && spec.Autoscale != nil {
		// Its autoscaler would come to the same, within its bounds.
		var by record.Scale
		if err := json.Unmarshal(scale.Value, &by); err != nil {
			return err
		}
		by.Replicas = int(min(math.Ceil(float64(by.Replicas)*factor), MaxReplicas))
		data, err := json.Marshal(by)
		if err != nil {
			return err
		}
		s.writes, s.services = append(s.writes, store.Put(scale.Key, data)), append(s.services, name)
		return nil
	}
	if spec.Replicas <= 0 {
		return nil
	}
	spec.Replicas = int(min(math.Ceil(float64(spec.Replicas)*factor), MaxReplicas))
	if spec.Replicas == 0 {
		spec.Replicas = None
	}
	var err error
	if rec.Spec, err = json.Marshal(spec); err != nil {
		return err
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	s.writes = append(s.writes, store.Put(item.Key, data))
	s.services = append(s.services, name)
	return nil
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
			for _, prefix := range []string{record.Services, record.Jobs} {
				if name, ok := strings.CutPrefix(w.Key, prefix); ok {
					s.services = append(s.services, name)
				}
			}
		}
		return nil
	}
}
