package orchestrate

import (
	"cmp"
	"encoding/json"
	"reflect"
	"slices"
)

// WithDefaults returns a copy of j with the default of every unset field filled
// in, as [Service.WithDefaults] does.
func (j Job) WithDefaults() Job {
	j = clone(reflect.ValueOf(j)).Interface().(Job)
	setDefault(&j.Namespace, DefaultNamespace)
	setDefault(&j.Completions, 1)
	setDefault(&j.Parallelism, 1)
	setDefault(&j.Restart.Condition, RestartNever)
	j.Template.fill()
	setDefault(&j.Retries, DefaultRetries)
	if j.RetryBackoff == 0 {
		j.RetryBackoff = DefaultRetryBackoff
		if j.MaxRetryBackoff > 0 {
			j.RetryBackoff = min(j.RetryBackoff, j.MaxRetryBackoff)
		}
	}
	setDefault(&j.MaxRetryBackoff, max(DefaultMaxRetryBackoff, j.RetryBackoff))
	setDefault(&j.Enough, j.Completions)
	setDefault(&j.KeepTasks, DefaultKeepTasks)
	fillDependencies(j.DependsOn)
	j.LossPolicy.fill()
	return j
}

// Validate checks j as Apply does, with its defaults filled in, and returns nil
// or a [*ValidationError] that names every mistake.
func (j Job) Validate() error {
	if problems := j.problems(); len(problems) > 0 {
		return &ValidationError{Object: j.object(), Problems: problems}
	}
	return nil
}

func (j Job) object() string {
	if j.Name == "" {
		return "job without a name"
	}
	return "job " + show(cmp.Or(j.Namespace, "default")+"/"+j.Name)
}

func (j Job) problems() []Problem {
	given := j.Enough
	j = j.WithDefaults()
	var c checks
	c.text(reflect.ValueOf(j))
	c.label("namespace", j.Namespace, 63)
	c.label("name", j.Name, 63)
	c.labels("labels", j.Labels, false)
	c.within("completions", j.Completions, 1, MaxCompletions)
	c.within("parallelism", j.Parallelism, 1, MaxReplicas)
	c.template(&j.Template)
	if len(j.Ports) > 0 {
		c.add("ports", nil, "are for services: nothing reaches the tasks of a job under one name; leave them away")
	}
	if len(j.SlotVolumes) > 0 {
		c.add("slotVolumes", nil, "are for stateful services; use volumes")
	}
	if j.Parallelism > 1 && exclusive(j.Volumes) {
		c.add("parallelism", j.Parallelism, "is more than 1, and an exclusive volume allows one task at a time")
	}
	if j.Restart.Condition == RestartAlways {
		c.add("restart.condition", j.Restart.Condition, "would never let a task complete; use %q or %q", RestartNever, RestartOnFailure)
	}
	if j.Retries != None {
		c.within("retries", j.Retries, 1, maxRetries)
	}
	c.duration("retryBackoff", j.RetryBackoff, 0)
	c.duration("maxRetryBackoff", j.MaxRetryBackoff, 0)
	if j.MaxRetryBackoff > 0 && j.RetryBackoff > j.MaxRetryBackoff {
		c.add("maxRetryBackoff", j.MaxRetryBackoff, "is shorter than retryBackoff, which is %v; raise it", j.RetryBackoff)
	}
	if given != 0 && (j.Enough < 1 || j.Enough > j.Completions) {
		c.add("enough", j.Enough, "is out of range; from 1 to completions, which is %d", j.Completions)
	}
	if j.Deadline != 0 {
		c.duration("deadline", j.Deadline, 0)
	}
	if j.TTL != 0 {
		c.duration("ttl", j.TTL, 0)
	}
	if j.KeepTasks != None {
		c.within("keepTasks", j.KeepTasks, 1, MaxKeepTasks)
	}
	c.exits(j.Exits)
	c.loss(&j.LossPolicy)
	c.dependencies(j.DependsOn, j.Namespace, j.Name)
	if data, err := json.Marshal(j); err != nil {
		c.add("", nil, "cannot be written as JSON: %v", err)
	} else if len(data) > MaxSpecBytes {
		c.add("", nil, "is %d bytes as JSON; at most %d, so put large content into an image or a volume", len(data), MaxSpecBytes)
	}
	return c.sorted(reflect.ValueOf(j))
}

func (c *checks) within(path string, n, least, most int) {
	if n < least || n > most {
		c.add(path, n, "is out of range; from %d to %d", least, most)
	}
}

func (c *checks) exits(rules []ExitRule) {
	if len(rules) > maxExits {
		c.add("exits", len(rules), "are too many; at most %d", maxExits)
	}
	actions := []ExitAction{ExitRetry, ExitIgnore, ExitFailIndex, ExitFailJob}
	seen := map[int]int{}
	for i, r := range rules {
		path := at("exits", i)
		if !slices.Contains(actions, r.Action) {
			c.add(path+".action", r.Action, "is not an action; use one of %s", list(actions))
		}
		if len(r.Codes) == 0 && i < len(rules)-1 {
			c.add(path+".codes", nil, "are missing, so it fits every failure and the rules after it never apply; put it last")
		}
		for k, code := range r.Codes {
			at := at(path+".codes", k)
			if code < 1 || code > 255 {
				c.add(at, code, "is no exit code of a failure; from 1 to 255")
			} else if first, twice := seen[code]; twice {
				c.add(at, code, "is in exits[%d] already; only the first rule applies", first)
			} else {
				seen[code] = i
			}
		}
	}
}

// DecodeJob reads a Job from JSON as [DecodeService] reads a Service: strictly,
// with its defaults filled in, and with every mistake in a [*ValidationError].
func DecodeJob(data []byte) (Job, error) {
	var j Job
	problems := decode(data, reflect.ValueOf(&j).Elem())
	problems = judged(problems, j.problems)
	j = j.WithDefaults()
	if len(problems) > 0 {
		c := checks{problems: problems}
		return Job{}, &ValidationError{Object: j.object(), Problems: c.sorted(reflect.ValueOf(j))}
	}
	return j, nil
}

// judged adds to mistakes of form those of the spec that was read, but for what
// the form made unreadable, which would only be reported missing.
func judged(problems []Problem, judge func() []Problem) []Problem {
	unread := map[string]bool{}
	for _, p := range problems {
		unread[p.Path] = true
	}
	if unread[""] {
		return problems
	}
	for _, p := range judge() {
		if !within(unread, p.Path) {
			problems = append(problems, p)
		}
	}
	return problems
}
