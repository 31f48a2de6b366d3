package orchestrate

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// Object is what Apply takes: a [Service], a [Job], a [CronJob], a [Network], or the
// [Removal] of one.
type Object interface {
	Validate() error
	object() string
	stage(ctx context.Context, f *Fleet, b *batch) error
}

// batch is one Apply on its way into the store. What it read it also
// guards, so that it is all true at the moment of writing.
type batch struct {
	store.Txn
	snapshot map[string]store.Snapshot // by prefix
	networks map[string]record.Network // as they will be
	services map[string]Service        // as they will be
	guarded  map[string]bool
	depends  []string            // NAMESPACE/NAME of what comes to depend on something else
	staged   map[string]*Service // that this batch writes; nil: removes
	ended    map[string]string   // jobs and cron jobs that it removes, with their kind
	// published are NAMESPACE/NAME of services whose published ports change.
	published []string

	reason string         // of the change, in its events; "" is reasonApplied
	events []record.Event // that tell of it

	resolve bool                 // look up what tags mean, as policies say
	images  map[string]imageWish // by service
	answers answers
}

// Why a service's spec was written.
const (
	reasonApplied  = "applied"
	reasonScaled   = "scaled"
	reasonRollback = "rollback"

	reasonResolved = "image-resolved" // what an image means, which was not known before
)

// tell has an event kept in the commit of the batch.
func (b *batch) tell(ctx context.Context, e record.Event) {
	e.At, e.Cause.Actor = time.Now().UTC(), actorOf(ctx)
	e.Reason = cmp.Or(e.Reason, b.reason, reasonApplied)
	e.Cause.Reason, e.Cause.Revision = e.Reason, e.Revision
	b.events = append(b.events, e)
}

// Apply makes objects what the fleet is to make true: all of them or, on an
// error, none. It returns once they are stored; [Fleet.Wait] says what became
// of them. Applying what is already applied changes nothing, except that a
// service whose rollout failed is tried again.
//
// The errors are a [*ValidationError] (several are joined), a [*NameError] for
// a network that does not exist, a [*PortError] for a published port that
// another service has, and a [*CycleError] for dependencies that make a cycle.
func (f *Fleet) Apply(ctx context.Context, objects ...Object) error {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := validate(objects); err != nil {
		return err
	}
	return f.change(ctx, func(b *batch) error { return f.stageAll(ctx, b, objects) })
}

// validate judges what can be judged without a fleet.
func validate(objects []Object) error {
	var errs []error
	seen := map[string]bool{}
	for _, o := range objects {
		err := o.Validate()
		if err == nil && seen[o.object()] {
			err = &ValidationError{Object: o.object(), Problems: []Problem{{Reason: "is named twice in one Apply; decide for one of them"}}}
		}
		seen[o.object()] = true
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// change stages a transaction and commits it, again when someone else was
// faster.
func (f *Fleet) change(ctx context.Context, stage func(*batch) error) error {
	answers := answers{}
	for {
		b := &batch{snapshot: map[string]store.Snapshot{}, guarded: map[string]bool{}, answers: answers}
		if err := stage(b); err != nil {
			return err
		}
		if len(b.Writes) == 0 {
			return nil
		}
		if err := f.commit(ctx, b); !errors.Is(err, store.ErrConflict) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// commit writes a batch with the events that tell of it.
func (f *Fleet) commit(ctx context.Context, b *batch) error {
	if len(b.events) > 0 {
		key := record.Key(record.Kept, "application", f.unique(b.Writes[0].Key))
		b.Writes = append(b.Writes, store.Put(key, record.EncodeEvents(b.events)))
	}
	// gofail: var applyBegun struct{}
	// die()
	_, err := f.store.Commit(ctx, b.Txn)
	// gofail: var applyStored struct{}
	// die()
	if err == nil {
		f.noteRemoved(b)
	}
	return err
}

// noteRemoved remembers what this fleet removed, for [Fleet.Wait].
func (f *Fleet) noteRemoved(b *batch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, s := range b.staged {
		if s == nil {
			f.removed[name] = KindService
		}
	}
	for name, kind := range b.ended {
		f.removed[name] = kind
	}
}

// guard makes the transaction fail if key has changed since it was read.
func (b *batch) guard(item store.Item, key string) {
	if !b.guarded[key] {
		b.guarded[key] = true
		b.If = append(b.If, store.Condition{Key: key, Revision: item.Revision})
	}
}

// Keys whose revision guards a set of records: whoever changes the set writes
// the key, so that two changes that each are right alone cannot both be made.
const (
	guards        = "/guards/"
	guardPorts    = guards + "ports"    // published ports
	guardNetworks = guards + "networks" // networks and their users
)

func (f *Fleet) touch(ctx context.Context, b *batch, key string) error {
	if b.guarded[key] {
		return nil
	}
	item, _, err := store.Get(ctx, f.store, key)
	if err != nil {
		return err
	}
	b.guard(item, key)
	b.Writes = append(b.Writes, store.Put(key, []byte("{}")))
	return nil
}

func (s Service) stage(ctx context.Context, f *Fleet, b *batch) error {
	s = s.WithDefaults()
	if err := f.checkStrategy(&s); err != nil {
		return err
	}
	if err := f.checkMetrics(&s); err != nil {
		return err
	}
	if err := b.onlyOne(ctx, f, s.Namespace, s.Name, s.object(), "job", record.Jobs, record.Runs); err != nil {
		return err
	}
	key := record.Key(record.Services, s.Namespace, s.Name)
	item, found, err := store.Get(ctx, f.store, key)
	if err != nil {
		return err
	}
	b.guard(item, key)
	spec, err := json.Marshal(s)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	var last record.Service
	var old Service
	if found {
		if err := json.Unmarshal(item.Value, &last); err != nil {
			return fmt.Errorf("read %s: %w", s.object(), err)
		}
		if err := json.Unmarshal(last.Spec, &old); err != nil {
			return fmt.Errorf("read %s: %w", s.object(), err)
		}
	}
	pins, err := f.pin(ctx, b, &s, &last, item.Revision, &old)
	if err != nil {
		return err
	}
	rec := record.Service{
		Spec: spec, Revision: 1, Hash: s.Template.pinned(pins.digests).Hash(), Created: now, Updated: now, Revised: now,
		Digests: pins.digests, Unresolved: pins.unresolved, Seen: pins.seen, Origin: b.images[s.Namespace+"/"+s.Name].origin,
		Actor: actorOf(ctx),
	}
	if found {
		rec.Created, rec.Revision, rec.Revised, rec.History = last.Created, last.Revision, last.Revised, last.History
		if last.Hash != rec.Hash {
			rec.Revision, rec.Revised = last.Revision+1, now
			if rec.History, err = f.archive(ctx, &s, &last, &old, item.Revision, len(spec)); err != nil {
				return err
			}
		} else {
			rec.Origin = last.Origin
		}
		if bytes.Equal(last.Spec, spec) && last.Hash == rec.Hash {
			if failed, err := f.rolloutFailed(ctx, s.Namespace, s.Name, item.Revision); err != nil || !failed {
				return err
			}
		}
	}
	if err := f.checkNetworks(ctx, b, &s, &old); err != nil {
		return err
	}
	b.publishes(&s, &old)
	b.depend(s.Namespace, s.Name, old.DependsOn, s.DependsOn)
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	b.Writes = append(b.Writes, store.Put(key, data))
	b.become(s.Namespace+"/"+s.Name, &s)
	e := record.Event{Kind: record.ServiceApplied, Namespace: s.Namespace, Service: s.Name, Revision: rec.Revision}
	e.Reason = b.images[s.Namespace+"/"+s.Name].origin
	if found {
		was, is := old, s
		was.Template, is.Template = was.Template.pinned(last.Digests), is.Template.pinned(rec.Digests)
		e.Message = changedPaths(was, is)
	}
	b.tell(ctx, e)
	return nil
}

// changedPaths says which fields of a spec were changed, and not how: a value
// may be a secret.
func changedPaths(old, new Service) string {
	var paths []string
	for _, c := range Diff(old, new) {
		paths = append(paths, c.Path)
	}
	if paths == nil {
		return "tried again"
	}
	return "changed " + strings.Join(paths, ", ")
}

func (f *Fleet) checkStrategy(s *Service) error {
	r, err := s.request()
	if err == nil {
		// An empty cluster has no place for it, but every request is
		// checked whole, its strategy's name included.
		r.Count = 1
		_, err = f.opts.scheduler.Place(scheduler.NewCluster(), []scheduler.Request{r})
	}
	if err != nil {
		return &ValidationError{Object: s.object(), Problems: []Problem{{Path: "placement", Reason: err.Error()}}}
	}
	return nil
}

func (f *Fleet) rolloutFailed(ctx context.Context, ns, name string, spec int64) (bool, error) {
	item, found, err := store.Get(ctx, f.store, record.Key(record.Rollouts, ns, name))
	if err != nil || !found {
		return false, err
	}
	var r record.Rollout
	if err := json.Unmarshal(item.Value, &r); err != nil {
		return false, err
	}
	return r.Spec == spec && r.State == record.RolloutFailed, nil
}

// checkNetworks refuses networks that do not exist. The network "default" is
// made on first use.
func (f *Fleet) checkNetworks(ctx context.Context, b *batch, s, old *Service) error {
	if slices.Equal(s.Networks, old.Networks) {
		return nil
	}
	if err := f.readNetworks(ctx, b); err != nil {
		return err
	}
	for _, n := range s.Networks {
		if _, ok := b.networks[n]; ok {
			continue
		}
		if n == DefaultNetwork {
			if err := (Network{Name: n}).stage(ctx, f, b); err != nil {
				return err
			}
			continue
		}
		return fmt.Errorf("%s: %w", s.object(), &NameError{"network", n})
	}
	return f.touch(ctx, b, guardNetworks)
}

func (f *Fleet) readNetworks(ctx context.Context, b *batch) error {
	if b.networks != nil {
		return nil
	}
	snapshot, err := f.store.List(ctx, record.Networks)
	if err != nil {
		return err
	}
	b.networks = map[string]record.Network{}
	for _, item := range snapshot.Items {
		var rec record.Network
		if err := json.Unmarshal(item.Value, &rec); err != nil {
			return fmt.Errorf("read %s: %w", item.Key, err)
		}
		b.networks[rec.Name] = rec
	}
	return nil
}

func (f *Fleet) readServices(ctx context.Context, b *batch) error {
	if b.services != nil {
		return nil
	}
	services, err := f.services(ctx, "")
	if err != nil {
		return err
	}
	b.services = map[string]Service{}
	for _, s := range services {
		b.services[s.Namespace+"/"+s.Name] = s.Service
	}
	b.overlay()
	return nil
}

// publishes notes that a service's published ports may be others than before.
func (b *batch) publishes(s, old *Service) {
	if slices.Equal(s.Ports, old.Ports) && s.HostNetwork == old.HostNetwork {
		return
	}
	if len(published(s)) > 0 || len(published(old)) > 0 {
		b.published = append(b.published, s.Namespace+"/"+s.Name)
	}
}

func published(s *Service) (ports []Port) {
	for _, p := range s.Ports {
		if p.Published != 0 {
			ports = append(ports, p)
		}
	}
	return ports
}

// checkPorts refuses a published port that another service has, once all of the
// batch is staged: what one gives up another can take.
func (f *Fleet) checkPorts(ctx context.Context, b *batch) error {
	if len(b.published) == 0 {
		return nil
	}
	if err := f.readServices(ctx, b); err != nil {
		return err
	}
	for i, self := range b.published {
		s, ok := b.services[self]
		if !ok {
			continue
		}
		for _, name := range keysOf(b.services) {
			if name == self || slices.Contains(b.published[i+1:], name) { // it is judged after this one
				continue
			}
			other := b.services[name]
			for _, p := range published(&s) {
				for _, q := range published(&other) {
					if p.Published == q.Published && p.Protocol == q.Protocol && record.SharedHost(p.HostIP, q.HostIP) {
						return &PortError{Service: self, Owner: name, Protocol: p.Protocol, Port: p.Published}
					}
				}
			}
		}
	}
	return f.touch(ctx, b, guardPorts)
}

func (n Network) stage(ctx context.Context, f *Fleet, b *batch) error {
	n = n.WithDefaults()
	if err := f.readNetworks(ctx, b); err != nil {
		return err
	}
	key := record.Key(record.Networks, n.Name)
	item, found, err := store.Get(ctx, f.store, key)
	if err != nil {
		return err
	}
	b.guard(item, key)
	rec := record.Network{Name: n.Name, MTU: n.MTU, Internal: n.Internal, Options: n.Options}
	for _, p := range n.Subnets {
		prefix, err := netip.ParsePrefix(p)
		if err != nil {
			return err // Validate has refused it
		}
		rec.Subnets = append(rec.Subnets, prefix.Masked())
	}
	last, had := b.networks[n.Name]
	if had {
		if len(rec.Subnets) == 0 {
			rec.Subnets = last.Subnets
		} else if !slices.Equal(rec.Subnets, last.Subnets) {
			return &ValidationError{Object: n.object(), Problems: []Problem{{Path: "subnets", Value: fmt.Sprint(n.Subnets),
				Reason: fmt.Sprintf("cannot be changed from %v; remove the network first, or make another", last.Subnets)}}}
		}
		rec.Virtual = last.Virtual
	}
	if err := f.opts.ranges.choose(&rec, b.networks); err != nil {
		return fmt.Errorf("%s: %w", n.object(), err)
	}
	var others []network.Network
	for _, other := range b.networks {
		others = append(others, other.Driver())
	}
	var clash *network.ConfigError
	if err := rec.Driver().Overlaps(others); errors.As(err, &clash) {
		return &ValidationError{Object: n.object(), Problems: []Problem{{Path: clash.Field, Reason: clash.Reason}}}
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	b.networks[n.Name] = rec
	if found && bytes.Equal(data, item.Value) {
		return nil
	}
	b.Writes = append(b.Writes, store.Put(key, data))
	b.tell(ctx, record.Event{Kind: record.NetworkApplied, Network: n.Name, Reason: reasonApplied})
	return f.touch(ctx, b, guardNetworks)
}

// Remove ends services, jobs and cron jobs with their runs: their tasks are stopped and what belongs to them is
// deleted, volumes excepted. It returns once that is stored; [Fleet.Wait] of
// the name returns when nothing is left. A service that does not exist is a
// [*NameError], and then none is removed.
func (f *Fleet) Remove(ctx context.Context, names ...string) error {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	return f.change(ctx, func(b *batch) error {
		for _, name := range names {
			if err := (Removal{Name: name}).stage(ctx, f, b); err != nil {
				return err
			}
		}
		return nil
	})
}

// RemoveNetwork removes a network. While a service is attached to it, it is an
// [*InUseError].
func (f *Fleet) RemoveNetwork(ctx context.Context, name string) error {
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	return f.change(ctx, func(b *batch) error { return Removal{Kind: KindNetwork, Name: name}.network(ctx, f, b) })
}

// Scale sets a service's number of replicas; 0 runs none. Tasks that stay are
// not restarted. Of a service with an autoscaler it is an [*AutoscaledError].
func (f *Fleet) Scale(ctx context.Context, name string, replicas int) error {
	if replicas == 0 {
		replicas = None
	}
	ctx, done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	return f.change(ctx, func(b *batch) error {
		item, s, _, err := f.history(ctx, name)
		if err != nil {
			return err
		}
		if s.Autoscale != nil {
			return &AutoscaledError{Service: s.Namespace + "/" + s.Name, Min: max(s.Autoscale.Min, 0), Max: s.Autoscale.Max}
		}
		b.guard(item, item.Key) // what was read here, not what stage will read
		b.reason = reasonScaled
		s.Replicas = replicas
		if err := s.Validate(); err != nil {
			return err
		}
		return s.stage(ctx, f, b)
	})
}

// existing reads the record of an object that a caller names. One that does not
// exist is a [*NameError].
func (f *Fleet) existing(ctx context.Context, kind, name, key string) (store.Item, error) {
	item, found, err := getKey(ctx, f.store, key)
	if err == nil && !found {
		err = &NameError{kind, name}
	}
	return item, err
}

// getKey is store.Get for a key made of a caller's words: one that cannot be a
// key names nothing.
func getKey(ctx context.Context, s store.Store, key string) (store.Item, bool, error) {
	if strings.Contains(strings.TrimPrefix(key, "/"), "//") || store.ValidateKey(key) != nil {
		return store.Item{}, false, nil
	}
	return store.Get(ctx, s, key)
}
