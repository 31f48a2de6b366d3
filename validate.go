package orchestrate

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds on a spec. They are far above what is reasonable and keep a mistake
// from becoming everybody's problem.
const (
	// MaxSpecBytes is the largest size of a Service's JSON with its defaults
	// filled in, so that it fits a store's transaction with room for others.
	MaxSpecBytes = 256 << 10
	// MaxContainers is the greatest number of containers in a task, those of
	// Init and Sidecars included.
	MaxContainers = 32
	// MaxReplicas is the greatest number of a service's tasks.
	MaxReplicas = 1_000_000

	maxPorts       = 1024
	maxNetworks    = 16
	maxConstraints = 64
	maxPriority    = 1_000_000_000
)

// ErrInvalid is matched by every [*ValidationError].
var ErrInvalid = errors.New("invalid spec")

// Problem is one mistake in a spec.
type Problem struct {
	// Path of the field in the spec's JSON, such as
	// "containers[0].mounts[2].target" or `containers[0].env["PATH"]`.
	// Empty when the whole spec is meant.
	Path string
	// Value that was found there, as JSON would write it, shortened when it
	// is long. Empty when there is none or it says nothing.
	Value string
	// Reason says what is wrong with it and what would be right.
	Reason string
}

// Error is the problem in one line, long names shortened.
func (p Problem) Error() string {
	s := p.Reason
	if p.Value != "" {
		s = p.Value + " " + s
	}
	if p.Path != "" {
		s = cut(p.Path, 400) + ": " + s
	}
	return s
}

// ValidationError is a spec that was refused, with every mistake in it in the
// order of the fields. Nothing was changed. It matches [ErrInvalid].
type ValidationError struct {
	Object   string // such as `service "default/web"`
	Problems []Problem
}

// Error lists the problems, each on a line of its own when there are several;
// at most a hundred.
func (e *ValidationError) Error() string {
	const most = 100
	if len(e.Problems) == 1 {
		return e.Object + ": " + e.Problems[0].Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s has %d mistakes:", e.Object, len(e.Problems))
	for i, p := range e.Problems {
		if i == most {
			fmt.Fprintf(&b, "\n  and %d more", len(e.Problems)-most)
			break
		}
		b.WriteString("\n  " + p.Error())
	}
	return b.String()
}

// Is reports whether target is [ErrInvalid].
func (e *ValidationError) Is(target error) bool { return target == ErrInvalid }

// Unwrap returns each [Problem] as an error.
func (e *ValidationError) Unwrap() []error {
	errs := make([]error, len(e.Problems))
	for i, p := range e.Problems {
		errs[i] = p
	}
	return errs
}

// Validate checks s as Apply does, with its defaults filled in, and returns
// nil or a [*ValidationError] that names every mistake. It needs no fleet:
// what only a fleet can know, such as whether a network exists or a strategy
// is registered, is checked by Apply.
func (s Service) Validate() error {
	if problems := s.problems(); len(problems) > 0 {
		return &ValidationError{Object: s.object(), Problems: problems}
	}
	return nil
}

func (s Service) object() string {
	if s.Name == "" {
		return "service without a name"
	}
	return "service " + show(cmp.Or(s.Namespace, "default")+"/"+s.Name)
}

// problems judges the spec with its defaults filled in, and only that, so
// that filling them in can never change the verdict.
func (s Service) problems() []Problem {
	s = s.WithDefaults()
	var c checks
	c.text(reflect.ValueOf(s))
	c.label("namespace", s.Namespace, 63)
	c.label("name", s.Name, 63)
	c.labels("labels", s.Labels, false)
	if s.Replicas < None || s.Replicas > MaxReplicas {
		c.add("replicas", s.Replicas, "is out of range; from 1 to %d, or None (%d) for no task", MaxReplicas, None)
	}
	c.template(&s.Template)
	c.update(&s)
	c.track(&s.Track)
	c.exclusive(&s)
	c.modes(&s)
	c.autoscale(&s)
	c.budget(&s)
	if s.Mode == Global {
		c.globalLoss(&s.LossPolicy)
	} else {
		c.loss(&s.LossPolicy)
	}
	c.dependencies(s.DependsOn, s.Namespace, s.Name)
	if data, err := json.Marshal(s); err != nil {
		c.add("", nil, "cannot be written as JSON: %v", err)
	} else if len(data) > MaxSpecBytes {
		c.add("", nil, "is %d bytes as JSON; at most %d, so put large content into an image or a volume", len(data), MaxSpecBytes)
	}
	return c.sorted(reflect.ValueOf(s))
}

func (c *checks) template(t *Template) {
	lists := []struct {
		path string
		list []Container
	}{{"init", t.Init}, {"sidecars", t.Sidecars}, {"containers", t.Containers}}
	if len(t.Containers) == 0 {
		c.add("containers", nil, "has no container; a task needs at least one")
	}
	names := map[string]string{} // to the path of its first use
	sysctls := map[string]string{}
	total := 0
	for _, l := range lists {
		for i := range l.list {
			if total++; total > MaxContainers {
				c.add(l.path, nil, "makes more than %d containers in a task; split the service", MaxContainers)
				break
			}
			path := at(l.path, i)
			c.container(path, &l.list[i], l.path == "init")
			c.unique(names, path+".name", l.list[i].Name)
			c.taskSysctls(path+".sysctls", l.list[i].Sysctls, sysctls, t.HostNetwork)
		}
	}
	c.sums(t)
	c.networks(t)
	c.ports(t)
	c.volumes(t)
	if t.Hostname != "" {
		c.hostname("hostname", t.Hostname, 64)
		if t.HostNetwork {
			c.add("hostname", t.Hostname, "contradicts hostNetwork, with which the node's own name is kept; keep one of the two")
		}
	}
	c.dns(&t.DNS)
	c.restart(&t.Restart)
	c.placement(&t.Placement)
	c.duration("stopGrace", t.StopGrace, 0)
	if t.DrainDelay > 0 {
		c.duration("drainDelay", t.DrainDelay, 0)
	}
}

// checks collects problems.
type checks struct {
	problems []Problem
	unclean  map[string]bool // paths of strings that are no text; said once is enough
}

// add records a problem. A value of nil is none.
func (c *checks) add(path string, value any, reason string, args ...any) {
	if c.unclean[path] {
		return
	}
	c.problems = append(c.problems, Problem{Path: path, Value: show(value), Reason: fmt.Sprintf(reason, args...)})
}

// unique reports value at path when it was seen before.
func (c *checks) unique(seen map[string]string, path, value string) {
	if value == "" {
		return
	}
	if first, ok := seen[value]; ok {
		c.add(path, value, "is used twice, first at %s; give each its own", first)
		return
	}
	seen[value] = path
}

// text checks all strings of a spec: the store keeps UTF-8 alone, the kernel
// ends a string at NUL, and control characters in a name or path are a
// mistake that nobody can see. Where any text is meaningful, such as in
// arguments, control characters are left alone.
func (c *checks) text(v reflect.Value) {
	c.unclean = map[string]bool{}
	free := map[string]bool{
		"env": true, "command": true, "entrypoint": true, "labels": true, "options": true,
		"params": true, "seccomp": true,
	}
	check := func(path, s string, free bool) {
		reason := ""
		switch {
		case !utf8.ValidString(s):
			reason = "is not valid UTF-8, which alone can be stored"
		case strings.IndexByte(s, 0) >= 0:
			reason = "has a NUL byte; remove it"
		case !free && strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }):
			reason = "has a control character; remove it"
		default:
			return
		}
		c.add(path, s, "%s", reason)
		c.unclean[path] = true
	}
	walk(v, "", "", func(path, field string, v reflect.Value) {
		switch v.Kind() {
		case reflect.String:
			check(path, v.String(), free[field])
		case reflect.Map:
			for _, key := range sortedKeys(v) {
				check(key.path(path), key.name, false)
			}
		}
	})
}

// sorted returns the problems in the order of the fields of v.
func (c *checks) sorted(v reflect.Value) []Problem {
	if len(c.problems) < 2 {
		return c.problems
	}
	order := map[string]int{}
	walk(v, "", "", func(path, _ string, _ reflect.Value) { order[path] = len(order) })
	rank := func(path string) int {
		for path != "" {
			if n, ok := order[path]; ok {
				return n
			}
			path = parent(path)
		}
		return len(order) // the whole spec comes last
	}
	slices.SortStableFunc(c.problems, func(a, b Problem) int {
		return cmp.Compare(rank(a.Path), rank(b.Path))
	})
	return c.problems
}
