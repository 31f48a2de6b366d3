package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/volume"
)

// The labels of a slot's volume, by which it is known again.
const (
	labelNamespace = "orchestrate.namespace"
	labelService   = "orchestrate.service"
	labelSlot      = "orchestrate.slot"
	labelVolume    = "orchestrate.volume" // its name in the service's spec
)

// slots is what the node knows of slots: their volumes, as the store is told of
// them, and the newest epoch that it has run of each.
type slots struct {
	agent *Agent
	reach map[string]string // of the driver's volumes

	mu        sync.Mutex // guards what follows
	epochs    map[string]int64
	published map[string]record.Volume // by the driver's name
}

func newSlots(a *Agent) *slots {
	s := &slots{agent: a, epochs: map[string]int64{}, published: map[string]record.Volume{}}
	if r, ok := a.opts.Volumes.(volume.Reacher); ok {
		s.reach = r.Reach()
	}
	if len(s.reach) == 0 {
		s.reach = map[string]string{record.NodeSegment: a.opts.Node.ID}
	}
	return s
}

// topology adds to a node's what its volumes are reached by.
func (s *slots) topology(own map[string]string) map[string]string {
	all := map[string]string{record.NodeSegment: s.agent.opts.Node.ID}
	maps.Copy(all, own)
	maps.Copy(all, s.reach)
	return all
}

// slotKey names a slot.
func slotKey(t *record.Task) string {
	return fmt.Sprintf("%s/%s", t.Namespace, record.SlotName(t.Service, t.Slot))
}

// newest notes the epoch of a slot's task, and refuses one that is older than
// what the node has seen.
func (s *slots) newest(t *record.Task) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := slotKey(t)
	if last := s.epochs[key]; t.Epoch < last {
		return errFenced(key, t.Epoch, last)
	}
	s.epochs[key] = t.Epoch
	return nil
}

// slotVolume is the volume that a slot has of a declared one.
func slotVolume(t *record.Task, v volume.Volume) volume.Volume {
	template := v.Name
	v = v.Clone()
	v.Name = volumeName(t.Namespace, record.SlotName(t.Service, t.Slot)+"."+template)
	v.Exclusive = true
	if v.Labels == nil {
		v.Labels = map[string]string{}
	}
	maps.Copy(v.Labels, map[string]string{
		labelNamespace: t.Namespace, labelService: t.Service, labelSlot: strconv.Itoa(t.Slot), labelVolume: template,
	})
	return v
}

// described reads what slotVolume wrote.
func (s *slots) described(v volume.Volume) (record.Volume, bool) {
	slot, err := strconv.Atoi(v.Labels[labelSlot])
	if err != nil || v.Labels[labelService] == "" || v.Labels[labelVolume] == "" {
		return record.Volume{}, false
	}
	return record.Volume{
		Name: v.Name, Namespace: v.Labels[labelNamespace], Service: v.Labels[labelService], Slot: slot,
		Template: v.Labels[labelVolume], Reach: s.reach,
	}, true
}

// provide makes a slot's volume, gives it to the task, and has the store know
// where it is before anything can be written to it.
func (s *slots) provide(ctx context.Context, t *task, v volume.Volume) error {
	driver := s.agent.opts.Volumes
	err := driver.Create(ctx, v)
	var exists *volume.ExistsError
	if e, ok := driver.(volume.Expander); ok && errors.As(err, &exists) && exists.Field == "size" {
		err = e.Expand(ctx, v.Name, v.Size)
	}
	if err != nil {
		return err
	}
	if f, ok := driver.(volume.Fencer); ok {
		if err := f.Claim(ctx, volume.Claim{Volume: v.Name, Task: t.rec.ID, Epoch: t.rec.Epoch}); err != nil {
			return err
		}
	}
	rec, _ := s.described(v)
	return s.agent.out.flushed(ctx, s.publish(rec))
}

func volumeKey(node, name string) string { return record.Key(record.Volumes, node, name) }

// publish tells the store of a volume, and returns what to wait for.
func (s *slots) publish(v record.Volume) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.published[v.Name] = v
	return s.agent.out.put(volumeKey(s.agent.id(), v.Name), v, false)
}

func (s *slots) withdraw(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.published, name)
	s.agent.out.delete(volumeKey(s.agent.id(), name))
}

// sync makes the store's records those of the volumes that there are: of a
// starting agent, or after someone else has deleted some.
func (s *slots) sync(ctx context.Context) error {
	if s.agent.opts.Volumes == nil {
		return nil
	}
	prefix := record.Key(record.Volumes, s.agent.id(), "")
	snapshot, err := s.agent.store.List(ctx, prefix)
	if err != nil {
		return err
	}
	volumes, err := s.agent.opts.Volumes.List(ctx)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, v := range volumes {
		if rec, ok := s.described(v.Volume); ok {
			there[v.Name] = true
			s.publish(rec)
		}
	}
	for _, item := range snapshot.Items {
		if name := strings.TrimPrefix(item.Key, prefix); !there[name] {
			s.withdraw(name)
		}
	}
	return nil
}

// SyncVolumes has the control plane know of volumes that were deleted by
// another way than the agent's: slots that had them are not bound to this node
// any more.
func (a *Agent) SyncVolumes(ctx context.Context) error { return a.slots.sync(ctx) }

// erase deletes the volumes of the task's slot, once the task is known to be
// the slot's newest.
func (t *task) erase(ctx context.Context) error {
	a := t.agent
	if a.opts.Volumes == nil {
		return nil
	}
	if err := a.tenure.admit(ctx, t); err != nil {
		if errors.Is(err, errStopped) {
			return nil // it is not any more
		}
		return err
	}
	volumes, err := a.opts.Volumes.List(ctx)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		rec, ok := a.slots.described(v.Volume)
		if !ok || rec.Namespace != t.rec.Namespace || rec.Service != t.rec.Service || rec.Slot != t.rec.Slot {
			continue
		}
		if f, ok := a.opts.Volumes.(volume.Fencer); ok {
			err := f.Claim(ctx, volume.Claim{Volume: v.Name, Task: t.rec.ID, Epoch: t.rec.Epoch})
			if errors.Is(err, volume.ErrFenced) {
				return nil // a newer task has it
			}
			if err != nil && !errors.Is(err, volume.ErrNotFound) {
				return err
			}
		}
		if err := a.opts.Volumes.Remove(ctx, v.Name); err != nil {
			return fmt.Errorf("delete volume %s: %w", v.Name, err)
		}
		a.slots.withdraw(v.Name)
	}
	// Those that another node has deleted are not here any more either.
	a.slots.forgetMissing(t, volumes)
	return nil
}

// forgetMissing withdraws the records of a slot's volumes that the driver does
// not have.
func (s *slots) forgetMissing(t *task, volumes []volume.Status) {
	there := map[string]bool{}
	for _, v := range volumes {
		there[v.Name] = true
	}
	s.mu.Lock()
	var gone []string
	for name, rec := range s.published {
		if rec.Namespace == t.rec.Namespace && rec.Service == t.rec.Service && rec.Slot == t.rec.Slot && !there[name] {
			gone = append(gone, name)
		}
	}
	s.mu.Unlock()
	for _, name := range gone {
		s.withdraw(name)
	}
}
