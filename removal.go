package orchestrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// The kinds of objects.
const (
	KindService = "service"
	KindJob     = "job"
	KindNetwork = "network"
	KindCronJob = "cronjob"
)

// Removal is an [Object] that ends another: as [Fleet.Remove] and
// [Fleet.RemoveNetwork] do, and in one step with what is applied beside it.
type Removal struct {
	Kind string // KindService, KindJob or KindCronJob, the first of them that has the name, when empty
	Name string // "NAME", or of a service also "NAMESPACE/NAME"
}

// Validate checks r and returns nil or a [*ValidationError].
func (r Removal) Validate() error {
	var c checks
	switch r.Kind {
	case "", KindService, KindJob, KindCronJob, KindNetwork:
	default:
		c.add("kind", r.Kind, "is not a kind of object; use %q, %q, %q or %q", KindService, KindJob, KindCronJob, KindNetwork)
	}
	if r.Name == "" {
		c.add("name", nil, "is missing; name what is to be removed")
	}
	if len(c.problems) > 0 {
		return &ValidationError{Object: "removal of " + r.object(), Problems: c.problems}
	}
	return nil
}

func (r Removal) object() string {
	if r.Kind == KindNetwork {
		return Network{Name: r.Name}.object()
	}
	ns, name := splitName(r.Name)
	if r.Kind == KindJob {
		return Job{Namespace: ns, Name: name}.object()
	}
	if r.Kind == KindCronJob {
		return CronJob{Namespace: ns, Name: name}.object()
	}
	return Service{Namespace: ns, Name: name}.object()
}

func (r Removal) stage(ctx context.Context, f *Fleet, b *batch) error {
	if r.Kind == KindNetwork {
		return r.network(ctx, f, b)
	}
	ns, name := splitName(r.Name)
	if r.Kind == KindJob {
		return r.job(ctx, f, b)
	}
	if r.Kind == KindCronJob {
		return r.cron(ctx, f, b)
	}
	key := record.Key(record.Services, ns, name)
	item, found, err := getKey(ctx, f.store, key)
	if err != nil {
		return err
	}
	if !found && r.Kind == "" {
		if err := r.job(ctx, f, b); !errors.Is(err, ErrNotFound) {
			return err
		}
		if err := r.cron(ctx, f, b); !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	if !found {
		return &NameError{KindService, r.Name}
	}
	if b.guarded[key] {
		return nil // named twice
	}
	b.guard(item, key)
	b.Writes = append(b.Writes, store.Delete(key))
	directive := record.Key(record.Directives, ns, name)
	if _, found, err := store.Get(ctx, f.store, directive); err != nil {
		return err
	} else if found {
		b.Writes = append(b.Writes, store.Delete(directive))
	}
	b.become(ns+"/"+name, nil)
	b.tell(ctx, record.Event{Kind: record.ServiceRemoved, Namespace: ns, Service: name, Reason: record.ReasonRemoved})
	return nil
}

// one removes an object that is a record of its own and no more: gone is the event
// that tells of it.
func (r Removal) one(ctx context.Context, f *Fleet, b *batch, kind, prefix string, gone record.EventKind) error {
	ns, name := splitName(r.Name)
	key := record.Key(prefix, ns, name)
	item, err := f.existing(ctx, kind, r.Name, key)
	if err != nil {
		return err
	}
	if b.guarded[key] {
		return nil // named twice
	}
	b.guard(item, key)
	b.Writes = append(b.Writes, store.Delete(key))
	if b.ended == nil {
		b.ended = map[string]string{}
	}
	b.ended[ns+"/"+name] = kind
	b.tell(ctx, record.Event{Kind: gone, Namespace: ns, Service: name, Reason: record.ReasonRemoved})
	return nil
}

func (r Removal) job(ctx context.Context, f *Fleet, b *batch) error {
	return r.one(ctx, f, b, KindJob, record.Jobs, record.JobGone)
}

func (r Removal) cron(ctx context.Context, f *Fleet, b *batch) error {
	return r.one(ctx, f, b, KindCronJob, record.Crons, record.CronRemoved)
}

func (r Removal) network(ctx context.Context, f *Fleet, b *batch) error {
	key := record.Key(record.Networks, r.Name)
	item, err := f.existing(ctx, KindNetwork, r.Name, key)
	if err != nil {
		return err
	}
	if err := f.readServices(ctx, b); err != nil {
		return err
	}
	var users []string
	for service, s := range b.services {
		if slices.Contains(s.Networks, r.Name) {
			users = append(users, service)
		}
	}
	jobs, err := f.store.List(ctx, record.Jobs)
	if err != nil {
		return err
	}
	for _, item := range b.written(jobs.Items, record.Jobs) {
		if j, _, err := readJob(item); err == nil && slices.Contains(j.Networks, r.Name) {
			users = append(users, j.Namespace+"/"+j.Name)
		}
	}
	crons, err := f.store.List(ctx, record.Crons)
	if err != nil {
		return err
	}
	for _, item := range b.written(crons.Items, record.Crons) {
		if c, _, err := readCron(item); err == nil && slices.Contains(c.Job.Networks, r.Name) {
			users = append(users, c.Namespace+"/"+c.Name)
		}
	}
	if len(users) > 0 {
		slices.Sort(users)
		return &InUseError{KindNetwork, r.Name, users}
	}
	b.guard(item, key)
	b.Writes = append(b.Writes, store.Delete(key))
	b.tell(ctx, record.Event{Kind: record.NetworkRemoved, Network: r.Name, Reason: record.ReasonRemoved})
	return f.touch(ctx, b, guardNetworks)
}

// become notes what a service will be when the batch is committed; nil is
// nothing.
func (b *batch) become(name string, s *Service) {
	if b.staged == nil {
		b.staged = map[string]*Service{}
	}
	b.staged[name] = s
	b.overlay()
}

// written is what items under a prefix will be when the batch is committed.
func (b *batch) written(items []store.Item, prefix string) []store.Item {
	items = slices.Clone(items)
	for _, w := range b.Writes {
		if strings.HasPrefix(w.Key, prefix) {
			items = slices.DeleteFunc(items, func(i store.Item) bool { return i.Key == w.Key })
			if !w.Delete {
				items = append(items, store.Item{Key: w.Key, Value: w.Value})
			}
		}
	}
	return items
}

// overlay makes b.services, where it has been read, what it will be.
func (b *batch) overlay() {
	if b.services == nil {
		return
	}
	for name, s := range b.staged {
		if s == nil {
			delete(b.services, name)
		} else {
			b.services[name] = *s
		}
	}
}

// stageAll stages objects in an order in which each finds what it refers to:
// what a removed service had is free, networks come before the services that
// are attached to them, and go after them.
func (f *Fleet) stageAll(ctx context.Context, b *batch, objects []Object) error {
	b.resolve = true
	order := slices.Clone(objects)
	slices.SortStableFunc(order, func(a, b Object) int { return turn(a) - turn(b) })
	for _, o := range order {
		if err := o.stage(ctx, f, b); err != nil {
			return err
		}
	}
	if err := f.checkPorts(ctx, b); err != nil {
		return err
	}
	return f.checkDependencies(ctx, b)
}

func turn(o Object) int {
	switch o := o.(type) {
	case Removal:
		if o.Kind == KindNetwork {
			return 3
		}
		return 0
	case Network:
		return 1
	}
	return 2
}

// decodeObject reads the spec of an object of a kind.
func decodeObject(kind string, spec json.RawMessage) (Object, error) {
	switch kind {
	case KindService:
		return DecodeService(spec)
	case KindJob:
		return DecodeJob(spec)
	case KindCronJob:
		return DecodeCronJob(spec)
	case KindNetwork:
		var n Network
		err := json.Unmarshal(spec, &n)
		return n, err
	}
	return nil, fmt.Errorf("%q is not a kind of object", kind)
}
