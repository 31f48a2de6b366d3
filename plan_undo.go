package orchestrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
)

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
