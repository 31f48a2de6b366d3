package orchestratetest

import (
	"context"
	"strings"

	"github.com/orchestrate-go/orchestrate/health"
)

// checker answers the checks of a machine's containers: healthy, unless a fault
// says otherwise. It knows when an answer changes, so a check whose answer stays
// the same costs nothing; see [health.Foreteller].
type checker struct{ of *containers }

var _ health.Foreteller = checker{}

// taskOf is the task of a container's probe, TASK.cINDEX.ATTEMPT/PROBE.
func taskOf(target string) string {
	target, _, _ = strings.Cut(target, "/")
	for range 2 {
		if i := strings.LastIndexByte(target, '.'); i >= 0 {
			target = target[:i]
		}
	}
	return target
}

// Check implements [health.Checker].
func (k checker) Check(ctx context.Context, t health.Target, _ health.Check) error {
	var answer error
	err := k.of.machine.enter(ctx, doing, "check "+t.ID, 0, func() error {
		if task := k.of.machine.world.view.Task(taskOf(t.ID)); task != nil {
			answer = k.of.machine.world.sick(task.Service, task.Slot)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return answer
}

// Await implements [health.Foreteller].
func (k checker) Await(t health.Target, _ health.Check, changed func()) (stop func()) {
	w := k.of.machine.world
	w.mu.Lock()
	defer w.mu.Unlock()
	task := taskOf(t.ID)
	if k.of.asking[task] == nil {
		k.of.asking[task] = map[string]func(){}
	}
	k.of.asking[task][t.ID] = changed
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(k.of.asking[task], t.ID)
		if len(k.of.asking[task]) == 0 {
			delete(k.of.asking, task)
		}
	}
}

// reconsider has the checks of a service's tasks asked again. mu is held.
func (c *containers) reconsider(service string) {
	for _, task := range sortedKeys(c.asking) {
		if t := c.machine.world.view.Task(task); t == nil || t.Service != service {
			continue
		}
		for _, changed := range c.asking[task] {
			go changed() // takes the monitor's lock
		}
		delete(c.asking, task)
	}
}
