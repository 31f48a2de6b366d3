package orchestrate

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
)

// Dependency is a service or a job that something else waits for. Exactly one of
// Service and Job is set, to "NAME", which is in the namespace of what depends
// on it, or to "NAMESPACE/NAME". It need not exist yet, and can be removed at any
// time.
//
// It gates the first start of each revision of a service, or run of a job: until
// all dependencies hold, no task of that is placed, and an earlier revision is
// kept up as it is. Once they have held, the revision waits for nothing any more:
// its tasks are restarted, replaced and scaled whatever becomes of what it
// depends on. A revision of which tasks run already does not begin to wait, so
// a change of the dependencies alone restarts and stops nothing.
//
// The wait is shown in [Rollout.Waiting], [Result.Waiting] and
// [JobResult.WaitsFor], and told by the events [DependencyAwaited] and
// [DependencyMet]. It ends:
//   - A rollout fails with [ReasonDependency] when it has waited for as long as
//     its ProgressDeadline and Monitor, or at once when a job that it waits for
//     has failed. Nothing is wrong with its template, so it is not rolled back,
//     and tasks that are missing still start once the dependencies hold; tasks of
//     an earlier revision are replaced after the next Apply only. Else the
//     deadline begins anew when the wait is over.
//   - A job fails with [JobDependency] at once when a job that it waits for has
//     failed, or when it has waited for its Deadline, which runs meanwhile.
//     Without one it waits on.
type Dependency struct {
	Service string `json:"service,omitempty"`
	Job     string `json:"job,omitempty"`
	// Condition is what must hold: [Healthy] of a service and [Complete] of a job,
	// also when empty.
	Condition Condition `json:"condition,omitempty"`
}

// Condition is what must hold of a [Dependency].
type Condition string

// The conditions.
const (
	// Healthy is a service whose last rollout, or the rollback of it, completed,
	// and of which all tasks that are wanted, and one at least, are ready.
	Healthy Condition = "healthy"
	// Complete is a job whose last run completed. One that is gone, by its TTL for
	// instance, does not hold.
	Complete Condition = "completed"
)

const maxDependencies = 64

// Unmet is a dependency that does not hold, and why.
type Unmet struct {
	Dependency string `json:"dependency"` // such as "service default/db"
	Why        string `json:"why"`        // such as "is not healthy: 1 of 3 ready"
}

func (u Unmet) String() string { return u.Dependency + " " + u.Why }

func readUnmet(rec []record.Unmet) (unmet []Unmet) {
	for _, u := range rec {
		unmet = append(unmet, Unmet(u))
	}
	return unmet
}

// waitsFor says it to people; "" when there is nothing to wait for.
func waitsFor(unmet []Unmet) string {
	var all []string
	for _, u := range unmet {
		all = append(all, u.String())
	}
	if all == nil {
		return ""
	}
	return "it waits: " + strings.Join(all, ", ")
}

// CycleError is a change that would have services or jobs wait for one another,
// so that none could ever start. It matches [ErrInvalid].
type CycleError struct {
	// Cycle is each, as NAMESPACE/NAME, and after it what it depends on: the first
	// is also the last.
	Cycle []string
}

func (e *CycleError) Error() string {
	return fmt.Sprintf("the dependencies make a cycle: %s; remove one of them", strings.Join(e.Cycle, " waits for "))
}

// Is reports whether target is [ErrInvalid].
func (e *CycleError) Is(target error) bool { return target == ErrInvalid }

// in is what d names, for an object of a namespace.
func (d Dependency) in(namespace string) control.Dependency {
	name := cmp.Or(d.Service, d.Job)
	if !strings.Contains(name, "/") {
		name = namespace + "/" + name
	}
	return control.Dependency{Key: name, Job: d.Service == ""}
}

func dependencies(list []Dependency, namespace string) (deps []control.Dependency) {
	for _, d := range list {
		deps = append(deps, d.in(namespace))
	}
	return deps
}

func fillDependencies(list []Dependency) {
	for i := range list {
		condition := Healthy
		if list[i].Service == "" {
			condition = Complete
		}
		setDefault(&list[i].Condition, condition)
	}
}

// dependencies judges what an object of that namespace and name depends on.
func (c *checks) dependencies(list []Dependency, namespace, name string) {
	if len(list) > maxDependencies {
		c.add("dependsOn", len(list), "are too many; at most %d", maxDependencies)
	}
	seen := map[string]int{}
	for i, d := range list {
		path := at("dependsOn", i)
		if (d.Service == "") == (d.Job == "") {
			c.add(path, nil, "must name either a service or a job, and exactly one")
			continue
		}
		field, value, want := "service", d.Service, Healthy
		if d.Job != "" {
			field, value, want = "job", d.Job, Complete
		}
		problems := len(c.problems)
		ns, base, both := strings.Cut(value, "/")
		if !both {
			ns, base = namespace, value
		} else {
			c.label(path+"."+field, ns, 63)
		}
		if len(c.problems) == problems {
			c.label(path+"."+field, base, 63)
		}
		if d.Condition != want {
			c.add(path+".condition", d.Condition, "is not a condition of a %s; use %q", field, want)
		}
		key := ns + "/" + base
		first, twice := seen[key]
		switch {
		case key == namespace+"/"+name:
			c.add(path+"."+field, value, "is what depends on it: it would wait for itself; remove it")
		case twice:
			c.add(path+"."+field, value, "is in dependsOn[%d] already; keep one", first)
		default:
			seen[key] = i
		}
	}
}

// guardDependencies guards who depends on whom; see guards.
const guardDependencies = guards + "dependencies"

// depend notes that an object comes to depend on something else than before.
func (b *batch) depend(namespace, name string, old, new []Dependency) {
	if len(new) > 0 && !slices.Equal(old, new) {
		b.depends = append(b.depends, namespace+"/"+name)
	}
}

// checkDependencies refuses a batch that would close a cycle. What it adds is
// all that can: it looks from there.
func (f *Fleet) checkDependencies(ctx context.Context, b *batch) error {
	if len(b.depends) == 0 {
		return nil
	}
	// The guard is read first: a change after it, which the lists may or may not
	// show, makes the commit fail.
	if err := f.touch(ctx, b, guardDependencies); err != nil {
		return err
	}
	edges := map[string][]string{}
	take := func(key string, value []byte) error {
		name, is := strings.CutPrefix(key, record.Services)
		if !is {
			if name, is = strings.CutPrefix(key, record.Jobs); !is {
				return nil
			}
		}
		var rec struct {
			Spec struct{ DependsOn []Dependency } `json:"spec"`
		}
		if err := json.Unmarshal(value, &rec); err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
		namespace, _, _ := strings.Cut(name, "/")
		edges[name] = nil
		for _, d := range dependencies(rec.Spec.DependsOn, namespace) {
			edges[name] = append(edges[name], d.Key)
		}
		return nil
	}
	for _, prefix := range []string{record.Services, record.Jobs} {
		snapshot, err := f.store.List(ctx, prefix)
		if err != nil {
			return err
		}
		for _, item := range snapshot.Items {
			if err := take(item.Key, item.Value); err != nil {
				return err
			}
		}
	}
	for _, deleted := range []bool{true, false} { // a name may change its kind
		for _, w := range b.Writes {
			value := w.Value
			if w.Delete {
				value = []byte("{}")
			}
			if w.Delete == deleted {
				if err := take(w.Key, value); err != nil {
					return err
				}
			}
		}
	}
	for _, name := range b.depends {
		if cycle := cycleThrough(name, edges); cycle != nil {
			return &CycleError{cycle}
		}
	}
	return nil
}

// cycleThrough returns a shortest way from a node back to it; nil if there is none.
func cycleThrough(node string, edges map[string][]string) []string {
	from := map[string]string{}
	for queue := []string{node}; len(queue) > 0; queue = queue[1:] {
		for _, next := range edges[queue[0]] {
			if next == node {
				cycle := []string{node}
				for at := queue[0]; at != node; at = from[at] {
					cycle = append(cycle, at)
				}
				cycle = append(cycle, node)
				slices.Reverse(cycle)
				return cycle
			}
			if _, seen := from[next]; !seen {
				from[next] = queue[0]
				queue = append(queue, next)
			}
		}
	}
	return nil
}
