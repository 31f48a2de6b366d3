package orchestrate

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/runtime"
)

func (c *checks) container(path string, k *Container, init bool) {
	c.label(path+".name", k.Name, 32)
	c.image(path+".image", k.Image)
	switch k.Pull {
	case runtime.PullMissing, runtime.PullAlways, runtime.PullNever:
	default:
		c.add(path+".pull", k.Pull, "is not a pull policy; use \"always\" or \"never\", or nothing to pull what is missing")
	}
	if len(k.Entrypoint) > 0 && k.Entrypoint[0] == "" {
		c.add(at(path+".entrypoint", 0), nil, "is empty; name the program")
	}
	c.env(path+".env", k.Env)
	if k.Dir != "" {
		c.absolute(path+".dir", k.Dir, "of the working directory")
	}
	if k.User != "" {
		c.user(path+".user", k.User)
	}
	c.resources(path+".resources", &k.Resources)
	c.security(path+".security", &k.Security)
	c.ulimits(path+".ulimits", k.Ulimits)
	c.devices(path+".devices", k.Devices)
	c.mounts(path+".mounts", k.Mounts)
	c.labels(path+".labels", k.Labels, true)
	for _, h := range []struct {
		name  string
		check *health.Check
	}{{"startup", k.Startup}, {"readiness", k.Readiness}, {"liveness", k.Liveness}} {
		switch {
		case h.check == nil:
		case init:
			c.add(path+"."+h.name, nil, "is a check of a container that runs on; an init container counts by its exit code, so remove the check")
		default:
			for _, p := range h.check.Validate() {
				c.add(strings.TrimSuffix(path+"."+h.name+"."+p.Field, "."), nil, "%s", p.Reason)
			}
		}
	}
	c.signal(path+".stopSignal", k.StopSignal)
	c.count(path+".logs.maxBytes", k.Logs.MaxBytes, math.MaxInt64)
	c.count(path+".logs.maxFiles", int64(k.Logs.MaxFiles), 1000)
}

// count checks a number that must not be negative.
func (c *checks) count(path string, n, most int64) {
	switch {
	case n < 0:
		c.add(path, n, "is negative; give 0 for the default, or more")
	case n > most:
		c.add(path, n, "is too much; at most %d", most)
	}
}

const (
	// minCPULimit is the kernel's smallest quota, 1 ms in 100 ms, and maxCPU
	// what still can be written as one, in microseconds.
	minCPULimit = 10
	maxCPU      = math.MaxInt64 / 100
	// minMemoryLimit is package runtime's.
	minMemoryLimit = 6 * MiB
)

func (c *checks) resources(path string, r *Resources) {
	c.count(path+".cpu", r.CPU, maxCPU)
	c.count(path+".memory", r.Memory, math.MaxInt64)
	c.count(path+".cpuLimit", r.CPULimit, maxCPU)
	c.count(path+".memoryLimit", r.MemoryLimit, math.MaxInt64)
	if r.CPULimit > 0 && r.CPULimit < minCPULimit {
		c.add(path+".cpuLimit", r.CPULimit, "is too little; the unit is a thousandth of a core, and the least is %d", minCPULimit)
	}
	if r.MemoryLimit > 0 && r.MemoryLimit < minMemoryLimit {
		c.add(path+".memoryLimit", r.MemoryLimit, "is too little to start in; the unit is bytes, and the least is %d", minMemoryLimit)
	}
	if r.CPULimit > 0 && r.CPU > r.CPULimit {
		c.add(path+".cpu", r.CPU, "is above the limit of %d; lower it, or raise cpuLimit", r.CPULimit)
	}
	if r.MemoryLimit > 0 && r.Memory > r.MemoryLimit {
		c.add(path+".memory", r.Memory, "is above the limit of %d; lower it, or raise memoryLimit", r.MemoryLimit)
	}
	if r.CPUSet != "" {
		c.cpuset(path+".cpuSet", r.CPUSet)
	}
}

// sums checks that what the containers of a task ask for together can be
// counted. It is said at the container that is too much.
func (c *checks) sums(t *Template) {
	var cpu, memory, cpuLimit, memoryLimit int64
	add := func(sum *int64, path string, n int64) {
		if n <= 0 {
			return
		}
		if *sum > math.MaxInt64-n {
			c.add(path, n, "makes more than %d together with the other containers of the task; lower it", int64(math.MaxInt64))
			return
		}
		*sum += n
	}
	for _, l := range []struct {
		path string
		list []Container
	}{{"sidecars", t.Sidecars}, {"containers", t.Containers}} {
		for i := range l.list {
			r, path := &l.list[i].Resources, at(l.path, i)+".resources"
			add(&cpu, path+".cpu", r.CPU)
			add(&memory, path+".memory", r.Memory)
			add(&cpuLimit, path+".cpuLimit", r.CPULimit)
			add(&memoryLimit, path+".memoryLimit", r.MemoryLimit)
		}
	}
}

const maxMounts = 256

func (c *checks) mounts(path string, mounts []Mount) {
	if len(mounts) > maxMounts {
		c.add(path, nil, "are %d; at most %d", len(mounts), maxMounts)
		return
	}
	seen := map[string]string{}
	for i := range mounts {
		m, path := &mounts[i], at(path, i)
		if c.absolute(path+".target", m.Target, "in the container") {
			switch {
			case m.Target == "/":
				c.add(path+".target", m.Target, "would hide the image; mount below it")
			case m.Target == "/proc" || strings.HasPrefix(m.Target, "/proc/"):
				c.add(path+".target", m.Target, "is inside the kernel's /proc, which runtimes refuse; choose another path")
			case m.Target == "/etc/hosts" || m.Target == "/etc/resolv.conf":
				c.add(path+".target", m.Target, "is written by the agent; say with dns what belongs into it")
			default:
				c.unique(seen, path+".target", m.Target)
				for j := range i {
					if strings.HasPrefix(mounts[j].Target, m.Target+"/") {
						c.add(path+".target", m.Target, "would hide mounts[%d], which is below it; list it before that", j)
						break
					}
				}
			}
		}
		var kinds []string
		if m.Volume != "" {
			kinds = append(kinds, "volume")
			c.volumeName(path+".volume", m.Volume)
		}
		if m.Bind != "" {
			kinds = append(kinds, "bind")
			c.absolute(path+".bind", m.Bind, "on the node")
		}
		if t := m.Tmpfs; t != nil {
			kinds = append(kinds, "tmpfs")
			c.count(path+".tmpfs.size", t.Size, math.MaxInt64)
			if t.Mode > 0o7777 {
				c.add(path+".tmpfs.mode", t.Mode, "has more than permission bits; at most %d, which is octal 7777", 0o7777)
			}
		}
		switch {
		case len(kinds) == 0:
			c.add(path, nil, "says not what to mount; set one of volume, bind and tmpfs")
		case len(kinds) > 1:
			c.add(path+"."+kinds[1], nil, "is a second source beside %s; set one of volume, bind and tmpfs", kinds[0])
		}
	}
}

// maxDuration bounds every duration of a spec: what takes longer is a mistake
// of units.
const maxDuration = 7 * 24 * time.Hour

// duration checks d, where 0 was replaced by the default.
func (c *checks) duration(path string, d, least time.Duration) {
	// A number without a unit in JSON is nanoseconds, which nobody means.
	least = max(least, time.Millisecond)
	switch {
	case d < 0:
		c.add(path, d, "is negative; give 0 for the default, or more")
	case d < least:
		c.add(path, d, "is too short; at least %v, and a unit belongs to it, such as \"10s\"", least)
	case d > maxDuration:
		c.add(path, d, "is too long; at most %v", maxDuration)
	}
}

func (c *checks) restart(r *RestartPolicy) {
	conditions := []RestartCondition{RestartAlways, RestartOnFailure, RestartNever}
	if !slices.Contains(conditions, r.Condition) {
		c.add("restart.condition", r.Condition, "is not a condition; use one of %s", list(conditions))
	}
	if r.Attempts > maxAttempts {
		c.add("restart.attempts", r.Attempts, "is too many; at most %d, or negative for no end", maxAttempts)
	}
	c.duration("restart.backoff", r.Backoff, 0)
	c.duration("restart.maxBackoff", r.MaxBackoff, 0)
	if r.Backoff > r.MaxBackoff && r.MaxBackoff > 0 {
		c.add("restart.maxBackoff", r.MaxBackoff, "is shorter than backoff, which is %v; raise it", r.Backoff)
	}
	c.duration("restart.reset", r.Reset, 0)
}

const maxAttempts = 1_000_000

func list[S ~string](names []S) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = fmt.Sprintf("%q", n)
	}
	return strings.Join(quoted, ", ")
}
